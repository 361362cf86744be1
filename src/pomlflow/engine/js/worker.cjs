// A warm POML: loads the poml package's bundle once, then renders one request after another.
//
//   node worker.cjs BUNDLE [COMPILED]
//
// One JSON value a line. The first line out is the handshake {id: 0, ready: {…}} or {id: 0, fatal: "why"}; then one
// answer for each request, in order:
//   {id, markup, context, stylesheet, path, chat, revive, natives, keep_whitespace} -> {id, ok: frame} | {id, problems: […]}
//   the same with stand_ins, names of variables without a value   -> the same, without problems that are theirs
//   {id, op: "compiled"}                                  -> {id, ok: base64 of V8's cached data}
// An answer also tells ms, from the request's JSON to the answer's with the cleaning up after the answer before, and now
// and then memory, the resident bytes.
// Where a render leaves what cannot be taken back, the process ends after its answer.
// Renders never overlap: POML collects its errors in one global list, so two at once would get each other's.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const process = require('node:process'); // a template's is another
const vm = require('node:vm');
const Module = require('node:module');
const files = require('./file_access.cjs');
const sandbox = require('./sandbox.cjs');
const { send, serve } = require('./serve.cjs');
const shortcuts = require('./shortcuts.cjs');
const standIns = require('./placeholders.cjs');

// A promise or timer that a template leaves behind must not end the process under a later render.
process.on('uncaughtException', (error) => console.error('uncaught in a template:', error));
process.on('unhandledRejection', (error) => console.error('unhandled in a template:', error));

const ENTRY = '__webpack_require__(__webpack_require__.s = "./packages/poml/cli.ts")';

/** What Python stored: SHA-256, the bundle's length before its source map, V8's cached data. Any of it may be damaged. */
function readCompiled(file) {
  try {
    const stored = fs.readFileSync(file);
    const content = stored.subarray(32);
    if (!crypto.createHash('sha256').update(content).digest().equals(stored.subarray(0, 32))) return {};
    return { length: Number(content.readBigUInt64LE()), cachedData: content.subarray(8) };
  } catch {
    return {};
  }
}

/** The bundle without its inline source map, which is 24 of its 40 MB. */
function readBundle(file, length) {
  if (!length) {
    const bytes = fs.readFileSync(file);
    const map = bytes.lastIndexOf('//# sourceMappingURL=data:');
    return map < 0 ? bytes : bytes.subarray(0, map);
  }
  const bytes = Buffer.allocUnsafe(length);
  const descriptor = fs.openSync(file);
  let read = 0;
  for (let n = 1; n && read < length; read += n) n = fs.readSync(descriptor, bytes, read, length - read, null);
  fs.closeSync(descriptor);
  return bytes.subarray(0, read);
}

/** The bundle's modules, through webpack's own require, without running the command line that it ends in. */
function load(bundle, compiled) {
  const { length, cachedData } = compiled ? readCompiled(compiled) : {};
  const bytes = readBundle(bundle, length);
  let source = bytes.toString();
  const entry = source.lastIndexOf(ENTRY);
  if (entry < 0) throw new Error(`the bundle ${bundle} does not end as that of poml 0.0.8 does`);
  source = `${source.slice(0, entry)}__webpack_require__;module.exports = __webpack_require__${source.slice(entry + ENTRY.length)}`;

  const script = new vm.Script(Module.wrap(source), { filename: bundle, cachedData }); // import() is refused in it
  const module = { exports: {} };
  script.runInThisContext()(module.exports, requireFor(bundle), module, bundle, path.dirname(bundle));
  const from = module.exports;
  shortcuts.take(from);
  return {
    script,
    length: bytes.length,
    cache: !cachedData ? 'none' : script.cachedDataRejected ? 'rejected' : 'hit',
    React: from('./node_modules/react/index.js'),
    base: from('./packages/poml/base.tsx'),
    PomlFile: from('./packages/poml/file.tsx').PomlFile,
    version: from('./packages/poml/version.ts').POML_VERSION,
    write: from('./packages/poml/index.ts').write,
    zod: from('./node_modules/zod/index.cjs'),
    reactRender: from('./packages/poml/util/reactRender.ts').reactRender,
  };
}

