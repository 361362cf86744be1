r"""Inference of the variables and files of a POML markup, without starting Node.

POML 0.0.8 evaluates its expressions as JavaScript, ``new Function(...names, "return " + expression)``. So the
variables are the free identifiers of all expressions that POML evaluates, except those that the markup binds before.
The rules are those of ``PomlFile`` in POML's ``file.tsx``:

- ``{{…}}`` is ``/{{\s*(.+?)\s*}}(?!})/`` in one piece of text. An expression of two lines stays literal text. An
  entity, a comment or a tag ends the piece. ``&lt;`` and ``#lt;`` are not decoded in an expression.
- ``<let>`` binds its name for everything after it in its file, at any depth; its ``if`` and ``for`` have no effect. A
  use before it still needs the variable.
- ``z`` is bound only where a schema is evaluated as JavaScript, ``loop`` only under a ``for``.
- What an ``<include>`` binds stays inside it.
- The content of an unknown element is not evaluated, and an expression that is not JavaScript has no variables.

Globals are not variables: those of ECMAScript, and those of Node whose names are unlikely for a variable (``process``,
``Buffer``, ``URL`` …). Other globals of Node (``performance``, ``crypto``, ``navigator``, ``global`` …) count as
variables. Markup that POML refuses is read as far as possible, since rendering it reports the errors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pomlflow.engine.serialize import is_identifier
from pomlflow.exceptions import Problem
from pomlflow.template.files import decode, read_file
from pomlflow.template.javascript import ALONE, LENGTH, TESTED, WORD, analyse, bound_by
from pomlflow.template.markup import (
    Element,
    Passage,
    SourceText,
    expressions,
    is_known,
    parse_markup,
    split_loop,
    unwrapped,
)
from pomlflow.template.source import Inference, Kind, Use

__all__ = ["infer"]

# Globals whose values change between renders or machines: a part of a prompt that uses them is not static.
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
# The attributes that POML evaluates, besides `for` and `if`; it evaluates all attributes of elements not listed here.
_ATTRIBUTES = {
    "include": (),
    "meta": (),
    **{name: ("parser",) if part == "schema" else ("name", "description", "parser") for name, part in _PARTS.items()},
}
del _ATTRIBUTES["runtime"]

# The elements, besides <include> and <let>, that read a file.
_READERS = frozenset("audio doc document folder image img table webpage".split())
_SPEAKERS = frozenset("systemmsg systemmessage humanmsg humanmessage aimsg aimessage conversation".split())
_MAKES_MESSAGES = re.compile(r"=>|\bfunction\b|\bmap\b")
# POML does not decode an entity in an expression, so it is an error there. Its name must not count as a variable.
_ENTITIES = re.compile(r"&(amp|lt|gt|quot|apos);")
_ENTITY = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def infer(markup: str, base: Path | None = None, *, read: Callable[[Path], str | None] | None = None) -> Inference:
    """Return the variables and files of a markup. It accepts any text, and reads the included files.

    `base` is the folder that every ``src`` is relative to; the default is the working folder. `read` returns the text
    of a file, or None if the file does not exist; by default it reads from disk.

    Example:
        >>> infer('<p for="fact in facts">{{loop.index + 1}}. {{fact}} for {{user.name}}</p>').variables
        ('facts', 'user')
    """
    home = Path(os.path.abspath(base or "."))  # noqa: PTH100
    search = _Search(home, read)
    root = parse_markup(markup)
    context = [child for child in root.children if isinstance(child, Element) and child.name == "context"]
    values = _json_object(context[0].text().text) if len(context) == 1 else {}
    # POML merges the caller's variable into an object in <context> of the same name, so the object depends on it.
    bound = {key: isinstance(value, dict) for key, value in values.items()}
    search.walk([root], _Scope(SourceText(markup), home, bound, main=True))
    return search.result()


class _Scope(NamedTuple):
    """The names that are bound at an expression, each with whether its value depends on more than the markup."""

    source: SourceText
    folder: Path
    leaking: dict[str, bool]  # bound by <let> or an assignment: for the rest of the file, shared by all its elements
    own: dict[str, bool] = {}  # noqa: RUF012 - loop variables; never changed, only replaced
    guarded: frozenset[str] = frozenset()  # tested by `typeof` in an enclosing `if`
    depends: bool = False  # an enclosing `if` or `for` depends on more than the markup
    main: bool = False  # the template's own markup; POML drops the schema, tools and runtime of an include


class _Place(NamedTuple):
    """A passage with expressions, with its scope and its kind."""

    passage: Passage
    scope: _Scope
    kind: Kind
    listed: bool = False  # whether a variable that stands there alone may be an empty list, as in an `if` or `for`


class _Search:
    """One run of the inference: walk the elements in POML's order and collect what their expressions use."""

    def __init__(self, home: Path, read: Callable[[Path], str | None] | None) -> None:
        self.home = home
        self.given = read
        self.uses: list[tuple[int, int, Use]] = []  # with the node and the offset
        self.needed: set[str] = set()
        self.listed: set[str] = set()  # used only in ways that work with an empty list
        self.messages: dict[str, None] = {}
        self.passed: dict[str, None] = {}
        self.expressions: list[tuple[int, int, str]] = []
        self.patterns: set[str] = set()
        self.includes: dict[Path, None] = {}
        self.assets: dict[Path, None] = {}
        self.absolute: dict[Path, bool] = {}
        self.not_utf8: dict[Path, Problem] = {}
        self.parts: dict[str, bool] = {}  # part of the frame -> whether it depends on more than the markup
        self.seen: set[tuple[Path, frozenset[str], frozenset[str]]] = set()
        self.reads = self.has_speakers = False
        self.node = 0  # the number of the current node; an included file's nodes follow the include

    def result(self) -> Inference:
        uses = tuple(use for _, _, use in sorted(self.uses, key=lambda found: found[:2]))
        names = dict.fromkeys(use.name for use in uses)
        needed = self.needed | (self.listed - self.messages.keys())
        return Inference(
            variables=tuple(name for name in names if name in needed),
            optional=tuple(name for name in names if name not in needed),
            messages=tuple(self.messages),
            passed=tuple(name for name in self.passed if name not in self.messages),
            uses=uses,
            expressions=tuple(code for _, _, code in sorted(self.expressions, key=lambda found: found[:2])),
            includes=tuple(self.includes),
            assets=tuple(file for file in self.assets if file not in self.includes),
            absolute=frozenset(file for file, always in self.absolute.items() if always),
            not_utf8=tuple(self.not_utf8.values()),
            reads=self.reads,
            parts=frozenset(self.parts),
            static=frozenset(part for part, depends in self.parts.items() if not depends),
            has_speakers=self.has_speakers,
            patterns=frozenset(self.patterns),
        )

    def walk(self, nodes: Iterable[Element | Passage], scope: _Scope) -> None:
        pending = [(iter(nodes), scope)]  # not recursive: markup may be nested to any depth
        while pending:
            siblings, scope = pending[-1]
            node = next(siblings, None)
            self.node += 1
            if node is None:
                pending.pop()
            elif isinstance(node, Passage):
                self.text(_Place(node, scope, "text"))
            elif node.name == "stylesheet":
                self.reads |= "src" in node.text().text.replace("-", "").lower()
            elif node.name != "context":
                self.reads |= any(key.replace("-", "") == "src" for key, _ in node.attributes)
                if node.name == "let":
                    self.let(node, scope)
                else:
                    pending.append(self.element(node, scope))

    def element(self, element: Element, scope: _Scope) -> tuple[Iterator[Element | Passage], _Scope]:
        """Read an element's attributes; return its content and the scope of that content."""
        scope = self.repeated(element, scope)
        self.has_speakers |= element.name.replace("-", "") in _SPEAKERS
        depends = False
        wanted = _ATTRIBUTES.get(element.name)
        for key, value in element.attributes:
            self.has_speakers |= key == "speaker"
            if key not in {"for", "if"} and (wanted is None or key in wanted):
                history = element.name == "conversation" and key == "messages" and self.history(value, scope)
                depends |= self.text(_Place(value, scope, "attribute", bool(history)))
        if element.name == "include":
            return self.included(element, scope)
        if element.name in _READERS and (source := element.find("src").text) and "{{" not in source:
            # POML resolves it against the template's folder, not against the include's.
            self.assets[self.file(self.home, source)] = None
        part = _PARTS.get(element.name)
        if part is None:
            content = () if element.name == "meta" or not is_known(element.name) else element.children
            return iter(content), scope
        if part != "runtime":
            depends |= self.schema(element, scope)
        if scope.main:
            self.parts[part] = self.parts.get(part, False) or depends or scope.depends
        return iter(()), scope

    def history(self, value: Passage, scope: _Scope) -> bool:
        """Record the variables in the ``messages`` of a ``<conversation>``; return whether it is a single variable."""
        codes = [code for _, code in expressions(value.text)]
        alone = len(codes) == 1 and value.text.strip().strip("{}").strip() == codes[0] and is_identifier(codes[0])
        names = [use.name for code in codes if not _MAKES_MESSAGES.search(code) for use in analyse(code).uses]
        (self.messages if alone else self.passed).update({name: None for name in names if self.free(name, scope)})
        return alone

    def repeated(self, element: Element, scope: _Scope) -> _Scope:
        """Read ``for`` and then ``if``, whatever their order in the tag; return the scope after them."""
        loop, condition = element.find("for"), element.find("if")
        if loop.text and (parts := split_loop(loop.text)) is None:
            # POML refuses it, so its words do not count as variables.
            scope = scope._replace(own={**scope.own, **dict.fromkeys(WORD.findall(loop.text), True)})
        elif loop.text and parts is not None:
            item, start, code = parts
            depends = self.read(code, start, _Place(loop, scope, "for", listed=True))
            own = dict.fromkeys(("loop", *self.bound(item)), depends)
            scope = scope._replace(own={**scope.own, **own}, depends=scope.depends or depends)
            self.defaults(loop._replace(text=item), scope, "for")
        if condition.text:
            start, code = unwrapped(condition.text)
            depends = self.read(code, start, _Place(condition, scope, "if", listed=True))
            guarded = scope.guarded | analyse(code).tested
            scope = scope._replace(guarded=guarded, depends=scope.depends or depends)
        return scope

    def included(self, element: Element, scope: _Scope) -> tuple[Iterator[Element | Passage], _Scope]:
        source = element.find("src").text
        nothing: tuple[Iterator[Element | Passage], _Scope] = iter(()), scope
        if not source:
            return nothing
        file = self.file(scope.folder, source)
        self.includes[file] = None
        bound = {**scope.leaking, **scope.own}
        # The same file with the same names bound adds nothing new; this also ends cycles.
        visit = file, frozenset(bound), scope.guarded
        text = None if visit in self.seen else self.read_file(file)
        if text is None:
            return nothing
        self.seen.add(visit)
        root = parse_markup(text)
        inside = scope._replace(source=SourceText(text, file), folder=file.parent, leaking=bound, own={}, main=False)
        return iter(root.children if root.name == "poml" else [root]), inside

    def let(self, element: Element, scope: _Scope) -> None:
        name, source, value = element.find("name"), element.find("src").text, element.find("value")
        depends = bool(source)  # a file is not part of the markup
        file = self.file(scope.folder, source)
        if source:
            self.assets[file] = None
        if name.text and value.text and not source:
            start, code = unwrapped(value.text)
            depends = self.read(code, start, _Place(value, scope, "value"))
        names: Iterable[str] = self.bound(name.text) if name.text else ()
        if not name.text and source:
            names = _json_object(self.read_file(file) or "")
        elif not name.text and not value.text:
            names = _json_object(element.text().text)
        scope.leaking.update(dict.fromkeys(names, depends))
        self.defaults(name, scope, "value")

    def bound(self, pattern: str) -> list[str]:
        names = bound_by(pattern)
        if names != [pattern.strip()]:
            self.patterns.update(names)
        return names

    def schema(self, element: Element, scope: _Scope) -> bool:
        passage, parser = element.text(), element.find("parser").text
        text = passage.text.strip()
        if parser not in {"json", "eval"}:  # not given, or itself an expression
            parser = "json" if text.startswith("{") else "eval"
        if parser == "json":
            return self.text(_Place(passage, scope, "text"))
        start, code = unwrapped(text)
        start += len(passage.text) - len(passage.text.lstrip())
        scope = scope._replace(own={"z": False, **scope.leaking, **scope.own})
        return self.read(code, start, _Place(passage, scope, "schema"))

    def text(self, place: _Place) -> bool:
        """Read every expression in a passage, and return whether one of them depends on more than the markup."""
        depends = False
        for start, code in expressions(place.passage.text):
            depends |= self.read(code, start, place)
        return depends

    def read(self, code: str, start: int, place: _Place) -> bool:
        """Record what an expression uses; return whether it depends on more than the markup."""
        self.expressions.append((self.node, place.passage.at(start), code))
        return self.note(code, start, place)

    def defaults(self, pattern: Passage, scope: _Scope, kind: Kind) -> None:
        """Record what the default values of a pattern use, such as ``c`` in ``{a, b = c}``."""
        if "=" in pattern.text:
            self.note(f"({pattern.text}) => 0", -1, _Place(pattern, scope, kind))

    def note(self, code: str, start: int, place: _Place) -> bool:
        scope = place.scope
        analysis = analyse(_ENTITIES.sub(lambda entity: _ENTITY[entity[1]], code))
        depends = analysis.broken
        for at, name, how in analysis.uses:
            if not self.free(name, scope):
                depends |= scope.own.get(name, scope.leaking.get(name, name in _OUTSIDE))
                continue
            depends = True
            offset = place.passage.at(start + at)
            guarded = how == TESTED or name in analysis.tested or name in scope.guarded
            use = Use(name, scope.source, offset, place.kind, code, guarded)
            self.uses.append((self.node, offset, use))
            if not guarded:
                (self.listed if how == LENGTH or (place.listed and how == ALONE) else self.needed).add(name)
        for name in analysis.assigned:
            if name not in scope.own:
                scope.leaking.setdefault(name, depends)
        return depends

    def file(self, folder: Path, source: str) -> Path:
        """Return the file that a ``src`` names, and record whether it is only named by absolute paths."""
        file = Path(os.path.abspath(folder / source))  # noqa: PTH100 - like Node's path.join, it does not follow links
        self.absolute[file] = self.absolute.get(file, True) and os.path.isabs(source)  # noqa: PTH117
        return file

    def read_file(self, file: Path) -> str | None:
        if self.given is not None:
            return self.given(file)
        content = read_file(file)
        if content is None:
            return None
        text, problem = decode(content, str(file))
        if problem is not None:
            self.not_utf8[file] = problem
        return text

    def free(self, name: str, scope: _Scope) -> bool:
        return not (name in scope.own or name in scope.leaking or name in _GLOBALS) and is_identifier(name)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
