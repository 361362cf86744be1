// The patches of the text of POML's bundle, applied before it is compiled.
//
// Each `find` occurs exactly once in the bundle of poml 0.0.8 (a test checks it). If one is missing, the start fails,
// since it is another version of poml.
'use strict';

// upstream: poml 0.0.8: development React, searches and copies for each element or message, and readers that a start loads
const PATCHES = [
  {
    why: 'The bundle is a command line: export the require() of webpack, for its modules, instead of running it.',
    find: '__webpack_require__(__webpack_require__.s = "./packages/poml/cli.ts")',
    replace: '__webpack_require__;module.exports = __webpack_require__',
  },
  {
    why: 'Development React captures a stack for each element, for warnings alone.',
    find: '1e4 > ReactSharedInternals.recentlyCreatedOwnerStacks++',
    replace: 'false',
  },
  {
    why: 'Development React hides four properties in each element, for warnings alone.',
    find: '      self = props.ref;\n      type = {',
    replace:
      '      return { $$typeof: REACT_ELEMENT_TYPE, type, key, props: Object.freeze(props), ref: null, _owner: owner };\n' +
      '      type = {',
  },
  {
    why: 'Development React defines a property in each element of a loop, for a warning alone.',
    find: 'node &&\n        defineKeyPropWarningGetter(',
    replace: 'false &&\n        defineKeyPropWarningGetter(',
  },
  {
    // upstream: poml 0.0.8: quadratic time in a run of blanks
    why: 'Quadratic in a run of blanks; one replacement gives what three did.',
    find:
      String.raw`text = text.replace(/[\t\n\r ]*\n[\t\n\r ]*/g, '\n');` +
      '\n    // 2. all tab characters and line breaks are handled as space characters\n' +
      String.raw`    text = text.replace(/[\t\n\r]/g, ' ');` +
      '\n    // 3. multiple space characters are handled as one space character\n' +
      "    text = text.replace(/ +/g, ' ');",
    replace: String.raw`text = text.replace(/[\t\n\r ]+/g, ' ');`,
  },
  {
    why: 'Quadratic in elements: the source map from output to markup, which write() discards.',
    find: 'for (const m of result.mappings) {\n                if (start',
    replace: 'for (const m of []) {\n                if (start',
  },
  {
    why: 'Quadratic in elements: a search through a list.',
    find: 'return result.mappings.find(segment => segment.inputStart === startIndex && segment.inputEnd === endIndex);',
    replace:
      'const key = (start, end) => start * 2 ** 26 + end; ' +
      'result.known ??= new Map(result.mappings.toReversed().map((one) => [key(one.inputStart, one.inputEnd), one])); ' +
      'return result.known.get(key(startIndex, endIndex));',
  },
  {
    why: 'Quadratic in messages: two searches through a list for each speaker, which the next two patches replace.',
    find: 'const colorSpeakers =',
    replace: 'const places = new Map(essentialIndices.map((index, place) => [index, place])); const colorSpeakers =',
  },
  {
    why: 'The first search for a speaker; see the patch before.',
    find: 'essentialIndices.findIndex(index => index == segment.start)',
    replace: 'places.get(segment.start)',
  },
  {
    why: 'The second search for a speaker.',
    find: 'essentialIndices.findIndex(index => index == segment.end)',
    replace: 'places.get(segment.end)',
  },
  {
    why: 'Quadratic in messages: a search through all parts of the output for each message.',
    find: 'segments.filter(seg => seg.outStart >= sp.start && seg.outEnd <= sp.end)',
    replace: '(result.parts ??= pomlflow.partsBySpeaker(result.speakers, segments)).get(sp)',
  },
  {
    why: 'Three objects of cheerio for each element, where one does.',
    find: 'const speaker = getSpecifiedSpeaker($(child));',
    replace: 'child = $(child); const speaker = getSpecifiedSpeaker(child);',
  },
  {
    why: 'An object for each property of each element, only to assign it.',
    find:
      'Object.assign(target, { [key]: source[key] });\n                }\n            }\n            else {\n' +
      '                Object.assign(target, { [key]: source[key] });',
    replace:
      'target[key] = source[key];\n                }\n            }\n            else {\n' +
      '                target[key] = source[key];',
  },
  {
    why: 'The names of a component are needed for each element, and never change.',
    find: 'return this.options.aliases.map(alias => alias.toLowerCase());',
    replace: 'return this.lowerAliases ??= this.options.aliases.map(alias => alias.toLowerCase());',
  },
  {
    why: 'The parameters of a component are needed for each element, and never change.',
    find: '    parameters() {\n',
    replace: '    parameters() { return this.allParameters ??= this.computeParameters(); }\n    computeParameters() {\n',
  },
  {
    why: 'A search through all components for each element; the index has the same, since no two have a name in common.',
    find: 'for (const component of this.components) {\n                const aliases',
    replace:
      'this.index ??= new Map(this.components.flatMap((one) => one.getAliases().map((name) => [name, [one]])));\n' +
      '            for (const component of this.index.get(variant) ?? []) {\n                const aliases',
  },
  {
    why: "POML's writers test each element against up to fourteen names, which cheerio parses as selectors.",
    find: "    const nodes = this.toArray();\n    return typeof selector === 'string'\n        ? select.some(",
    replace:
      "    if (this.length === 1 && /^[a-z]+$/.test(selector)) return this[0].name === selector;\n" +
      "    const nodes = this.toArray();\n    return typeof selector === 'string'\n        ? select.some(",
  },
  {
    why: 'Two copies of the properties of each element, to which usually no style applies.',
    find: 'matches.push([999, -1, restProps]);',
    replace: 'if (!matches.length && restProps.constructor === Object) return restProps;\n    matches.push([999, -1, restProps]);',
  },
  {
    why: 'Cheerio makes an object for the root of the document with each object for an element.',
    find: ': new LoadedCheerio(r, null, options);\n            // Add a cyclic reference',
    replace:
      ': root === initialRoot && !opts ? (initialize.rootInstance ??= new LoadedCheerio(r, null, options)) : new LoadedCheerio(r, null, options);\n' +
      '            // Add a cyclic reference',
  },
  {
    why: 'A replacement by a regular expression for each property of each element; few names occur.',
    find: "const hyphenCaseKey = k.replace(/[A-Z]/g, m => '-' + m.toLowerCase());",
    replace: 'const hyphenCaseKey = pomlflow.hyphenCase(k);',
  },
  {
    why: "mammoth may be loaded in a render: it needs Node's own setImmediate, since a template's timers end with its render.",
    find: 'var GlobalSetImmediate = global.setImmediate;',
    replace: 'var GlobalSetImmediate = pomlflow.setImmediate;',
  },
];