const sandboxed = process.permission !== undefined; // Python starts it with --permission then

function requireFor(bundle) {
  const require = Module.createRequire(bundle);
  return sandboxed ? sandbox.requireFor(require, files.reads) : lazily(require);
}

/** require() for the bundle, with sharp (a native addon, 40 ms) loaded only when an image is met. */
function lazily(require) {
  const sharp = () => require('sharp');
  const proxy = new Proxy(function () {}, {
    apply: (_, self, args) => Reflect.apply(sharp(), self, args),
    get: (_, key) => (key === '__esModule' ? undefined : sharp()[key]),
  });
  return (id) => (id === 'sharp' ? proxy : require(id));
}

const SPAN = 2 ** 32;
let sources = [];

/**
 * An error of a component tells an offset and no file, also where the component stands in an included file. So each
 * offset carries the number of its file: `sources` is the render's files, the root first.
 */
function numberSources({ prototype }) {
  const { ensureRange } = prototype;
  prototype.ensureRange = function (position) {
    let number = sources.indexOf(this.sourcePath);
    if (number < 0) number = sources.push(this.sourcePath) - 1;
    return ensureRange.call(this, position) + number * SPAN;
  };
}

const MARK = Symbol('the mark of a native message');

/**
 * POML (0.0.8) reads a message's text as JSON where it is JSON: "1" is lost, and a user's words can become an image or a
 * tool call that nobody made. In a list, a text stays a text.
 */
