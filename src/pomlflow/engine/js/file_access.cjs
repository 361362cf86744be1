// The module fs as POML's bundle gets it in the sandbox: reads by Python, which knows what the render may read.
//
// While it renders, the worker may send one line {id, op: "read" | "stat" | "list" | "exists", path}. The response, on
// stdin, is a status (0: the content, 1: an errno's name, 2: refused, and why), a length, and as many bytes.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const process = require('node:process');
const url = require('node:url');
const util = require('node:util');

const PAUSE = new Int32Array(new SharedArrayBuffer(4));
const { wait } = Atomics;
const SYSCALLS = { read: 'open', stat: 'stat', list: 'scandir' };
const errors = new Map([...util.getSystemErrorMap()].map(([number, [name, text]]) => [name, { number, text }]));
let current; // the id of the request that is being rendered

/** Waits for a pipe that Node has made non-blocking: the response is there in some 50 µs. */
function retried(work) {
  for (let tries = 0; ; tries++) {
    try {
      return work();
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      if (tries > 10) wait(PAUSE, 0, 0, 0.02);
    }
  }
}

function receive(length) {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const read = retried(() => fs.readSync(0, bytes, at, length - at, null));
    if (!read) process.exit(0); // the parent is gone
    at += read;
  }
  return bytes;
}

function request(what, name) {
  if (current === undefined) throw failure('ENOENT', what, name);
  const line = Buffer.from(`\n${JSON.stringify({ id: current, op: what, path: name.toWellFormed() })}\n`);
  for (let at = 0; at < line.length; ) at += retried(() => fs.writeSync(1, line, at));
  const head = receive(16);
  const content = receive(Number(head.readBigUInt64LE(8)));
  const status = Number(head.readBigUInt64LE());
  if (status === 1) throw failure(content.toString(), what, name);
  if (status === 2) throw Object.assign(new Error(content.toString()), { code: 'ERR_ACCESS_DENIED' });
  return content;
}

/** An error with Node's own message: POML passes it on. */
function failure(code, what, name) {
  const { number, text } = errors.get(code) ?? { number: -1, text: 'unknown error' };
  const [syscall, place] = code === 'EISDIR' ? ['read', ''] : [SYSCALLS[what], ` '${name}'`];
  const error = new Error(`${code}: ${text}, ${syscall}${place}`);
  return Object.assign(error, { errno: number, code, syscall }, place && { path: name });
}

/** As the fs module takes paths: text, bytes, or a file: URL object (the text of one is a relative path to it). */
function named(file) {
  const name = file instanceof URL ? url.fileURLToPath(file) : Buffer.isBuffer(file) ? file.toString() : file;
  if (typeof name !== 'string' || name.includes('\0')) {
    throw new TypeError(`The "path" argument must be of type string without null bytes. Received ${util.inspect(file)}`);
  }
  return name;
}

const decoded = (bytes, options) => {
  const encoding = typeof options === 'string' ? options : options?.encoding;
  return encoding ? bytes.toString(encoding) : bytes;
};
const entry = ({ kind, ...rest }) => ({
  ...rest,
  isDirectory: () => kind === 'directory',
  isFile: () => kind === 'file',
  isSymbolicLink: () => kind === 'link',
});

const reads = {
  existsSync(file) {
    try {
      request('exists', named(file));
      return true;
    } catch {
      return false;
    }
  },
  readFileSync: (file, options) => decoded(request('read', named(file)), options),
  statSync: (file) => entry(JSON.parse(request('stat', named(file)))),
  readdirSync(file, options) {
    const found = JSON.parse(request('list', named(file)));
    const folder = named(file);
    return options?.withFileTypes ? found.map((one) => entry({ ...one, parentPath: folder, path: folder })) : found.map((one) => one.name);
  },
  readFile(file, ...rest) {
    const then = rest.pop();
    let content;
    try {
      content = reads.readFileSync(file, rest[0]);
    } catch (error) {
      queueMicrotask(() => then(error));
      return;
    }
    queueMicrotask(() => then(null, content));
  },
};

module.exports = {
  reads,
  /** Sets the id of the render that reads from here on; undefined for none. */
  serve: (id) => (current = id),
};
