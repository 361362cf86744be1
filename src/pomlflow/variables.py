r"""Which variables a POML markup takes, found without starting Node.

POML 0.0.8 evaluates its expressions as JavaScript, ``new Function(...names, "return " + expression)``. So the
variables are the free identifiers of all expressions that it evaluates, less what the markup binds before them.
The rules are those of ``PomlFile`` in POML's ``file.tsx``, its oddities included:

- ``{{…}}`` is ``/{{\s*(.+?)\s*}}(?!})/`` in one piece of text: an expression of two lines stays literal, and an
  entity, a comment or a tag in its midst ends the piece. ``&lt;`` and ``#lt;`` mean nothing to JavaScript.
- ``<let>`` binds for all that follows in its file, wherever it stands; its ``if`` and ``for`` mean nothing. A use
  before it still needs the variable.
- ``z`` is bound only where a schema is evaluated as JavaScript, ``loop`` only under a ``for``.
- What an ``<include>`` binds stays inside it.

Names that Node itself knows are no variables: ECMAScript's, and of Node's the unmistakable ones (``process``,
``Buffer``, ``URL`` …). Its names that people give to variables (``performance``, ``crypto``, ``navigator``,
``global`` …) are variables. Markup that POML refuses is read as far as it goes, since rendering it tells what is wrong.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pomlflow.engine.encode import is_identifier

if TYPE_CHECKING:
    from tree_sitter import Node

__all__ = ["Inference", "infer", "is_identifier"]

# Of the machine, not of the template: what uses them is no fixed part of a prompt.
_OUTSIDE = frozenset({"Date", "globalThis", "process"})
_GLOBALS = _OUTSIDE | frozenset(
    "Infinity NaN undefined arguments eval isFinite isNaN parseFloat parseInt decodeURI decodeURIComponent encodeURI "
    "encodeURIComponent escape unescape AggregateError Array ArrayBuffer AsyncDisposableStack Atomics BigInt "
    "BigInt64Array BigUint64Array Boolean DataView DisposableStack Error EvalError FinalizationRegistry Float16Array "
    "Float32Array Float64Array Function Int8Array Int16Array Int32Array Intl Iterator JSON Map Math Number Object "
    "Promise Proxy RangeError ReferenceError Reflect RegExp Set SharedArrayBuffer String SuppressedError Symbol "
    "SyntaxError TypeError URIError Uint8Array Uint8ClampedArray Uint16Array Uint32Array WeakMap WeakRef WeakSet "
    "AbortController AbortSignal Buffer TextDecoder TextEncoder URL URLSearchParams WebAssembly atob btoa "
    "clearImmediate clearInterval clearTimeout console fetch queueMicrotask setImmediate setInterval setTimeout "
    "structuredClone __proto__".split()
)
_PARTS = {
    **dict.fromkeys(("output-schema", "outputschema"), "schema"),
    **dict.fromkeys(("tool-definition", "tool-def", "tooldef", "tool"), "tools"),
    "runtime": "runtime",
}
# The attributes, beside `for` and `if`, that POML looks at; of all other elements it looks at all.
_ATTRIBUTES = {
    "include": (),
    "meta": (),
    **{name: ("parser",) if part == "schema" else ("name", "description", "parser") for name, part in _PARTS.items()},
}
del _ATTRIBUTES["runtime"]


@dataclass(frozen=True)
class Inference:
    """What a markup takes.

    Attributes:
        variables: The variables that it needs, in order of first use: reading order, an include's at its place. One
            that only some branch needs (``a ? b : c``, an element's ``if``) is among them.
        optional: Those that it survives without, in the same order: a variable whose every use is guarded by
            ``typeof`` in the same expression or in the ``if`` of an enclosing element, and the message histories of
            `messages`, which stand for an empty list where they are not given.
        messages: The variables that are, alone, the ``messages`` of a ``<conversation>``. One of them is in
            `variables` instead of `optional` when another use needs more than an empty list: any use but its
            ``length``, its test in an ``if`` and its loop in a ``for``.
        expressions: The raw text of every expression, without the braces.
        includes: Every file that an ``<include>`` leads to, missing ones too, without repeats.
        static: Which of ``"schema"``, ``"tools"`` and ``"runtime"`` the markup has in a form that depends on nothing
            but the markup: no variable, nor a ``<let>`` that comes of one or of a file, the clock or the process, in
            them or in an ``if`` or ``for`` around them.
    """

    variables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    includes: tuple[Path, ...] = ()
    static: frozenset[str] = frozenset()


def infer(markup: str, base: Path | None = None) -> Inference:
    """Find what a markup takes.

    It starts no process, accepts any text, and reads the files that the markup includes.

    Args:
        markup: The markup.
        base: The folder that the ``src`` of ``<include>`` and ``<let>`` are relative to; None for the working folder.

    Returns:
        What it takes.

    Example:
        >>> infer('<p for="fact in facts">{{loop.index + 1}}. {{fact}} for {{user.name}}</p>').variables
        ('facts', 'user')
    """
    search = _Search()
    root = _root(markup)
    context = [child for child in root.children if isinstance(child, _Element) and child.name == "context"]
    values = _json_object(context[0].text()) if len(context) == 1 else {}
    # A variable of the caller's is merged into an object of the context's, so the object depends on it.
    bound = {key: isinstance(value, dict) for key, value in values.items()}
    search.walk([root], _Scope(Path(os.path.abspath(base or ".")), bound, main=True))  # noqa: PTH100
    return search.result()


class _Scope(NamedTuple):
    """What is bound where an expression stands; by name, whether the value depends on more than the markup."""

    folder: Path
    leaking: dict[str, bool]  # of the file, shared by all its elements
    own: dict[str, bool] = {}  # noqa: RUF012 - loop variables; never changed, only replaced
    guarded: frozenset[str] = frozenset()  # tested by `typeof` in an enclosing `if`
    depends: bool = False  # an enclosing `if` or `for` depends on more than the markup
    main: bool = False  # not in an include, whose schema, tools and runtime POML drops


class _Search:
    """One inference: walks the elements in POML's order and notes what their expressions use."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[int, ...]] = {}  # name -> where it is first used
        self.needed: set[str] = set()
        self.listed: set[str] = set()  # used in a way that an empty list serves
        self.messages: dict[str, None] = {}
        self.expressions: list[tuple[int, int, str]] = []
        self.includes: dict[Path, None] = {}
        self.parts: dict[str, bool] = {}  # part of the frame -> whether it depends on more than the markup
        self.seen: set[tuple[Path, frozenset[str], frozenset[str]]] = set()
        self.node = self.attribute = 0  # where the search is

    def result(self) -> Inference:
        names = sorted(self.first, key=self.first.__getitem__)
        needed = self.needed | (self.listed - self.messages.keys())
        return Inference(
            variables=tuple(name for name in names if name in needed),
            optional=tuple(name for name in names if name not in needed),
            messages=tuple(self.messages),
            expressions=tuple(code for _, _, code in sorted(self.expressions, key=lambda found: found[:2])),
            includes=tuple(self.includes),
            static=frozenset(part for part, depends in self.parts.items() if not depends),
        )

    def walk(self, nodes: Iterable[_Element | str], scope: _Scope) -> None:
        pending = [(iter(nodes), scope)]  # a stack of our own: any depth of markup must do
        while pending:
            siblings, scope = pending[-1]
            node = next(siblings, None)
            self.node += 1
            self.attribute = 0
            if node is None:
                pending.pop()
            elif isinstance(node, str):
                self.text(node, scope)
            elif node.name == "let":
                self.let(node, scope)
            elif node.name not in {"context", "stylesheet"}:
                pending.append(self.element(node, scope))

    def element(self, element: _Element, scope: _Scope) -> tuple[Iterator[_Element | str], _Scope]:
        """Read an element's attributes; give its content and the scope in there."""
        scope = self.repeated(element, scope)
        depends = False
        wanted = _ATTRIBUTES.get(element.name)
        for self.attribute, (key, value) in enumerate(element.attributes):
            if key not in {"for", "if"} and (wanted is None or key in wanted):
                alone = element.name == "conversation" and key == "messages" and _ALONE_IN_BRACES.fullmatch(value)
                if alone and self.free(alone[1], scope):
                    self.messages[alone[1]] = None
                depends |= self.text(value, scope, listed=bool(alone))
        self.attribute = len(element.attributes)
        if element.name == "include":
            return self.included(element, scope)
        part = _PARTS.get(element.name)
        if part is None:
            return iter(() if element.name == "meta" else element.children), scope
        if part != "runtime":
            depends |= self.schema(element, scope)
        if scope.main:
            self.parts[part] = self.parts.get(part, False) or depends or scope.depends
        return iter(()), scope

    def repeated(self, element: _Element, scope: _Scope) -> _Scope:
        """Read ``for`` and then ``if``, in whatever order they are written; give the scope behind them."""
        self.attribute, loop = element.find("for")
        match = _LOOP.search(_SPACES.sub(lambda run: "\n" if "\n" in run[0] else " ", loop))
        if loop and not match:  # POML refuses it; then no variable of it is to be missed before POML can tell
            scope = scope._replace(own={**scope.own, **dict.fromkeys(_WORD.findall(loop), True)})
        elif match:
            depends = self.read(match[2], scope, listed=True)
            own = dict.fromkeys(("loop", *_bound_by(match[1])), depends)
            scope = scope._replace(own={**scope.own, **own}, depends=scope.depends or depends)
            self.defaults(match[1], scope)
        self.attribute, condition = element.find("if")
        if condition:
            code = _unwrapped(condition)
            depends = self.read(code, scope, listed=True)
            guarded = scope.guarded | _analyse(code).tested
            scope = scope._replace(guarded=guarded, depends=scope.depends or depends)
        return scope

    def included(self, element: _Element, scope: _Scope) -> tuple[Iterator[_Element | str], _Scope]:
        source = element.find("src")[1]
        nothing: tuple[Iterator[_Element | str], _Scope] = iter(()), scope
        if not source:
            return nothing
        file = Path(os.path.abspath(scope.folder / source))  # noqa: PTH100 - as Node joins: links are not followed
        self.includes[file] = None
        bound = {**scope.leaking, **scope.own}
        # The same file with the same names bound tells nothing new; this also ends cycles.
        visit = file, frozenset(bound), scope.guarded
        text = None if visit in self.seen else _read(file)
        if text is None:
            return nothing
        self.seen.add(visit)
        root = _root(text)
        inside = _Scope(file.parent, bound, guarded=scope.guarded, depends=scope.depends)
        return iter(root.children if root.name == "poml" else [root]), inside

    def let(self, element: _Element, scope: _Scope) -> None:
        name, source = element.find("name")[1], element.find("src")[1]
        self.attribute, value = element.find("value")
        depends = bool(source)  # on a file that is no part of the template
        if name and value and not source:
            depends = self.read(_unwrapped(value), scope)
        names: Iterable[str] = _bound_by(name) if name else ()
        if not name and source:
            names = _json_object(_read(Path(os.path.abspath(scope.folder / source))) or "")  # noqa: PTH100
        elif not name and not value:
            names = _json_object(element.text())
        scope.leaking.update(dict.fromkeys(names, depends))
        self.defaults(name, scope)

    def schema(self, element: _Element, scope: _Scope) -> bool:
        text, parser = element.text().strip(), element.find("parser")[1]
        if parser not in {"json", "eval"}:  # not given, or itself an expression
            parser = "json" if text.startswith("{") else "eval"
        if parser == "json":
            return self.text(text, scope)
        return self.read(_unwrapped(text), scope._replace(own={"z": False, **scope.leaking, **scope.own}))

    def text(self, text: str, scope: _Scope, *, listed: bool = False) -> bool:
        """Read the expressions in a text, as `read` does each."""
        depends = False
        for code in _between(text, _OPEN, _CLOSE):
            depends |= self.read(code, scope, listed=listed)
        return depends

    def read(self, code: str, scope: _Scope, *, listed: bool = False) -> bool:
        """Note what an expression uses; tell whether it depends on more than the markup.

        `listed`: an empty list will do for a variable that stands there by itself, as in an ``if`` or ``for``.
        """
        self.expressions.append((self.node, self.attribute, code))
        return self.note(code, scope, listed=listed)

    def defaults(self, pattern: str, scope: _Scope) -> None:
        """Note what the default values of a pattern, ``{a, b = c}``, use."""
        if "=" in pattern:
            self.note(f"({pattern}) => 0", scope)

    def note(self, code: str, scope: _Scope, *, listed: bool = False) -> bool:
        depends = False
        analysis = _analyse(code)
        for index, (name, how) in enumerate(analysis.uses):
            if not self.free(name, scope):
                depends |= scope.own.get(name, scope.leaking.get(name, name in _OUTSIDE))
                continue
            depends = True
            place = self.node, self.attribute, len(self.expressions), index
            self.first[name] = min(place, self.first.get(name, place))
            if how == _TESTED or name in analysis.tested or name in scope.guarded:
                continue
            (self.listed if how == _LENGTH or (listed and how == _ALONE) else self.needed).add(name)
        for name in analysis.assigned:
            if name not in scope.own:
                scope.leaking.setdefault(name, depends)
        return depends

    def free(self, name: str, scope: _Scope) -> bool:
        return not (name in scope.own or name in scope.leaking or name in _GLOBALS) and is_identifier(name)


# --- markup ---------------------------------------------------------------------------------------------------------

_NAME = r"[A-Za-z_:][A-Za-z0-9_:.\-\u00b7\u0300-\u036f\u203f\u2040]*"
_MARKUP = re.compile(rf"<(?:!--|!\[CDATA\[|[!?/]|(?=[A-Za-z_:]))|&(?:{_NAME};|#[0-9]+;|#x[0-9A-Fa-f])")
_TAG = re.compile(rf"""({_NAME})(?:\s*=\s*("[^"]*"|'[^']*'))?|(/?>)|(<)|\s+|.""", re.DOTALL)
_LINES = re.compile("\r\n?|[\u2028\u2029]")  # all that ends a line for JavaScript's `.`
_OPEN, _CLOSE = re.compile(r"\{\{"), re.compile(r"\}\}(?!\})")
_OPEN_LINE, _CLOSE_LINE = re.compile(r"^[^\S\n]*\{\{", re.MULTILINE), re.compile(r"\}\}(?=[^\S\n]*$)", re.MULTILINE)
_ALONE_IN_BRACES = re.compile(r"\s*\{\{\s*([\w$]+)\s*\}\}\s*")
_SPACES = re.compile(r"\s+")
_LOOP = re.compile(r"^(.+)\sin\s(.+)", re.MULTILINE)  # quadratic on runs of space: make each one space first


class _Element:
    """An element: its name in lower case, attributes as (key in lower case, value), children in order."""

    __slots__ = ("attributes", "children", "name")

    def __init__(self, name: str) -> None:
        prefix, _, local = name.partition(":")
        self.name = (local if prefix and local and ":" not in local else name).lower()
        self.attributes: list[tuple[str, str]] = []
        self.children: list[_Element | str] = []

    def find(self, key: str) -> tuple[int, str]:
        """The place and the value of an attribute; the first counts."""
        return next(((at, value) for at, (name, value) in enumerate(self.attributes) if name == key), (0, ""))

    def text(self) -> str:
        return " ".join(child for child in self.children if isinstance(child, str))


def _root(markup: str) -> _Element:
    """Parse as POML does: with an element ``<poml>`` around what is not one element alone."""
    document = _parse(_LINES.sub("\n", markup).replace("\ufeff", " "))
    solid = [child for child in document.children if isinstance(child, _Element) or not child.isspace()]
    return solid[0] if len(solid) == 1 and isinstance(solid[0], _Element) else document


def _parse(text: str) -> _Element:
    """Parse what XML's tags there are; an end tag ends the innermost element, whatever its name, as in POML."""
    document = _Element("poml")
    open_elements = [document]
    find = _finder(text)
    at = 0
    while found := _MARKUP.search(text, at):
        children = open_elements[-1].children
        start, kind = found.start(), found[0]
        if start > at:
            children.append(text[at:start])
        at = found.end()
        if kind == "<":
            element, at, is_open = _tag(text, at)
            children.append(element)
            if is_open:
                open_elements.append(element)
        elif kind == "</":
            at = find(">", at) or at
            del open_elements[max(1, len(open_elements) - 1) :]
        elif kind in {"<!--", "<!"}:
            at = (kind == "<!--" and find("-->", at)) or find(">", at) or at
        else:
            children.append("")  # nothing to read, but it ends a piece of text, and outside the root it is content
            if kind == "<![CDATA[":
                at = find("]]>", at) or at
            elif kind == "<?":  # greedy: up to the last end in the line
                end, line = find("?>", at), find("\n", at) or len(text)
                at = max(end, text.rfind("?>", at, line) + 2) if end else at
    if at < len(text):
        open_elements[-1].children.append(text[at:])
    return document


def _finder(text: str) -> Callable[[str, int], int]:
    """Find where an end ends, else give 0; looks only once for what is not there, so that garbage stays linear."""
    missing: set[str] = set()

    def find(what: str, start: int) -> int:
        at = -1 if what in missing else text.find(what, start)
        if at < 0:
            missing.add(what)
            return 0
        return at + len(what)

    return find


def _tag(text: str, at: int) -> tuple[_Element, int, bool]:
    """Read a start tag behind its ``<``; give the element, where it ends, and whether content follows."""
    element: _Element | None = None
    end = len(text)
    for token in _TAG.finditer(text, at):
        name, value, close, opening = token.groups()
        end = token.end()
        if element is None:
            element = _Element(name)
        elif name is not None and value is not None:
            element.attributes.append((name.lower(), value[1:-1]))
        elif close or opening:
            return element, end - len(opening or ""), close == ">"
    return element or _Element(""), end, False


def _between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[str]:
    r"""Give what JavaScript's ``/{{\s*(.+?)\s*}}/g`` captures, in linear time, for these forms of its braces."""
    at, close, tail, line = 0, -1, -1, -1
    while opened := opening.search(text, at):
        spaces = _SPACES.match(text, opened.end())
        body = spaces.end() if spaces else opened.end()
        if close <= body:
            closed = closing.search(text, body + 1)
            if closed is None:
                return
            tail = close = closed.start()
            while text[tail - 1].isspace():
                tail -= 1
        if line < body:
            line = text.find("\n", body)
            line = len(text) if line < 0 else line
        if line < tail:
            at = opened.start() + 1
        else:
            yield text[body:tail]
            at = close + 2


def _unwrapped(code: str) -> str:
    """An expression without the braces that POML allows around it."""
    return next(_between(code, _OPEN_LINE, _CLOSE_LINE), code)


def _read(file: Path) -> str | None:
    with suppress(OSError, ValueError):  # ValueError: a null character in the path
        if file.is_file():  # never a pipe or a device
            return file.read_bytes().decode("utf-8", "replace")
    return None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# --- JavaScript -----------------------------------------------------------------------------------------------------

_PLAIN = re.compile(
    r"[ \t]*([A-Za-z_$][A-Za-z0-9_$]*)(?:\.([A-Za-z_$][A-Za-z0-9_$]*))?(?:\.[A-Za-z_$][A-Za-z0-9_$]*)*\s*"
)
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
# How a variable is used: tested by `typeof`, only its length, by itself, or in another way.
_TESTED, _LENGTH, _ALONE, _DEEPER = "typeof", "length", "alone", "deeper"
_IDENTIFIERS = frozenset(
    {"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"}  # a, {a}, ({a}) => …
)
_FUNCTIONS = frozenset(
    "arrow_function function_expression generator_function function_declaration generator_function_declaration "
    "method_definition class class_declaration".split()
)
_BLOCKS = frozenset("statement_block for_statement for_in_statement catch_clause".split())
_local = threading.local()


class _Code(NamedTuple):
    """An expression's free identifiers: (name, how) in reading order; those tested by ``typeof``; those assigned."""

    uses: tuple[tuple[str, str], ...]
    tested: frozenset[str] = frozenset()
    assigned: tuple[str, ...] = ()


class _Bind(NamedTuple):
    """In a list of nodes to visit: from here on these names are bound once more, or once less."""

    names: list[str]
    step: int


@lru_cache(maxsize=1024)
def _analyse(code: str) -> _Code:
    plain = _PLAIN.fullmatch(code)  # most expressions; they need no parser
    if plain:
        name, member = plain.groups()
        how = _ALONE if member is None else _LENGTH if member == "length" else _DEEPER
        return _Code(((name, how),) if is_identifier(name) else ())
    root = _tree("return " + code)
    statement = root.named_children[0] if root.named_children else root
    if root.has_error or statement.type != "return_statement":
        statement = root  # no JavaScript: what can be seen of it
    return _visit(statement, ["arguments", *_hoisted(root)])


def _visit(statement: Node, names: list[str]) -> _Code:
    bound: dict[str, int] = {}
    uses: list[tuple[int, str, str]] = []
    assigned: dict[str, None] = {}
    todo: list[tuple[Node, str] | _Bind] = [(statement, _ALONE), _Bind(names, 1)]
    while todo:  # a stack of our own: any depth of code must do
        item = todo.pop()
        if isinstance(item, _Bind):
            for name in item.names:
                bound[name] = bound.get(name, 0) + item.step
            continue
        node, how = item
        if node.type in _IDENTIFIERS:
            if not bound.get(_text(node)):
                uses.append((node.start_byte, _text(node), how))
            continue
        if node.type == "assignment_expression":  # in sloppy mode that needs no variable, it makes one
            left, *right = node.named_children
            targets = _pattern(left)
            assigned.update(dict.fromkeys(name for name in targets if not bound.get(name)))
            todo += [(left, _ALONE), _Bind(targets, 1), *((child, _ALONE) for child in reversed(right))]
        elif node.type in _FUNCTIONS or node.type in _BLOCKS:
            inside = _scope(node)
            todo += [_Bind(inside, -1), *_inner(node, how), _Bind(inside, 1)]
        else:
            todo += _inner(node, how)
    tested = frozenset(name for _, name, how in uses if how == _TESTED)
    return _Code(tuple((name, how) for _, name, how in sorted(uses)), tested, tuple(assigned))


def _inner(node: Node, how: str) -> list[tuple[Node, str]]:
    """A node's children, the last first, with how the node uses each."""
    children = node.named_children
    ways, kind = [_ALONE] * len(children), node.type
    if not children:
        return []
    if kind == "parenthesized_expression":
        ways[0] = how
    elif kind == "member_expression":
        ways[0] = _LENGTH if children[-1].text == b"length" else _DEEPER
    elif kind in {"subscript_expression", "call_expression", "new_expression"}:
        ways[0] = _DEEPER
    elif kind == "unary_expression" and node.children[0].type == "typeof":
        ways[0] = _TESTED
    return list(zip(reversed(children), reversed(ways), strict=True))


def _scope(node: Node) -> list[str]:
    """The names that a function, class or block binds for its inside."""
    if node.type in _BLOCKS:
        return _lexical(node)
    name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
    names = [] if name is None or name.type != "identifier" else [_text(name)]
    if node.type.startswith("class"):
        return names
    for field in ("parameter", "parameters"):
        parameters = node.child_by_field_name(field)
        names += [] if parameters is None else _pattern(parameters)
    if node.type != "arrow_function":
        names.append("arguments")
    return names if body is None or body.type != "statement_block" else names + _hoisted(body)


def _hoisted(body: Node) -> list[str]:
    """The names that ``var`` and functions declare anywhere in a function's body."""
    names: list[str] = []
    todo = list(body.named_children)
    while todo:
        node = todo.pop()
        if node.type == "variable_declaration":
            names += _declared(node)
        elif node.type in {"function_declaration", "generator_function_declaration"}:
            names += _scope(node)[:1]
        elif node.type == "for_in_statement":
            names += _looped(node, "var")
        if node.type not in _FUNCTIONS:
            todo += node.named_children
    return names


def _lexical(block: Node) -> list[str]:
    """The names that ``let``, ``const`` and ``class`` declare in a block itself, and what its head binds."""
    names = _looped(block, "let", "const")
    parameter = block.child_by_field_name("parameter")  # of `catch`
    names += [] if parameter is None else _pattern(parameter)
    for node in block.named_children:
        if node.type == "lexical_declaration":
            names += _declared(node)
        elif node.type == "class_declaration":
            names += _scope(node)
    return names


def _declared(declaration: Node) -> list[str]:
    return [name for node in declaration.named_children if node.type == "variable_declarator" for name in _first(node)]


def _looped(node: Node, *kinds: str) -> list[str]:
    kind = node.child_by_field_name("kind") if node.type == "for_in_statement" else None
    return _first(node) if kind is not None and kind.type in kinds else []


def _first(node: Node) -> list[str]:
    return _pattern(node.named_children[0]) if node.named_children else []


def _pattern(node: Node) -> list[str]:
    """The names that a pattern, or a list of parameters, binds."""
    names: list[str] = []
    todo = [node]
    while todo:
        node = todo.pop()
        children = node.named_children
        if node.type in _IDENTIFIERS:
            names.append(_text(node))
        elif node.type in {"assignment_pattern", "object_assignment_pattern"}:
            todo += children[:1]
        elif node.type == "pair_pattern":
            todo += children[1:]
        elif node.type in {"rest_pattern", "array_pattern", "object_pattern", "formal_parameters"}:
            todo += children
    return names


def _bound_by(pattern: str) -> list[str]:
    """The names that a ``<let>``'s name or a loop's item binds; POML makes it a parameter, so it may be a pattern."""
    pattern = pattern.strip()
    if is_identifier(pattern):
        return [pattern]
    statement = _tree(f"({pattern}) => 0").named_children[:1]
    arrow = statement[0].named_children[:1] if statement else []
    if arrow and arrow[0].type == "arrow_function":
        return _scope(arrow[0])
    return _WORD.findall(pattern)


def _tree(code: str) -> Node:
    parser = getattr(_local, "parser", None)
    if parser is None:  # one for each thread: a parser must not be shared while it parses
        import tree_sitter_javascript
        from tree_sitter import Language, Parser

        parser = _local.parser = Parser(Language(tree_sitter_javascript.language()))
    root: Node = parser.parse(code.encode("utf-8", "replace")).root_node
    return root


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")