// Modules that are loaded on first use: a render without documents, token limits and XML output does not need them, and
// loading them takes half of a start. Not pdfjs: it redirects the console, which is read-only by then.
const DEFERRED = [
  ['undici', '__importStar(__webpack_require__(/*! undici */ "./node_modules/undici/index.js"))'],
  ['encoding_sniffer_1', '__webpack_require__(/*! encoding-sniffer */ "./node_modules/encoding-sniffer/dist/commonjs/index.js")'],
  ['mammoth', '__importStar(__webpack_require__(/*! mammoth */ "./node_modules/mammoth/lib/index.js"))'],
  ['XLSX', '__importStar(__webpack_require__(/*! xlsx */ "./node_modules/xlsx/xlsx.mjs"))'],
  ['js_tiktoken_1', '__webpack_require__(/*! js-tiktoken */ "./node_modules/js-tiktoken/dist/index.cjs")'],
  ['xmlbuilder', '__importStar(__webpack_require__(/*! xmlbuilder2 */ "./node_modules/xmlbuilder2/lib/index.js"))'],
  ['sharp_1', '__importDefault(__webpack_require__(/*! sharp */ "sharp"))'],
];
for (const [name, load] of DEFERRED) {
  PATCHES.push({
    why: `A render that does not need ${name} does not load it.`,
    find: `const ${name} = ${load};`,
    replace: `const ${name} = pomlflow.deferred(() => ${load});`,
  });
}

// The largest of these modules are cut out of the text, since V8 keeps the source of everything that it may compile.
// Their source is read from the bundle on first use.
const CUT = ['./node_modules/js-tiktoken/dist/index.cjs', './node_modules/xlsx/xlsx.mjs'];

/** The offsets of a module's function in the bundle's text. */
function moduleAt(text, id) {
  const head = `\n/***/ "${id}":\n`;
  const start = text.indexOf(head) + head.length;
  const end = text.indexOf('\n/***/ "', start);
  if (start < head.length || end < 0) throw new Error(`it does not contain the module ${id}`);
  return { start, end: text.lastIndexOf(',', end) };
}

function patchAt(text, { find, replace }) {
  const start = text.lastIndexOf(find);
  if (start < 0) throw new Error(`it does not contain ${find}`);
  return { start, end: start + find.length, replace };
}

/**
 * The patched text. Other characters than ASCII are escaped, since V8 stores a text with one of them in two bytes per
 * character.
 *
 * @param {Buffer} bytes The bytes of the bundle.
 */
function patch(bytes) {
  const text = bytes.latin1Slice();
  const edits = PATCHES.map((one) => patchAt(text, one));
  for (const id of CUT) {
    edits.push({ ...moduleAt(text, id), replace: `((...given) => pomlflow.module("${id}").apply(given[1], given))` });
  }
  const parts = [];
  let from = 0;
  for (const { start, end, replace } of edits.sort((one, other) => one.start - other.start)) {
    parts.push(text.slice(from, start), replace);
    from = end;
  }
  parts.push(text.slice(from));
  return parts.join('').replace(/[\x80-\xff]+/g, (utf8) => escaped(Buffer.from(utf8, 'latin1').toString()));
}

const escaped = (text) => Array.from({ length: text.length }, (_, at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, '0')}`).join('');

module.exports = { CUT, PATCHES, moduleAt, patch };
