// Loads POML's bundle, and patches it for a long-lived process.
//
// The patches of the bundle's text are in patches.cjs, those of its objects are here.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');
const { moduleAt, patch } = require('./patches.cjs');

const MAP = '//# sourceMappingURL=data:'; // 24 of the bundle's 40 MB

/** Reads what Python stored: SHA-256, the source's length, the source, V8's cached data; undefined if it is damaged. */
function readPrepared(file) {
  try {
    const stored = fs.readFileSync(file);
    const content = stored.subarray(32);
    if (!crypto.createHash('sha256').update(content).digest().equals(stored.subarray(0, 32))) return undefined;
    const end = 8 + Number(content.readBigUInt64LE());
    return { source: content.latin1Slice(8, end), cachedData: content.subarray(end) };
  } catch {
    return undefined;
  }
}

function readBundle(bundle) {
  const bytes = fs.readFileSync(bundle);
  const map = bytes.lastIndexOf(MAP);
  return map < 0 ? bytes : bytes.subarray(0, map);
}

const hyphenated = new Map(); // names of properties

/** The functions that the patched text calls, under the name `pomlflow`. */
const helpers = (bundle, require) => ({
  setImmediate,
  /** The name of a property in hyphen case, `listStyle` as `list-style`; templates can have any number of names. */
  hyphenCase(name) {
    if (hyphenated.has(name)) return hyphenated.get(name);
    const converted = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    if (hyphenated.size < 1000) hyphenated.set(name, converted);
    return converted;
  },
  /** The parts of the output that each speaker's range has; the ranges are in order and do not overlap. */
  partsBySpeaker(speakers, parts) {
    const found = new Map(speakers.map((speaker) => [speaker, []]));
    let at = 0;
    for (const part of parts) {
      if (part.outStart < speakers[at]?.start) at = 0; // media of the top come before the text, those of the bottom after it
      while (speakers[at + 1]?.start <= part.outStart) at++;
      const speaker = speakers[at];
      if (part.outStart >= speaker?.start && part.outEnd <= speaker.end) found.get(speaker).push(part);
    }
    return found;
  },
  /** A stub of a module, which is loaded on first use. */
  deferred(load) {
    let loaded;
    return new Proxy({}, { get: (_, key) => (loaded ??= load())[key] });
  },
  /** The function of a module that was cut out of the text (CUT in patches.cjs). */
  module(id) {
    const text = readBundle(bundle).toString();
    const { start, end } = moduleAt(text, id);
    return vm.runInThisContext(`(require) => ${text.slice(start, end)}`, { filename: bundle })(require);
  },
});

/**
 * Loads the bundle.
 *
 * @param {string} bundle The bundle's file.
 * @param {string | undefined} prepared The file in which Python stored the result of `prepared`.
 * @param {(require: Function) => Function} restrict Returns the require() for the bundle.
 */
function load(bundle, prepared, restrict) {
  const { source = prepare(bundle), cachedData } = (prepared && readPrepared(prepared)) ?? {};
  const script = new vm.Script(source, { filename: bundle, cachedData }); // import() is refused in it
  const module = { exports: {} };
  const require = restrict(Module.createRequire(bundle));
  script.runInThisContext()(module.exports, require, module, bundle, path.dirname(bundle), helpers(bundle, require));
  const bundled = module.exports; // webpack's require(), for the modules in the bundle
  const base = bundled('./packages/poml/base.tsx');
  const { PomlFile } = bundled('./packages/poml/file.tsx');
  const place = trackPlace(PomlFile);
  markSchemaErrors(PomlFile, place);
  return {
    cache: !cachedData ? 'none' : script.cachedDataRejected ? 'rejected' : 'hit',
    /** The bytes that Python stores for later starts. */
    prepared() {
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(source.length));
      return Buffer.concat([length, Buffer.from(source, 'latin1'), script.createCachedData()]);
    },
    React: bundled('./node_modules/react/index.js'),
    base,
    PomlFile,
    version: bundled('./packages/poml/version.ts').POML_VERSION,
    write: bundled('./packages/poml/index.ts').write,
    zod: bundled('./node_modules/zod/index.cjs'),
    reactRender: bundled('./packages/poml/util/reactRender.ts').reactRender,
    sources: numberSources(PomlFile),
    markMessages: passNativeMessages(base),
    whitespace: keepWhitespace(PomlFile, place),
    settle: keepPromises(base),
  };
}

function prepare(bundle) {
  try {
    const text = patch(readBundle(bundle));
    return `(function (exports, require, module, __filename, __dirname, pomlflow) { ${text}\n})`;
  } catch (error) {
    throw new Error(`the bundle ${bundle} is not that of poml 0.0.8: ${error.message}`);
  }
}

const SPAN = 2 ** 32;

/** Adds the number of its file to each offset. */
// upstream: poml 0.0.8: the error of a component in an included file has an offset but no file
function numberSources({ prototype }) {
  let sources = [];
  const { ensureRange } = prototype;
  prototype.ensureRange = function (position) {
    let number = sources.indexOf(this.sourcePath);
    if (number < 0) number = sources.push(this.sourcePath) - 1;
    return ensureRange.call(this, position) + number * SPAN;
  };
  return {
    begin: (root) => (sources = [root]),
    locate: (offset) => ({ offset: offset % SPAN, file: sources[Math.floor(offset / SPAN)] }),
  };
}