function readAsJson(content) {
  if (typeof content !== 'string' || !/^\s*[[{"\d\-tfn]/.test(content)) return false;
  try {
    JSON.parse(content);
    return true;
  } catch {
    return false;
  }
}

/**
 * A message of a history that has a native form goes through <conversation> as its mark, so that selectedMessages and
 * expressions work on it; the other side puts the native message where the mark comes out. Without this,
 * <conversation> rejects tool messages and drops what POML's own messages cannot hold.
 */
function passNativeMessages(base) {
  const conversation = base.findComponentByAlias('conversation');
  const render = conversation.render;
  const speaker = (message) => (message.speaker === 'tool' ? 'ai' : message.speaker); // a tool may not say text
  const marked = (message) => {
    if (message?.[MARK]) return { speaker: speaker(message), content: message[MARK] };
    return readAsJson(message?.content) ? { ...message, content: [message.content] } : message;
  };
  conversation.render = function (props) {
    return render.call(this, Array.isArray(props.messages) ? { ...props, messages: props.messages.map(marked) } : props);
  };
}

function mark(context, natives) {
  for (const [name, marks] of Object.entries(natives || {})) {
    marks.forEach((text, index) => Object.defineProperty(context[name][index], MARK, { value: text }));
  }
}

/**
 * React calls a component that waits for a promise twice, and each call starts the work anew (reading a picture, say).
 * What fails after its render is answered would report to the next one, so each render waits for all that it started.
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

// What POML collapses or strips, each with a noncharacter of Unicode that passes through it instead. A single blank
// between words stays as it is.
const SIGNS = { '\n': '\ufdd0', '\r': '\ufdd1', '\t': '\ufdd2', '  ': '\ufdd3', ' ': '\ufdd4' };
const SPACES = Object.fromEntries(Object.entries(SIGNS).map(([space, sign]) => [sign, space]));
const SIGN = /[\ufdd0-\ufdd4]/;
const STRUCTURE = /<(?:obj|table)\b| serializer="(?!xml")| (?:char|token)-limit="/; // in POML's intermediate form
let kept; // of the current render: undefined unless it keeps whitespace, else {context, used}

/**
 * POML (0.0.8) collapses the whitespace of a value, the code and tables of a retrieved text among them. Where a render
 * asks for it, a variable that stands alone in an element's text, `{{name}}`, keeps its whitespace.
 */
function keepWhitespace({ prototype }) {
  const { evaluateExpression, xmlAttributeValueRange, xmlElementRange } = prototype;
  let inText = false; // a place's range is computed right before the expressions in it are evaluated
  prototype.xmlAttributeValueRange = function (attribute) {
    inText = false;
    return xmlAttributeValueRange.call(this, attribute);
  };
  prototype.xmlElementRange = function (element) {
    inText = element.type === 'XMLTextContent' && !/^(?:output-?schema|tool(?:-?def(?:inition)?)?)$/i.test(element.parent?.name);
    return xmlElementRange.call(this, element);
  };
  prototype.evaluateExpression = function (expression, context, range, bare) {
    const value = evaluateExpression.call(this, expression, context, range, bare);
    if (!kept || !inText || typeof value !== 'string' || !Object.hasOwn(kept.context, expression)) return value;
    const hidden = value.replace(/\n|\r|\t| {2}|^ | $/g, (space) => SIGNS[space]);
    kept.used ||= hidden !== value;
    return hidden;
  };
}

function restoreWhitespace(value) {
  if (typeof value === 'string') return value.replaceAll(/[\ufdd0-\ufdd4]/g, (sign) => SPACES[sign]);
  if (Array.isArray(value)) return value.map(restoreWhitespace);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === 'base64' ? item : restoreWhitespace(item)]));
}

/** `{{ total = 1 }}` makes a global, which the next template must not see: it may be another user's. */
function forgetGlobals() {
  if (Object.keys(globalThis).length === globals.size) return true;
  for (const key of Object.keys(globalThis)) if (!globals.has(key)) delete globalThis[key];
  return true;
}

/** Parsed files by source: parsing is half of a render. Bounded by the characters that it holds. */
class Files {
  constructor(limit) {
    this.limit = limit;
    this.held = 0;
    this.entries = new Map();
  }

  get(markup, file) {
    const key = `${file || ''}\0${markup}`;
    let entry = this.entries.get(key);
    if (entry) {
      this.entries.delete(key); // put back at the young end
    } else {
      poml.base.ErrorCollection.clear();
      const parsed = new poml.PomlFile(markup, { trim: true }, file || undefined);
      parsed.cst = parsed.tokenVector = undefined; // for editors only, and half of what a file holds
      entry = { parsed, errors: poml.base.ErrorCollection.list() };
      this.held += key.length;
    }
    this.entries.set(key, entry);
    for (const oldest of this.entries.keys()) {
      if (this.held <= this.limit || this.entries.size === 1) break;
      this.entries.delete(oldest);
      this.held -= oldest.length;
    }
    return entry;
  }
}

/** Gives null where whitespace that is kept would break the syntax that the output is in: JSON, YAML, a table. */
async function render({ markup, context, stylesheet, path: file, chat }) {
  sources = [];
  const { parsed, errors } = parsedFiles.get(markup, file);
  sources[0] = parsed.sourcePath;
  // What react() leaves behind in a PomlFile of poml 0.0.8, and what its constructor reported.
  parsed.responseSchema = parsed.toolsSchema = parsed.runtimeParameters = undefined;
  parsed.disabledComponents = new Set();
  poml.base.ErrorCollection.clear();
  errors.forEach((error) => poml.base.ErrorCollection.add(error));

  const body = parsed.react(context);
  parsed.expressionEvaluations.clear(); // for editors only, and holds the variables until the file's next render
  const element = poml.React.createElement(poml.base.StyleSheetProvider, { stylesheet: stylesheet || {} }, body);
  const frame = {
    messages: null,
    schema: parsed.getResponseSchema()?.toOpenAPI(),
    tools: parsed.getToolsSchema()?.toOpenAI(),
    runtime: parsed.getRuntimeParameters(),
  };
  const written = await poml.reactRender(element);
  if (kept?.used && STRUCTURE.test(written)) return null;
  frame.messages = poml.write(written, { speaker: chat });
  if (kept?.used) frame.messages = restoreWhitespace(frame.messages);
  return frame;
}

/** A problem in plain values: an error may be an object of the template's own, and its properties code. */
function problem(error) {
  try {
    const { name, message, startIndex: start, endIndex: end, sourcePath } = Object(error);
    const file = typeof sourcePath === 'string' ? sourcePath : sources[Math.floor(start / SPAN)];
    return { kind: String(name || typeof error), message: String(message ?? error), start: start % SPAN, end: end % SPAN, path: file };
  } catch {
    return { kind: 'Error', message: 'an error that cannot be read' };
  }
}

/** The answer's JSON. */
function told(id, frame, thrown, check) {
  try {
    // What POML collected came first, and is mostly why something was thrown after it.
    const errors = [...poml.base.ErrorCollection.list(), ...thrown];
    const problems = errors.filter((error) => !check?.doubts(Object(error))).map(problem);
    if (check) frame ??= { messages: [] };
    return JSON.stringify(problems.length ? { id, problems } : { id, ok: frame, kept: kept?.used || undefined });
  } catch (error) { // a frame that is no JSON: a schema that holds itself, a BigInt
    return JSON.stringify({ id, problems: [problem(error)] });
  }
}

/** NaN, infinities and bytes, which JSON cannot carry; `__base64__` is what poml's own context files use. */
function revive(value) {
  if (value === null || typeof value !== 'object') return value;
  if (typeof value['\ue000number'] === 'string') return Number(value['\ue000number']);
  if (value.__base64__ && typeof value.__base64__ === 'string') return Buffer.from(value.__base64__, 'base64');
  return reviveAll(value);
}

/** The values inside: a variable that is named `__base64__` makes no bytes of all of them. */
function reviveAll(values) {
  for (const key of Object.keys(values)) values[key] = revive(values[key]);
  return values;
}

/**
 * All promises that are settled run on before this gives: those of a template that never come to an end hold up its own
 * answer, and no later one.
 */
/** Makes the variables what expressions see. */
function prepare({ context, natives, revive: revived }) {
  if (revived) reviveAll(context);
  mark(context, natives);
}

const { setImmediate } = globalThis; // a template's ends with its render
const turn = () => new Promise((resolve) => setImmediate(resolve));

async function answer(text, nearly) {
  let request = JSON.parse(text);
  if (request.op === 'compiled') {
    return JSON.stringify({ id: request.id, ok: poml.script.createCachedData().toString('base64') });
  }
  const check = request.stand_ins && (checking ??= standIns.install(poml.PomlFile));
  files.serve(request.id);
  const thrown = [];
  let frame;
  try {
    prepare(request);
    check?.begin(request.context, request.stand_ins);
    // A text that holds such a sign itself could not be told apart.
    if (request.keep_whitespace && !SIGN.test(text)) kept = { context: request.context, used: false };
    frame = await render(request);
    if (!frame) { // anew, and as POML has it
      kept = undefined;
      request = JSON.parse(text);
      prepare(request);
      check?.begin(request.context, request.stand_ins);
      frame = await render(request);
    }
  } catch (error) {
    thrown.push(error);
  }
  await settle();
  nearly();
  if (!frame) forget(); // what is said of errors is not to go through what the template has changed
  // Getters and toJSON are code too, so what they change is taken back like the rest: nothing of the template's runs after.
  const line = told(request.id, frame, thrown, check);
  kept = undefined;
  await turn();
  return line;
}

/** Takes back what a render left, and nothing of the template's runs after it; false where that is not possible. */
function clean() {
  files.serve(undefined);
  poml.base.BufferCollection.clear(); // documents by path and time: a file rewritten in the same tick would stay old
  for (const held of described) held.clear();
  return forget();
}

let poml, settle, described, forget, checking;
try {
  if (sandboxed) sandbox.close();
  poml = load(...process.argv.slice(2));
  numberSources(poml.PomlFile);
  keepWhitespace(poml.PomlFile);
  passNativeMessages(poml.base);
  settle = keepPromises(poml.base);
  // zod keeps all that was ever described, and refuses the same meta({ id }) twice.
  described = [poml.zod.globalRegistry._map, poml.zod.globalRegistry._idmap];
  forget = sandboxed ? sandbox.lock(poml.zod) : forgetGlobals;
} catch (error) {
  send(JSON.stringify({ id: 0, fatal: String(error?.message ?? error) }), () => process.exit(3));
}
const parsedFiles = new Files(256 * 1024); // a parsed file takes 85 bytes a character, one of nothing but tags 210
const globals = new Set(Object.keys(globalThis));
if (poml) {
  serve(answer, clean);
  const { version, cache, length } = poml;
  send(JSON.stringify({ id: 0, ready: { node: process.version, poml: version, cache, length } }));
}
