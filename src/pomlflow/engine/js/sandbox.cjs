// The sandbox inside the worker; Node's permission model is a second one around it.
//
// Expressions run in the worker's own realm, since POML's output depends on it. So no object that an expression can
// reach may lead to Node itself. `process` and `console` are substitutes. The bundle gets substitutes for the modules
// that it requires, since a template may reach what the bundle has. Node 24's permission model restricts neither the
// network nor addons: only this file does.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { performance } = require('node:perf_hooks');
const process = require('node:process');
const util = require('node:util');
const vm = require('node:vm');
const Module = require('node:module');
const { closeGlobals, define } = require('./intrinsics.cjs');

const REMEDY = 'if you trust the templates, disable it with pomlflow.configure(sandbox=False)';

/** An error as Node's permission model raises it. */
function denied(what) {
  return Object.assign(new Error(`${what} is blocked by the sandbox; ${REMEDY}`), { code: 'ERR_ACCESS_DENIED' });
}

/** A substitute for a module, class or function: properties can be read, classes can extend it, calls throw. */
function closed(name) {
  const deny = () => {
    throw denied(name);
  };
  const parts = new Map();
  return new Proxy(function () {}, {
    apply: deny,
    construct: deny,
    set: deny,
    defineProperty: deny,
    get(target, key) {
      if (key === 'prototype') return target.prototype;
      if (typeof key === 'symbol' || ['__esModule', 'then', 'toJSON'].includes(key)) return undefined;
      if (!parts.has(key)) parts.set(key, closed(`${name}.${key}`));
      return parts.get(key);
    },
  });
}

/** A module without the functions that a template may not reach. */
const without = (id, names) => {
  const module = { ...require(id) };
  for (const name of names) delete module[name];
  return Object.freeze(module);
};

const MODULES = {
  assert: () => require('assert'),
  async_hooks: () => without('async_hooks', ['createHook', 'executionAsyncResource', 'triggerAsyncId']),
  buffer: () => without('buffer', ['Blob', 'File', 'resolveObjectURL']),
  crypto: () => without('crypto', ['setEngine', 'setFips', 'webcrypto', 'subtle', 'fips']),
  events: () => require('events'),
  os: () => Object.freeze({ EOL: '\n', platform: () => process.platform, release: () => '', type: () => '' }),
  path: () => path,
  stream: () => require('stream'),
  string_decoder: () => require('string_decoder'),
  url: () => require('url'),
  util: () => without('util', ['getCallSites', 'getCallSite', 'parseEnv', 'transferableAbortController', 'aborted']),
  zlib: () => require('zlib'),
};

/** require() for POML's bundle without the sandbox: only the reading of files is replaced, as in the sandbox. */
const openRequireFor = (require, reads) => (id) =>
  id === 'fs' ? { ...fs, ...reads } : id === 'sharp' ? images(require, reads) : require(id);

/**
 * require() for POML's bundle in the sandbox.
 *
 * @param {Function} require The real one, resolving from the bundle's folder.
 * @param {object} reads The reading functions of the module fs, by name.
 */
function requireFor(require, reads) {
  const given = new Map();
  const load = (id) => {
    if (MODULES[id]) return MODULES[id]();
    if (id === 'sharp') return images(require, reads);
    if (id.startsWith('pdfjs-dist/')) return runPdfjs(require.resolve(id), substituteOf); // eval("require") of POML's pdfjs
    if (id === 'fs') return readOnlyFs(reads);
    if (id === 'canvas') throw new Error("Cannot find module 'canvas'"); // optional, and not part of poml
    return closed(id);
  };
  const substituteOf = (name) => {
    const id = name.replace(/^node:/, '');
    if (!given.has(id)) given.set(id, load(id));
    return given.get(id);
  };
  return substituteOf;
}

/** The module fs with these reading functions; every other function is closed. */
function readOnlyFs(reads) {
  const module = {};
  for (const [name, value] of Object.entries(fs)) {
    if (reads[name] || typeof value === 'function') module[name] = reads[name] ?? closed(`fs.${name}`);
  }
  return Object.freeze(module);
}

/**
 * Runs the second half of pdfjs, which is loaded for the first PDF and sees only what the bundle sees. Its core-js adds
 * globals, which would fail here and is skipped: Node 22 and later need none of them.
 */
function runPdfjs(file, require) {
  const defineOrSkip = (object, key, descriptor) => Reflect.defineProperty(object, key, descriptor) && object;
  const source = fs.readFileSync(file, 'utf8').replaceAll('= Object.defineProperty;', '= defineOrSkip;');
  const script = new vm.Script(`(function (module, exports, require, globalThis, defineOrSkip) {${source}\n})`, { filename: file });
  const module = { exports: {} };
  script.runInThisContext()(module, module.exports, require, Object.create(globalThis), defineOrSkip);
  return module.exports;
}

