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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pomlflow.engine.serialize import is_identifier
from pomlflow.template.javascript import ALONE, LENGTH, TESTED, WORD, analyse, bound_by
from pomlflow.template.markup import SPACES, Element, expressions, parse_markup, unwrapped

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

# The elements, beside <include> and <let>, that read a file.
_READERS = frozenset("audio doc document folder image img table webpage".split())
_ALONE_IN_BRACES = re.compile(r"\s*\{\{\s*([\w$]+)\s*\}\}\s*")
_MAKES = re.compile(r"=>|\bfunction\b|\bmap\b")
_LOOP = re.compile(r"^(.+)\sin\s(.+)", re.MULTILINE)  # quadratic on runs of space: make each one space first


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
        passed: Those whose items an expression passes on as the ``messages`` of a ``<conversation>``:
            ``{{history.slice(-6)}}``, not one with a function in it, which makes messages of what it knows.
        expressions: The raw text of every expression, without the braces.
        includes: Every file that an ``<include>`` leads to, missing ones too, without repeats.
        assets: Every other file that the markup names without a variable (a picture, a document, a ``<let src>``),
            missing ones too, without repeats.
        absolute: Those of both that the markup names by their absolute paths only.
        static: Which of ``"schema"``, ``"tools"`` and ``"runtime"`` the markup has in a form that depends on nothing
            but the markup: no variable, nor a ``<let>`` that comes of one or of a file, the clock or the process, in
            them or in an ``if`` or ``for`` around them.
        patterns: The names that are bound by a pattern, ``[key, value] in pairs``, in a ``for`` or a ``<let>``.
    """

    variables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    includes: tuple[Path, ...] = ()
    assets: tuple[Path, ...] = ()
    absolute: frozenset[Path] = frozenset()
    static: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()


def infer(markup: str, base: Path | None = None, *, read: Callable[[Path], str | None] | None = None) -> Inference:
    """Find what a markup takes.

    It starts no process, accepts any text, and reads the files that the markup includes.

    Args:
        markup: The markup.
        base: The folder that every ``src`` is relative to; None for the working folder.
        read: What reads a file, giving None for one that is not there; by default from disk.

    Returns:
        What it takes.

    Example:
        >>> infer('<p for="fact in facts">{{loop.index + 1}}. {{fact}} for {{user.name}}</p>').variables
        ('facts', 'user')
    """
    home = Path(os.path.abspath(base or "."))  # noqa: PTH100
    search = _Search(home, read or _read)
    root = parse_markup(markup)
    context = [child for child in root.children if isinstance(child, Element) and child.name == "context"]
    values = _json_object(context[0].text()) if len(context) == 1 else {}
    # A variable of the caller's is merged into an object of the context's, so the object depends on it.
    bound = {key: isinstance(value, dict) for key, value in values.items()}
    search.walk([root], _Scope(home, bound, main=True))
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

    def __init__(self, home: Path, read: Callable[[Path], str | None]) -> None:
        self.home = home
        self.read_file = read
        self.first: dict[str, tuple[int, ...]] = {}  # name -> where it is first used
        self.needed: set[str] = set()
        self.listed: set[str] = set()  # used in a way that an empty list serves
        self.messages: dict[str, None] = {}
        self.passed: dict[str, None] = {}
        self.expressions: list[tuple[int, int, str]] = []
        self.patterns: set[str] = set()
        self.includes: dict[Path, None] = {}
        self.assets: dict[Path, None] = {}
        self.absolute: dict[Path, bool] = {}
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
            passed=tuple(name for name in self.passed if name not in self.messages),
            expressions=tuple(code for _, _, code in sorted(self.expressions, key=lambda found: found[:2])),
            includes=tuple(self.includes),
            assets=tuple(file for file in self.assets if file not in self.includes),
            absolute=frozenset(file for file, always in self.absolute.items() if always),
            static=frozenset(part for part, depends in self.parts.items() if not depends),
            patterns=frozenset(self.patterns),
        )

    def walk(self, nodes: Iterable[Element | str], scope: _Scope) -> None:
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

    def element(self, element: Element, scope: _Scope) -> tuple[Iterator[Element | str], _Scope]:
        """Read an element's attributes; give its content and the scope in there."""
        scope = self.repeated(element, scope)
        depends = False
        wanted = _ATTRIBUTES.get(element.name)
        for self.attribute, (key, value) in enumerate(element.attributes):
            if key not in {"for", "if"} and (wanted is None or key in wanted):
                alone = element.name == "conversation" and key == "messages" and _ALONE_IN_BRACES.fullmatch(value)
                if alone and self.free(alone[1], scope):
                    self.messages[alone[1]] = None
                if element.name == "conversation" and key == "messages" and not alone:
                    plain = [code for code in expressions(value) if not _MAKES.search(code)]
                    names = [name for code in plain for name, _ in analyse(code).uses if self.free(name, scope)]
                    self.passed.update(dict.fromkeys(names))
                depends |= self.text(value, scope, listed=bool(alone))
        self.attribute = len(element.attributes)
        if element.name == "include":
            return self.included(element, scope)
        if element.name in _READERS and (source := element.find("src")[1]) and "{{" not in source:
            self.assets[self.file(self.home, source)] = None  # not the include's folder: POML resolves it so
        part = _PARTS.get(element.name)
        if part is None:
            return iter(() if element.name == "meta" else element.children), scope
        if part != "runtime":
            depends |= self.schema(element, scope)
        if scope.main:
            self.parts[part] = self.parts.get(part, False) or depends or scope.depends
        return iter(()), scope

    def repeated(self, element: Element, scope: _Scope) -> _Scope:
        """Read ``for`` and then ``if``, in whatever order they are written; give the scope behind them."""
        self.attribute, loop = element.find("for")
        match = _LOOP.search(SPACES.sub(lambda run: "\n" if "\n" in run[0] else " ", loop))
        if loop and not match:  # POML refuses it; then no variable of it is to be missed before POML can tell
            scope = scope._replace(own={**scope.own, **dict.fromkeys(WORD.findall(loop), True)})
        elif match:
            depends = self.read(match[2], scope, listed=True)
            own = dict.fromkeys(("loop", *self.bound(match[1])), depends)
            scope = scope._replace(own={**scope.own, **own}, depends=scope.depends or depends)
            self.defaults(match[1], scope)
        self.attribute, condition = element.find("if")
        if condition:
            code = unwrapped(condition)
            depends = self.read(code, scope, listed=True)
            guarded = scope.guarded | analyse(code).tested
            scope = scope._replace(guarded=guarded, depends=scope.depends or depends)
        return scope

    def included(self, element: Element, scope: _Scope) -> tuple[Iterator[Element | str], _Scope]:
        source = element.find("src")[1]
        nothing: tuple[Iterator[Element | str], _Scope] = iter(()), scope
        if not source:
            return nothing
        file = self.file(scope.folder, source)
        self.includes[file] = None
        bound = {**scope.leaking, **scope.own}
        # The same file with the same names bound tells nothing new; this also ends cycles.
        visit = file, frozenset(bound), scope.guarded
        text = None if visit in self.seen else self.read_file(file)
        if text is None:
            return nothing
        self.seen.add(visit)
        root = parse_markup(text)
        inside = _Scope(file.parent, bound, guarded=scope.guarded, depends=scope.depends)
        return iter(root.children if root.name == "poml" else [root]), inside

    def let(self, element: Element, scope: _Scope) -> None:
        name, source = element.find("name")[1], element.find("src")[1]
        self.attribute, value = element.find("value")
        depends = bool(source)  # on a file that is no part of the markup
        file = self.file(scope.folder, source)
        if source:
            self.assets[file] = None
        if name and value and not source:
            depends = self.read(unwrapped(value), scope)
        names: Iterable[str] = self.bound(name) if name else ()
        if not name and source:
            names = _json_object(self.read_file(file) or "")
        elif not name and not value:
            names = _json_object(element.text())
        scope.leaking.update(dict.fromkeys(names, depends))
        self.defaults(name, scope)

    def bound(self, pattern: str) -> list[str]:
        names = bound_by(pattern)
        if names != [pattern.strip()]:
            self.patterns.update(names)
        return names

    def schema(self, element: Element, scope: _Scope) -> bool:
        text, parser = element.text().strip(), element.find("parser")[1]
        if parser not in {"json", "eval"}:  # not given, or itself an expression
            parser = "json" if text.startswith("{") else "eval"
        if parser == "json":
            return self.text(text, scope)
        code = unwrapped(text)
        if analyse(code).broken:  # prose; POML tells, and no word of it is to be missed as a variable before
            return True
        return self.read(code, scope._replace(own={"z": False, **scope.leaking, **scope.own}))

    def text(self, text: str, scope: _Scope, *, listed: bool = False) -> bool:
        """Read the expressions in a text, as `read` does each."""
        depends = False
        for code in expressions(text):
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
        analysis = analyse(code)
        for index, (name, how) in enumerate(analysis.uses):
            if not self.free(name, scope):
                depends |= scope.own.get(name, scope.leaking.get(name, name in _OUTSIDE))
                continue
            depends = True
            place = self.node, self.attribute, len(self.expressions), index
            self.first[name] = min(place, self.first.get(name, place))
            if how == TESTED or name in analysis.tested or name in scope.guarded:
                continue
            (self.listed if how == LENGTH or (listed and how == ALONE) else self.needed).add(name)
        for name in analysis.assigned:
            if name not in scope.own:
                scope.leaking.setdefault(name, depends)
        return depends

    def file(self, folder: Path, source: str) -> Path:
        """The file that a ``src`` leads to."""
        file = Path(os.path.abspath(folder / source))  # noqa: PTH100 - as Node joins: links are not followed
        self.absolute[file] = self.absolute.get(file, True) and os.path.isabs(source)  # noqa: PTH117
        return file

    def free(self, name: str, scope: _Scope) -> bool:
        return not (name in scope.own or name in scope.leaking or name in _GLOBALS) and is_identifier(name)


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
