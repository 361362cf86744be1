// The global object that expressions see, and its cleanup after each render: the globals and timers that a template
// makes do not reach the next one. This prevents accidents, not attacks. Against those, untrusted templates have
// processes of their own.
'use strict';

// The globals that stay: those of the language, and those of Node that give access to nothing else. The others are
// removed: the network, what goes on after a render (WebAssembly compiles, FinalizationRegistry calls back,
// MessageChannel sends), and shared memory.
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

function define(key, value) {
  Object.defineProperty(globalThis, key, { value, writable: true, enumerable: false, configurable: true });
}

/** Removes every global that is not in KEPT, and makes the others read-only; throws if one cannot be removed. */
function closeGlobals() {
  for (const key of Reflect.ownKeys(globalThis)) if (!KEPT.has(key)) delete globalThis[key];
  for (const key of Reflect.ownKeys(globalThis)) {
    const { configurable, enumerable } = Object.getOwnPropertyDescriptor(globalThis, key);
    const value = globalThis[key]; // Buffer and others are accessors that load on first use
    if (configurable) Object.defineProperty(globalThis, key, { value, enumerable, writable: false, configurable: false });
  }
  // A prepareStackTrace of a template would receive the functions on the stack.
  Object.defineProperty(Error, 'prepareStackTrace', { value: undefined, writable: false, configurable: false });
  Object.preventExtensions(Object.prototype); // a variable's key may be __proto__
}

const TIMERS = [['setTimeout', 'clearTimeout'], ['setInterval', 'clearInterval'], ['setImmediate', 'clearImmediate']];

/** Replaces the timers by ones that end with their render, and returns the function that ends them. */
function endTimers() {
  const running = new Map();
  let count = 0;
  for (const [set, clear] of TIMERS) {
    const [start, stop] = [globalThis[set], globalThis[clear]];
    define(set, (work, ...rest) => {
      if (typeof work !== 'function') throw new TypeError(`${set} takes a function`);
      const number = ++count;
      const timer = start((...values) => {
        if (set !== 'setInterval') running.delete(number);
        work(...values);
      }, ...rest);
      running.set(number, () => stop(timer));
      // Node's own handle would give access to all other timers.
      const handle = { [Symbol.toPrimitive]: () => number, hasRef: () => true, ref: () => handle, unref: () => handle };
      return handle;
    });
    define(clear, (handle) => {
      const number = typeof handle === 'object' && handle ? Number(handle) : handle;
      running.get(number)?.();
      running.delete(number);
    });
  }
  return () => {
    for (const stop of running.values()) stop();
    running.clear();
  };
}

/** Returns a function that removes all globals added since this call: `{{ total = 1 }}` adds one. */
function forgetGlobals() {
  const own = new Set(Reflect.ownKeys(globalThis));
  return () => {
    const keys = Reflect.ownKeys(globalThis);
    if (keys.length > own.size) for (const key of keys) if (!own.has(key)) Reflect.deleteProperty(globalThis, key);
  };
}

module.exports = { closeGlobals, define, endTimers, forgetGlobals };
