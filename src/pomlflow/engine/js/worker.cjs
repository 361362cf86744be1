// The worker: loads the poml package's bundle once, then renders one request after another.
//
//   node worker.cjs BUNDLE [PREPARED]
//
// Each line is one JSON value. The first line on stdout is the handshake {id: 0, ready: {…}} or {id: 0, fatal: "why",
// node}. Then there is one answer for each request, in order:
//   {id, markup, context, stylesheet, path, chat, revive, marks, keep_whitespace} -> {id, ok: frame} | {id, problems: […]}
//   the same with placeholders, names of variables without a value -> the same, without problems that these may cause
//   {id, op: "prepare"}                                            -> {id, ok: base64 of what a later start reads}
// An answer also has ms, the time from parsing the request to writing the answer; kept, if whitespace was kept; and
// memory, the resident bytes. During a render, the worker may request files; see file_access.cjs.
// Renders never overlap: POML collects its errors in one global list, so two at once would get each other's.
'use strict';

const { performance } = require('node:perf_hooks');
const process = require('node:process'); // the global `process` becomes a substitute
const { load } = require('./bundle.cjs');
const files = require('./file_access.cjs');
const { endTimers, forgetGlobals } = require('./intrinsics.cjs');
const placeholders = require('./placeholders.cjs');
const sandbox = require('./sandbox.cjs');

const sandboxed = process.permission !== undefined; // Python starts a sandboxed worker with --permission
const { setImmediate } = globalThis; // Node's own: those of templates end with their render
const { rss } = process.memoryUsage;

// A failing promise or timer that a template leaves behind must not end the process during a later render.
process.on('uncaughtException', (error) => console.error('uncaught in a template:', error));
process.on('unhandledRejection', (error) => console.error('unhandled in a template:', error));

// stdout is for the protocol only. What the bundle (pdfjs) or a template prints goes to stderr. A template can still
// write to the descriptor: the newline before each line separates it, and Python skips it.
const write = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr);
const send = (line, then) => write(`\n${line}\n`, then);

const MAX_PARSED = 256 * 1024; // characters; a parsed file takes 85 bytes for each, or 210 if it is only tags
const parsedFiles = new Map(); // by path and markup: parsing is half of a render
let parsedLength = 0; // of all keys

/** Parses a file, unless it is one of the files parsed before. When these are too long, all of them are dropped. */
function parse(markup, file) {
  const key = `${file || ''}\0${markup}`;
  if (!parsedFiles.has(key)) {
    poml.base.ErrorCollection.clear();
    const parsed = new poml.PomlFile(markup, { trim: true }, file || undefined);
    parsed.cst = parsed.tokenVector = undefined; // for editors only, and half of a file's memory
    if ((parsedLength += key.length) > MAX_PARSED) {
      parsedFiles.clear();
      parsedLength = key.length;
    }
    parsedFiles.set(key, { parsed, errors: poml.base.ErrorCollection.list() });
  }
  return parsedFiles.get(key);
}

/** Renders a request; returns null if kept whitespace would break the syntax of the output: JSON, YAML or a table. */
async function render({ markup, context, stylesheet, path: file, chat }) {
  poml.sources.begin(); // parsing reports offsets too
  const { parsed, errors } = parse(markup, file);
  poml.sources.begin(parsed.sourcePath);
  // Reset what react() of poml 0.0.8 leaves behind in a PomlFile, and restore the errors of its constructor.
  parsed.responseSchema = parsed.toolsSchema = parsed.runtimeParameters = undefined;
  parsed.disabledComponents = new Set();
  poml.base.ErrorCollection.clear();
  errors.forEach((error) => poml.base.ErrorCollection.add(error));

  const body = parsed.react(context);
  parsed.expressionEvaluations.clear(); // for editors only, and would keep the variables in memory
  const element = poml.React.createElement(poml.base.StyleSheetProvider, { stylesheet: stylesheet || {} }, body);
  const frame = {
    messages: null,
    schema: parsed.getResponseSchema()?.toOpenAPI(),
    tools: parsed.getToolsSchema()?.toOpenAI(),
    runtime: parsed.getRuntimeParameters(),
  };
  const intermediate = await poml.reactRender(element);
  if (poml.whitespace.breaks(intermediate)) return null;
  frame.messages = poml.whitespace.restore(poml.write(intermediate, { speaker: chat }));
  return frame;
}

/** Describes an error in plain values. A template can throw any object, whose properties may run code. */
function describe(error) {
  try {
    const { name, message, startIndex, endIndex, sourcePath, inSchema } = Object(error);
    const { offset: start, file } = poml.sources.locate(startIndex);
    return {
      kind: String(name || typeof error),
      message: String(message ?? error),
      start,
      end: poml.sources.locate(endIndex).offset,
      path: typeof sourcePath === 'string' ? sourcePath : file,
      schema: inSchema === true,
    };
  } catch {
    return { kind: 'Error', message: 'an error that cannot be read' };
  }
}

