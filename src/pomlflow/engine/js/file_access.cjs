// The reading functions of fs for POML's bundle. Python reads the files, since it knows what each render may read.
//
// During a render, the worker may send lines {id, op: "read" | "explain" | "stat" | "list" | "exists", path}, one at a
// time. The response, on stdin, is a status, the length of a body, and the body; see FileAccess.respond in file_access.py.
'use strict';

const { isUtf8 } = require('node:buffer');
const fs = require('node:fs');
const path = require('node:path');
const process = require('node:process');
const url = require('node:url');
const util = require('node:util');

const PAUSE = new Int32Array(new SharedArrayBuffer(4));
const { wait } = Atomics;
const SYSCALLS = { read: 'open', explain: 'open', stat: 'stat', list: 'scandir' };
const errors = new Map([...util.getSystemErrorMap()].map(([number, [name, text]]) => [name, { number, text }]));
let current; // the id of the request that is being rendered

/** Retries work on a pipe that Node has made non-blocking. A response takes some 50 µs. */
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

/** An error with the message that Node would give it, since POML shows it to the user. */
function failure(code, what, name) {
  const { number, text } = errors.get(code) ?? { number: -1, text: 'unknown error' };
  const [syscall, place] = code === 'EISDIR' ? ['read', ''] : [SYSCALLS[what], ` '${name}'`];
  const error = new Error(`${code}: ${text}, ${syscall}${place}`);
  return Object.assign(error, { errno: number, code, syscall }, place && { path: name });
}

/** The path of a file as fs accepts it: text, bytes, or a file: URL object (the text of a URL is a relative path). */
function named(file) {
  const name = file instanceof URL ? url.fileURLToPath(file) : Buffer.isBuffer(file) ? file.toString() : file;
  if (typeof name !== 'string' || name.includes('\0')) {
    throw new TypeError(`The "path" argument must be of type string without null bytes. Received ${util.inspect(file)}`);
  }
  return name;
}

const { toString } = Buffer.prototype; // kept, since a template can replace it

/** Whether bytes begin like UTF-16: with its byte-order mark, or with two bytes of which exactly one is zero. */
const looksUtf16 = ([first, second]) =>
  second !== undefined && ([first, second].includes(0) ? first !== second : first + second === 0xff + 0xfe);

/** The text of a file; throws if it is not UTF-8. */
// upstream: poml 0.0.8: a byte-order mark is content
function textOf(bytes, file) {
  if (looksUtf16(bytes) || !isUtf8(bytes)) throw new Error(`${file}:${request('explain', file)}`);
  const text = toString.call(bytes);
  return text.startsWith('\ufeff') ? text.slice(1) : text;
}

/** The result of readFileSync: text, or bytes whose toString, which POML calls, decodes in the same way. */
function decoded(bytes, file, options) {
  const encoding = typeof options === 'string' ? options : options?.encoding;
  const toText = (name = 'utf8', ...range) =>
    range.length || !/^utf-?8$/i.test(name) ? toString.call(bytes, name, ...range) : textOf(bytes, file);
  if (encoding) return toText(encoding);
  return Object.defineProperty(bytes, 'toString', { value: toText });
}
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
  readFileSync: (file, options) => decoded(request('read', named(file)), named(file), options),
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
  /** Sets the id of the render that may read from now on; undefined for none. */
  serve: (id) => (current = id),
};
