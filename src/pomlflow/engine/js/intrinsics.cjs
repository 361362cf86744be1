// The objects of the language that all renders share, locked against what one render would leave to the next.
'use strict';

const ERRORS = [Error, AggregateError, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError];
/**
 * Properties that programs assign to on objects which inherit them (`error.message = …`, a variable's key `toString`).
 * A frozen one could not be assigned to there either, and as accessors, which is how Agoric's SES allows it, they take
 * half as much time again in a render. So these stay writable, and are put back after each render.
 */
const ASSIGNED = new Map([
  [Object.prototype, Reflect.ownKeys(Object.prototype)],
  [Function.prototype, ['constructor', 'toString']],
  [WeakMap.prototype, ['get', 'has', 'set']], // by pdfjs' core-js, when a PDF is met
  ...ERRORS.map(({ prototype }) => [prototype, ['constructor', 'message', 'name', 'toString']]),
]);

// V8 has fast ways through arrays and regular expressions only while nobody has touched these, not even to freeze them:
// frozen, a render takes half as much time again. So they are compared after each render instead.
const WATCHED = new Map([Array, RegExp].map(({ prototype }) => [prototype, undefined]));

/** The objects that all code shares, locked: nothing can be added, and what can be changed is put back. */
class Lock {
  #seen = new Set([globalThis]);
  #values = [];
  #isLocked;

  /** @param {(value: object) => boolean} isLocked Whether an object needs no lock. */
  constructor(isLocked) {
    this.#isLocked = isLocked;
  }

  /** Locks an object, its prototypes, and whatever their properties hold. */
  add(object) {
    const left = [object];
    while (left.length) {
      const next = left.pop();
      if ((typeof next !== 'object' && typeof next !== 'function') || next === null) continue;
      if (this.#seen.has(next) || this.#isLocked(next) || ArrayBuffer.isView(next)) continue;
      this.#seen.add(next);
      left.push(Object.getPrototypeOf(next));
      if (Object.getOwnPropertyDescriptor(next, 'value')?.get) void next.value; // zod's `cached`, which then keeps it there
      const assigned = next instanceof RegExp ? ['lastIndex'] : ASSIGNED.get(next) ?? [];
      const descriptors = Object.setPrototypeOf(Object.getOwnPropertyDescriptors(next), null);
      const isModule = descriptors.__esModule !== undefined; // of webpack's, which exports by getters
      for (const key of Reflect.ownKeys(descriptors)) {
        const { value, get, set, writable, configurable } = descriptors[key];
        left.push(value, get, set, isModule && get ? next[key] : undefined);
        if (writable && assigned.includes(key)) this.#values.push({ object: next, key, value });
        else if (writable && configurable && assigned.length) Object.defineProperty(next, key, { writable: false });
      }
      if (WATCHED.has(next)) WATCHED.set(next, { descriptors, count: Reflect.ownKeys(descriptors).length });
      else if (assigned.length) Object.seal(next);
      else Object.freeze(next);
    }
  }

  /** Puts back what was changed; false where that is not possible. */
  restore() {
    for (const { object, key, value } of this.#values) {
      if (object[key] !== value && !Reflect.set(object, key, value)) return false;
    }
    for (const [object, before] of WATCHED) if (!mended(object, before)) return false;
    return true;
  }
}

/** Whether an object has the properties that it had, or has them again. */
function mended(object, { descriptors, count }) {
  const keys = Reflect.ownKeys(object);
  for (const key of keys) {
    const now = Reflect.getOwnPropertyDescriptor(object, key);
    const before = descriptors[key];
    if (before && now.value === before.value && now.get === before.get && now.writable === before.writable) continue;
    if (before ? !Reflect.defineProperty(object, key, before) : !Reflect.deleteProperty(object, key)) return false;
  }
  if (keys.length < count) Object.defineProperties(object, descriptors);
  return Object.getPrototypeOf(object) === Object.prototype && Object.isExtensible(object);
}

module.exports = { Lock };