/** The answer to a render, as JSON; `thrown` has what the render threw, `check` is that of placeholders.cjs. */
function toJson(id, frame, thrown, check) {
  try {
    // The errors that POML collected come first: usually they are the cause of what was thrown later.
    const errors = [...poml.base.ErrorCollection.list(), ...thrown];
    const problems = errors.filter((error) => !check?.mayHaveCaused(Object(error))).map(describe);
    if (check) frame ??= { messages: [] };
    return JSON.stringify(problems.length ? { id, problems } : { id, ok: frame, kept: poml.whitespace.isUsed() || undefined });
  } catch (error) { // a frame that is not JSON: a schema that contains itself, a BigInt
    return JSON.stringify({ id, problems: [describe(error)] });
  }
}

/** Decodes NaN, infinities and bytes, which JSON cannot express; poml's own context files use `__base64__` too. */
function revive(value) {
  if (value === null || typeof value !== 'object') return value;
  if (typeof value['\ue000number'] === 'string') return Number(value['\ue000number']);
  if (value.__base64__ && typeof value.__base64__ === 'string') return Buffer.from(value.__base64__, 'base64');
  return reviveAll(value);
}

/** Revives the values in an object, but not the object itself: a variable may have the name `__base64__`. */
function reviveAll(values) {
  for (const key of Object.keys(values)) values[key] = revive(values[key]);
  return values;
}

/** Renders with whitespace kept or not; see `render`. */
function attempt(request, check, keep) {
  if (request.revive) reviveAll(request.context);
  poml.markMessages(request.context, request.marks);
  check?.begin(request.context, request.placeholders);
  poml.whitespace.keep(keep ? request.context : undefined);
  return render(request);
}

async function answer(text) {
  const request = JSON.parse(text);
  const { id, op, placeholders: names, keep_whitespace: keep } = request;
  if (op === 'prepare') return JSON.stringify({ id, ok: poml.prepared().toString('base64') });
  const check = names && (checking ??= placeholders.install(poml.PomlFile));
  files.serve(id);
  const thrown = [];
  let frame;
  try {
    frame = await attempt(request, check, keep && !poml.whitespace.collides(text));
    frame ??= await attempt(JSON.parse(text), check, false); // parsed again: expressions may change variables
  } catch (error) {
    thrown.push(error);
  }
  await poml.settle();
  const line = toJson(id, frame, thrown, check);
  // Run the callbacks of all settled promises before answering: if those of a template never end, they delay its own
  // answer, and not that of a later render.
  await new Promise((resolve) => setImmediate(resolve));
  return line;
}

/** Removes what a render left behind. */
function clean() {
  files.serve(undefined);
  poml.base.BufferCollection.clear(); // documents by path and mtime, which two quick writes may share
  poml.zod.globalRegistry.clear(); // it keeps all described schemas, and refuses the same meta({ id }) twice
  for (const cleanup of cleanups) cleanup();
}

/** Answers requests in order of arrival, until the parent is gone. */
function serve() {
  const queue = [];
  let parts = [];
  let busy = false;
  async function work() {
    if (busy) return;
    busy = true;
    while (queue.length) {
      const start = performance.now();
      const line = await answer(queue.shift());
      send(`${line.slice(0, -1)},"memory":${rss()},"ms":${(performance.now() - start).toFixed(4)}}`);
      clean(); // while Python wakes up
    }
    busy = false;
  }
  process.stdin.on('data', (chunk) => {
    for (let end; (end = chunk.indexOf(10)) >= 0; chunk = chunk.subarray(end + 1)) {
      parts.push(chunk.subarray(0, end));
      queue.push(Buffer.concat(parts).toString());
      parts = [];
    }
    if (chunk.length) parts.push(chunk);
    work();
  });
  process.stdin.on('end', () => process.exit(0)); // the parent is gone
}

let poml;
let checking; // what placeholders.install returned, once there was a check
const cleanups = []; // run after each render
try {
  if (sandboxed) sandbox.replaceGlobals();
  const requireFor = sandboxed ? sandbox.requireFor : sandbox.openRequireFor;
  poml = load(process.argv[2], process.argv[3], (require) => requireFor(require, files.reads));
  if (sandboxed) {
    cleanups.push(endTimers());
    sandbox.seal();
  }
  cleanups.push(forgetGlobals());
  serve();
  const { version, cache } = poml;
  send(JSON.stringify({ id: 0, ready: { node: process.version, poml: version, cache } }));
} catch (error) {
  send(JSON.stringify({ id: 0, fatal: String(error?.message ?? error), node: process.version }), () => process.exit(3));
}
