// Shorter ways to what a render of poml 0.0.8 does over and over: together half of its time. The output is the same,
// which tests/engine/test_corpus.py proves. Each stands alone; one that finds no place in a later bundle is left out.
'use strict';

/**
 * Take all shortcuts that this bundle has the places for.
 *
 * @param {Function} from webpack's require, out of the bundle.
 */
exports.take = function take(from) {
  for (const shortcut of [leanElements, rememberComponents, mergeByAssignment, matchNames]) {
    try {
      shortcut(from);
    } catch (error) {
      console.error(`without ${shortcut.name}:`, error);
    }
  }
};

/**
 * Development React, the only one in the bundle, hides six properties in each element, freezes it, and captures an
 * Error's stack for the first 10,000 in each second. Server rendering reads six plain ones, and the others only to warn
 * on stderr. Props are frozen here too: a component that writes to them is an error there.
 */
function leanElements(from) {
  const React = from('./node_modules/react/index.js');
  const { createElement, cloneElement, Children } = React;
  const { toArray } = Children;
  const { $$typeof } = createElement('p');
  const made = (type, key, props) => ({ $$typeof, type, key, props: Object.freeze(props), ref: null, _owner: null });
  const own = Object.prototype.hasOwnProperty;

  function take(props, config) {
    for (const name in config) {
      if (own.call(config, name) && name !== 'key' && name !== '__self' && name !== '__source') props[name] = config[name];
    }
  }
  const keyOf = (config, key) => (config != null && own.call(config, 'key') && config.key !== undefined ? `${config.key}` : key);

  React.createElement = (type, config, ...children) => {
    if (type == null || type.defaultProps) return createElement(type, config, ...children);
    const props = {};
    take(props, config);
    if (children.length === 1) props.children = children[0];
    else if (children.length) props.children = Object.freeze(children);
    return made(type, keyOf(config, null), props);
  };

  React.cloneElement = (element, config, ...children) => {
    if (element?.$$typeof !== $$typeof || children.length) return cloneElement(element, config, ...children);
    const props = { ...element.props };
    take(props, config);
    return made(element.type, keyOf(config, element.key), props);
  };

  // React's copies each child, to give it a key that server rendering has no use for.
  Children.toArray = (children) => {
    const flat = [];
    return flatten(children, flat) ? flat : toArray(children);
  };
  function flatten(child, flat) {
    const kind = typeof child;
    if (kind === 'string' || kind === 'number' || (kind === 'object' && child !== null && child.$$typeof === $$typeof)) flat.push(child);
    else if (Array.isArray(child)) return child.every((inner) => flatten(inner, flat));
    else return child == null || kind === 'boolean';
    return true;
  }
}

/** POML searches all components and their documentation for each element: a sixth of a render's time. */
function rememberComponents(from) {
  const base = from('./packages/poml/base.tsx');
  const { prototype } = base.PomlComponent;
  for (const name of ['parameters', 'getAliases']) {
    const compute = prototype[name];
    const known = new WeakMap();
    prototype[name] = function (argument) {
      if (argument !== undefined) return compute.call(this, argument);
      if (!known.has(this)) known.set(this, compute.call(this));
      return known.get(this);
    };
  }
  const find = base.findComponentByAlias;
  const found = new Map();
  base.findComponentByAlias = (alias, disabled) => {
    if (disabled?.size) return find(alias, disabled);
    const component = found.get(alias) ?? find(alias);
    if (typeof component !== 'string') found.set(alias, component); // a string says why there is none
    return component;
  };
}

/** POML merges props with an object made for each of them. */
function mergeByAssignment(from) {
  const util = from('./packages/poml/util/index.ts');
  const plain = (item) =>
    typeof item === 'object' && item !== null && !Array.isArray(item) && !('$$typeof' in item) && item.constructor === Object;
  const merge = (target, source) => {
    if (!plain(target) || !plain(source)) return target;
    const merged = { ...target };
    for (const key in source) {
      const value = source[key];
      if (plain(value) && !merged[key]) merged[key] = {};
      merged[key] = plain(value) && plain(merged[key]) ? merge(merged[key], value) : value;
    }
    return merged;
  };
  util.deepMerge = merge;
}

/** The writers ask up to fourteen times what an element is, and cheerio parses and compiles a selector for each. */
function matchNames(from) {
  const { prototype } = from('./node_modules/cheerio/dist/commonjs/cheerio.js').Cheerio;
  const { is } = prototype;
  const names = new Set('any b code env h i item list nl obj p s span table tbody tcell thead trow u'.split(' '));
  prototype.is = function (selector) {
    if (this.length !== 1 || !names.has(selector)) return is.call(this, selector);
    return this[0].type === 'tag' && this[0].name === selector;
  };
}
