// A warm POML: loads the poml package's bundle once, then renders one request after another.
//
//   node worker.cjs BUNDLE [PREPARED]
//
// One JSON value a line. The first line out is the handshake {id: 0, ready: {…}} or {id: 0, fatal: "why", node}; then one
// answer for each request, in order:
//   {id, markup, context, stylesheet, path, chat, revive, natives, keep_whitespace} -> {id, ok: frame} | {id, problems: […]}
//   the same with placeholders, names of variables without a value -> the same, without problems that are theirs
//   {id, op: "prepare"}                                            -> {id, ok: base64 of what a later start reads}
// An answer has also ms, from the request's JSON to the answer's; kept, if whitespace was; and now and then memory, the
// resident bytes.
// Renders never overlap: POML collects its errors in one global list, so two at once would get each other's.
'use strict';

const { performance } = require('node:perf_hooks');
const process = require('node:process'); // the global one is a substitute
const { load } = require('./bundle.cjs');
const files = require('./file_access.cjs');
const { endTimers, forgetGlobals } = require('./intrinsics.cjs');
const placeholders = require('./placeholders.cjs');
const sandbox = require('./sandbox.cjs');

const sandboxed = process.permission !== undefined; // Python starts it with --permission then
const { setImmediate } = globalThis; // a template's end with their render
const { rss } = process.memoryUsage;

// A promise or timer that a template leaves behind must not end the process under a later render.
process.on('uncaughtException', (error) => console.error('uncaught in a template:', error));
process.on('unhandledRejection', (error) => console.error('unhandled in a template:', error));

// stdout belongs to the protocol. What the bundle (pdfjs does) or a template prints goes to stderr. A template can still
// write to the descriptor; the newline before each line keeps that apart, and Python passes it over.
const write = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr);
const send = (line, then) => write(`\n${line}\n`, then);

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

/** Gives null where whitespace that is kept would break the syntax of the output: JSON, YAML, a table. */
async function render({ markup, context, stylesheet, path: file, chat }) {
  poml.sources.begin();
  const { parsed, errors } = parsedFiles.get(markup, file);
  poml.sources.begin(parsed.sourcePath);
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
  const intermediate = await poml.reactRender(element);
  if (poml.whitespace.breaks(intermediate)) return null;
  frame.messages = poml.whitespace.restore(poml.write(intermediate, { speaker: chat }));
  return frame;
}

/** A problem in plain values: an error may be an object of the template's own, and its properties code. */
function problem(error) {
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

/** The answer's JSON. */
function toJson(id, frame, thrown, check) {
  try {
    // What POML collected came first, and is mostly why something was thrown after it.
    const errors = [...poml.base.ErrorCollection.list(), ...thrown];
    const problems = errors.filter((error) => !check?.doubts(Object(error))).map(problem);
    if (check) frame ??= { messages: [] };
    return JSON.stringify(problems.length ? { id, problems } : { id, ok: frame, kept: poml.whitespace.isUsed() || undefined });
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

function attempt(request, check, keep) {
  if (request.revive) reviveAll(request.context);
  poml.mark(request.context, request.natives);
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
    frame ??= await attempt(JSON.parse(text), check, false); // anew: expressions may change what they are given
  } catch (error) {
    thrown.push(error);
  }
  await poml.settle();
  const line = toJson(id, frame, thrown, check);
  // All promises that are settled run on before the answer: those of a template that never come to an end hold up its
  // own answer, and no later one.
  await new Promise((resolve) => setImmediate(resolve));
  return line;
}

/** Takes back what a render left. */
function clean() {
  files.serve(undefined);
  poml.base.BufferCollection.clear(); // documents by path and time: a file rewritten in the same tick would stay old
  poml.zod.globalRegistry.clear(); // it keeps all that was ever described, and refuses the same meta({ id }) twice
  for (const forget of forgets) forget();
}

/** Answers requests as they come, until the parent is gone. */
function serve() {
  const queue = [];
  let parts = [];
  let busy = false;
  let answers = 0;
  async function work() {
    if (busy) return;
    busy = true;
    while (queue.length) {
      const start = performance.now();
      const line = await answer(queue.shift());
      const memory = answers++ % 32 ? '' : `,"memory":${rss()}`; // 5 µs
      send(`${line.slice(0, -1)}${memory},"ms":${(performance.now() - start).toFixed(4)}}`);
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

let poml, checking;
const forgets = [];
const parsedFiles = new Files(256 * 1024); // a parsed file takes 85 bytes a character, one of nothing but tags 210
try {
  if (sandboxed) sandbox.close();
  const requireFor = sandboxed ? sandbox.requireFor : sandbox.openRequireFor;
  poml = load(process.argv[2], process.argv[3], (require) => requireFor(require, files.reads));
  if (sandboxed) {
    forgets.push(endTimers());
    sandbox.finish();
  }
  forgets.push(forgetGlobals());
  serve();
  const { version, cache } = poml;
  send(JSON.stringify({ id: 0, ready: { node: process.version, poml: version, cache } }));
} catch (error) {
  send(JSON.stringify({ id: 0, fatal: String(error?.message ?? error), node: process.version }), () => process.exit(3));
}