/**
 * The part of sharp that POML uses, loaded for the first image (it takes 40 ms). sharp is native code, which Node's
 * permission model does not restrict: it could read and write any file. So it only receives and returns bytes.
 */
function images(require, reads) {
  const wrap = (image, source) => {
    const rename = (error) => {
      throw new Error(error.message.replace('Input buffer', `Input ${source}`));
    };
    return Object.freeze({
      metadata: () => image.metadata().catch(rename),
      resize: (width, height) => wrap(image.resize(Number(width), Number(height)), source),
      toFormat: (format) => wrap(image.toFormat(`${format}`), source),
      toBuffer: () => image.toBuffer().catch(rename),
    });
  };
  return Object.freeze((input) => {
    const sharp = require('sharp');
    return typeof input === 'string'
      ? wrap(sharp(reads.readFileSync(input)), 'file')
      : wrap(sharp(Buffer.from(input)), 'buffer');
  });
}

const PRINTING = ['debug', 'dir', 'error', 'info', 'log', 'table', 'trace', 'warn'];

/** A console that prints to stderr without Node's streams. It is frozen only after the bundle has redirected parts. */
function makeConsole() {
  const print = (...values) => {
    try {
      fs.writeSync(2, `${util.formatWithOptions({ customInspect: false }, ...values)}\n`);
    } catch {
      // stderr is full or gone: printing must not fail a render
    }
  };
  const silent = () => undefined;
  const names = Object.keys(console).filter((name) => typeof console[name] === 'function' && name !== 'Console');
  return Object.fromEntries(names.map((name) => [name, PRINTING.includes(name) ? print : silent]));
}

// The functions of process that templates are most likely to call: they throw a clear error; all others are undefined.
const CLOSED = 'abort binding chdir dlopen execve exit getBuiltinModule kill mainModule reallyExit'.split(' ');

/** The substitute for `process` that POML's bundle and templates see. */
function makeProcess() {
  const stream = (name) => Object.freeze({ isTTY: false, write: (text) => console[name](String(text)) === undefined });
  const substitute = {
    [Symbol.toStringTag]: 'process',
    argv: Object.freeze([]),
    arch: process.arch,
    cwd: process.cwd.bind(process),
    emit: () => false,
    emitWarning: () => undefined,
    env: Object.freeze(process.env.TZ === undefined ? {} : { TZ: process.env.TZ }),
    nextTick: (work, ...values) => queueMicrotask(() => work(...values)),
    platform: process.platform,
    report: makeReport(),
    stderr: stream('error'),
    stdout: stream('log'),
    uptime: () => process.uptime(),
    version: process.version,
    versions: Object.freeze({ ...process.versions }),
  };
  for (const name of CLOSED) substitute[name] = closed(`process.${name}`);
  return Object.freeze(substitute);
}

/** The report that sharp reads, to load the build for the right C library. */
function makeReport() {
  const getReport = () => {
    process.report.excludeNetwork = true;
    return { header: { glibcVersionRuntime: process.report.getReport().header.glibcVersionRuntime } };
  };
  return Object.freeze({ getReport, get excludeNetwork() { return true; }, set excludeNetwork(_) {} });
}

/** Replaces globals before the bundle is loaded: the bundle keeps references, which must be to substitutes. */
function replaceGlobals() {
  define('console', makeConsole());
  define('process', makeProcess());
  Buffer.poolSize = 0; // pooled small buffers would share memory, and show the content of earlier renders
}

/**
 * Denies import(). In code that a file of Node or ours evaluates, import() would give access to Node's modules, since
 * V8 takes the code for a part of that file; `setTimeout(eval, 0, code)` is such a case. Calls of require(), as in
 * sharp's own code, are not affected.
 */
function denyImports() {
  const resolve = (name, context, next) => {
    if (new Set(context.conditions).has('import')) throw denied(`import('${name}')`);
    return next(name, context);
  };
  Module.registerHooks({ resolve });
}

/** Closes the rest after the bundle is loaded; throws if something cannot be closed. */
function seal() {
  denyImports();
  define('performance', { now: () => performance.now() });
  define('crypto', { randomUUID: () => crypto.randomUUID() });
  define('fetch', closed('fetch')); // kept for its error message
  define('Blob', class Blob { constructor() { throw denied('Blob'); } }); // docx tests whether data is a Blob
  Object.freeze(console);
  closeGlobals();
}

module.exports = { openRequireFor, replaceGlobals, requireFor, seal };
