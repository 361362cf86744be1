// Placeholders: values for variables that are not given, so that a template can be checked without them.
//
// An expression may use a placeholder in any way: read members, call them, loop, compare, print (the output is its
// name). The placeholder may have caused an error of such an expression, so the error is suppressed. Other errors are
// reported, and so is code that is not JavaScript.
'use strict';

const LABEL = Symbol('label');
const isPlaceholder = (value) => typeof value === 'function' && value[LABEL] !== undefined;
const LISTS = new Set('concat every filter find flatMap forEach join map reduce slice some sort reverse'.split(' '));
const words = (code) => code.match(/[\w$\u0080-\uffff]+/g) ?? [];
let touches = 0; // how often expressions have used placeholders

function placeholder(label) {
  const list = () => [placeholder(`${label}[0]`)];
  return new Proxy(function () {}, {
    get(_, key) {
      if (key === LABEL) return label;
      touches += 1;
      if (key === Symbol.toPrimitive) return (hint) => (hint === 'number' ? 1 : label);
      if (key === Symbol.iterator) return () => list()[Symbol.iterator]();
      if (key === 'toString' || key === 'toJSON' || key === 'toLocaleString') return () => label;
      if (key === 'length') return 1;
      if (typeof key === 'symbol' || key === 'then') return undefined; // not a promise
      if (LISTS.has(key)) return (...given) => list()[key](...given);
      return placeholder(/^\d+$/.test(key) ? `${label}[${key}]` : `${label}.${key}`);
    },
    apply() {
      touches += 1;
      return placeholder(`${label}()`);
    },
    construct() {
      touches += 1;
      return placeholder(`new ${label}()`);
    },
    has: () => true,
  });
}

/** Whether an expression names a variable that is a placeholder. */
function mentions(expression, context) {
  return Object.keys(context).some((name) => isPlaceholder(context[name]) && words(expression).includes(name));
}

/** Hooks into POML's evaluation of expressions. The first check calls it, so that renders alone cost nothing. */
function install({ prototype }) {
  let evaluating; // `touches` at the start of the expression that is being evaluated
  let looping, attribute;
  let forced; // whether the content of an `if` was rendered although a placeholder made it false
  const attributes = []; // the ranges of attributes with a placeholder's value
  const texts = []; // the ranges of texts with a placeholder's value
  const { evaluateExpression, handleForLoop, reportError, xmlAttributeValueRange } = prototype;

  prototype.evaluateExpression = function (expression, context, range, bare) {
    const before = (evaluating = touches);
    const value = evaluateExpression.call(this, expression, context, range, bare);
    evaluating = undefined;
    const isWhole = isPlaceholder(value);
    if (isWhole) touches += 1;
    if (bare && mentions(expression, context)) {
      forced ||= !value; // an `if`: its content is checked too
      return value || true;
    }
    if (touches === before) return value;
    if (looping) return Array.isArray(value) && value.length ? value : [placeholder(isWhole ? `${value[LABEL]}[0]` : 'item')];
    if (bare) return value;
    const inside = attribute && range && range.start >= attribute.start && range.end <= attribute.end;
    if (range) (inside ? attributes : texts).push(inside ? attribute : range);
    return isWhole ? value[LABEL] : value;
  };
  prototype.reportError = function (message, range, cause) {
    const mayBeCausedByPlaceholder = cause !== undefined && evaluating !== undefined && touches > evaluating;
    if (!mayBeCausedByPlaceholder) reportError.call(this, message, range, cause); // code that is not JavaScript uses no placeholder
  };
  prototype.handleForLoop = function (element, context) {
    looping = true;
    try {
      return handleForLoop.call(this, element, context);
    } finally {
      looping = false;
    }
  };
  prototype.xmlAttributeValueRange = function (element) {
    return (attribute = xmlAttributeValueRange.call(this, element));
  };

  return {
    /** Adds placeholders to a render's variables. */
    begin(context, names) {
      attributes.length = texts.length = 0;
      attribute = forced = undefined;
      for (const name of names) context[name] = placeholder(name);
    },
    /**
     * Whether a placeholder may have caused a component's problem: its value is in an attribute, or in JSON in the
     * text; or it enabled alternatives that exclude each other (an `if` for each of two output schemas).
     */
    mayHaveCaused({ message, startIndex: start, endIndex: end }) {
      const holds = (range) => start === undefined || (range.start >= start && range.end <= end);
      return attributes.some(holds) || (forced && /^Multiple /.test(message)) || (/\bJSON\b/.test(message) && texts.some(holds));
    },
  };
}

module.exports = { install };