const MARK = Symbol('the mark of a native message');

/**
 * Whether <conversation> would parse a message's text as JSON, which would lose "1", and could make an image or a tool
 * call of a user's text. It does not parse a text in a list.
 */
function isReadAsJson(content) {
  if (typeof content !== 'string' || !/^\s*[[{"\d\-tfn]/.test(content)) return false;
  try {
    JSON.parse(content);
    return true;
  } catch {
    return false;
  }
}

/**
 * Makes <conversation> render the mark of each native message, so that selectedMessages and expressions work; Python
 * replaces the mark in the output by the native message.
 */
// upstream: poml 0.0.8: <conversation> parses texts as JSON, refuses tool messages and drops parts that POML lacks
function passNativeMessages(base) {
  const conversation = base.findComponentByAlias('conversation');
  const render = conversation.render;
  const speaker = (message) => (message.speaker === 'tool' ? 'ai' : message.speaker); // POML refuses text by a tool
  const marked = (message) => {
    if (message?.[MARK]) return { speaker: speaker(message), content: message[MARK] };
    return isReadAsJson(message?.content) ? { ...message, content: [message.content] } : message;
  };
  conversation.render = function (props) {
    return render.call(this, Array.isArray(props.messages) ? { ...props, messages: props.messages.map(marked) } : props);
  };
  return (context, marks) => {
    for (const [name, texts] of Object.entries(marks || {})) {
      texts.forEach((text, index) => Object.defineProperty(context[name][index], MARK, { value: text }));
    }
  };
}

// Whitespace that POML collapses or strips, and the Unicode noncharacter that replaces it until the output. A single
// blank between words is not replaced.
const SUBSTITUTES = { '\n': '\ufdd0', '\r': '\ufdd1', '\t': '\ufdd2', '  ': '\ufdd3', ' ': '\ufdd4' };
const SPACES = Object.fromEntries(Object.entries(SUBSTITUTES).map(([space, sign]) => [sign, space]));
const STRUCTURE = /<(?:obj|table)\b| serializer="(?!xml")| (?:char|token)-limit="/; // in POML's intermediate form
const SCHEMAS = new Set('output-schema outputschema tool tool-def tooldef tool-definition tooldefinition'.split(' '));

/** Returns a function that returns the kind of place of the next expression: POML computes its range just before. */
function trackPlace({ prototype }) {
  const { xmlAttributeValueRange, xmlElementRange } = prototype;
  let place;
  prototype.xmlAttributeValueRange = function (attribute) {
    place = 'attribute';
    return xmlAttributeValueRange.call(this, attribute);
  };
  prototype.xmlElementRange = function (element) {
    const isText = element.type === 'XMLTextContent';
    const { name } = (isText ? element.parent : element) ?? {};
    place = SCHEMAS.has(name?.toLowerCase()) ? 'schema' : isText ? 'text' : 'element';
    return xmlElementRange.call(this, element);
  };
  return () => place;
}

/** Marks an error in a schema, since POML's message does not mention the schema. */
function markSchemaErrors({ prototype }, place) {
  const { formatError } = prototype;
  prototype.formatError = function (...given) {
    return Object.assign(formatError.apply(this, given), { inSchema: place() === 'schema' });
  };
}

/** Keeps the whitespace of a variable that is alone in an element's text, `{{name}}`, if a render requests it. */
// upstream: poml 0.0.8: whitespace of a value is collapsed, even in the code and tables of a retrieved text
function keepWhitespace({ prototype }, place) {
  const { evaluateExpression } = prototype;
  let variables;
  let used = false;
  prototype.evaluateExpression = function (expression, context, range, bare) {
    const value = evaluateExpression.call(this, expression, context, range, bare);
    if (!variables || place() !== 'text' || typeof value !== 'string' || !Object.hasOwn(variables, expression)) return value;
    const hidden = value.replace(/\n|\r|\t| {2}|^ | $/g, (space) => SUBSTITUTES[space]);
    used ||= hidden !== value;
    return hidden;
  };
  const restore = (value) => {
    if (typeof value === 'string') return value.replace(/[\ufdd0-\ufdd4]/g, (sign) => SPACES[sign]);
    if (Array.isArray(value)) return value.map(restore);
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === 'base64' ? item : restore(item)]));
  };
  return {
    /** Sets the variables whose whitespace is kept from now on; undefined for none. */
    keep(context) {
      variables = context;
      used = false;
    },
    /** Whether a request already has one of the noncharacters, which would make them ambiguous. */
    collides: (text) => /[\ufdd0-\ufdd4]/.test(text),
    /** Whether restored whitespace would break the syntax of the output. */
    breaks: (intermediate) => used && STRUCTURE.test(intermediate),
    isUsed: () => used,
    restore: (messages) => (used ? restore(messages) : messages),
  };
}

/**
 * Lets a render wait for all promises that it started. React calls a component that waits for a promise twice, and each
 * call starts the work again (reading a picture, for example). A failure after the answer would be reported to the next
 * render.
 */
function keepPromises(base) {
  const started = [];
  const use = base.useWithCatch;
  base.useWithCatch = (promise, props) => {
    started.push(promise);
    return use(promise, props);
  };
  return () => (started.length ? Promise.allSettled(started.splice(0)) : undefined);
}

module.exports = { load };
