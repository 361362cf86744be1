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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pomlflow.engine.file_access import decode, read_file
from pomlflow.engine.serialize import is_identifier
from pomlflow.template.javascript import WORD, analyse, bound_by
from pomlflow.template.markup import (
    ENTITIES,
    ENTITY,
    SCHEMAS,
    TOOLS,
    Element,
    Passage,
    SourceText,
    expressions,
    is_known,
    parse,
    split_loop,
    unwrapped,
)
from pomlflow.template.source import Expression, Inference, Kind, Use

# Globals whose values change between renders or machines: an expression with one of them is not static.
_DYNAMIC_GLOBALS = frozenset({"Date", "Math", "globalThis", "process"})
_CONSTANT_GLOBALS = frozenset(
    "Infinity NaN undefined arguments eval isFinite isNaN parseFloat parseInt decodeURI decodeURIComponent encodeURI "
    "encodeURIComponent escape unescape AggregateError Array ArrayBuffer AsyncDisposableStack Atomics BigInt "
    "BigInt64Array BigUint64Array Boolean DataView DisposableStack Error EvalError FinalizationRegistry Float16Array "
    "Float32Array Float64Array Function Int8Array Int16Array Int32Array Intl Iterator JSON Map Number Object "
    "Promise Proxy RangeError ReferenceError Reflect RegExp Set SharedArrayBuffer String SuppressedError Symbol "
    "SyntaxError TypeError URIError Uint8Array Uint8ClampedArray Uint16Array Uint32Array WeakMap WeakRef WeakSet "
    "AbortController AbortSignal Buffer TextDecoder TextEncoder URL URLSearchParams WebAssembly atob btoa "
    "clearImmediate clearInterval clearTimeout console fetch queueMicrotask setImmediate setInterval setTimeout "
    "structuredClone __proto__".split()
)
_GLOBALS = _DYNAMIC_GLOBALS | _CONSTANT_GLOBALS
# The elements that define a field of the frame.
_FIELDS = {"outputschema": "schema", "runtime": "runtime", **dict.fromkeys(TOOLS, "tools")}
# The attributes that POML evaluates, other than `for` and `if`; of elements that are not listed, it evaluates them all.
EVALUATED = {
    "include": (), "meta": (), "outputschema": ("parser",), **dict.fromkeys(TOOLS, ("name", "description", "parser")),
}  # fmt: skip
# The elements that read a file, other than <include> and <let>.
READERS = frozenset("audio doc document folder image img table webpage".split())
MESSAGE_ELEMENTS = frozenset("systemmsg systemmessage humanmsg humanmessage aimsg aimessage conversation".split())
# Code that makes other values out of the items of a history, so that these are not the messages.
_MAKES_MESSAGES = re.compile(r"=>|\bfunction\b|\bmap\b")


def infer(markup: str, folder: Path | None = None, *, read: Callable[[Path], str | None] | None = None) -> Inference:
    """Return the variables and files of a markup.

    `folder` is that of the markup. `read` returns the text of an included or ``<let>`` file, or None if the file does
    not exist; by default it reads from disk.
    """
    folder = Path(os.path.abspath(folder or "."))  # noqa: PTH100
    collector = _Collector(folder, read or _read)
    document = parse(markup.removeprefix("\ufeff"))
    root = document.content()
    context = [child for child in root.children if isinstance(child, Element) and child.kind == "context"]
    bound = _json_keys(context[0].text().text) if len(context) == 1 else set()
    collector.sources[None] = document.source
    collector.walk([root], _Scope(document.source, folder, bound, is_main=True))
    return collector.result()


class _Scope(NamedTuple):
    """The names that are bound at an expression, and the elements around it."""

    source: SourceText
    folder: Path
    in_file: set[str]  # bound by <let>: for the rest of the file, shared by all its elements
    in_element: frozenset[str] = frozenset()  # bound by a loop
    guarded: frozenset[str] = frozenset()  # tested by `typeof` in an enclosing `if`
    conditional: bool = False  # whether there is an enclosing `if` or `for`
    is_main: bool = False  # the template's own markup; POML drops the schema, tools and runtime of an include


class _Collector:
    """Walks the elements in POML's order and collects what their expressions use."""

    def __init__(self, folder: Path, read: Callable[[Path], str | None]) -> None:
        self.folder = folder
        self.read = read
        self.uses: list[Use] = []
        self.expressions: list[Expression] = []
        self.messages: dict[str, None] = {}
        self.message_sources: dict[str, None] = {}
        self.includes: dict[Path, None] = {}
        self.assets: dict[Path, None] = {}
        self.absolute: dict[Path, bool] = {}
        self.fields: dict[str, bool] = {}  # field of the frame -> whether it is static
        self.constants: set[str] = set()  # bound by a static <let>
        self.sources: dict[Path | None, SourceText] = {}
        self.visited: set[tuple[Path, frozenset[str], frozenset[str]]] = set()
        self.has_speakers = False

    def result(self) -> Inference:
        names = dict.fromkeys(use.name for use in self.uses)
        needed = {use.name for use in self.uses if not use.guarded} - self.messages.keys()
        return Inference(
            variables=tuple(name for name in names if name in needed),
            optional=tuple(name for name in names if name not in needed),
            messages=tuple(self.messages),
            message_sources=tuple(name for name in self.message_sources if name not in self.messages),
            uses=tuple(self.uses),
            expressions=tuple(self.expressions),
            sources=tuple(self.sources.values()),
            includes=tuple(self.includes),
            assets=tuple(file for file in self.assets if file not in self.includes),
            absolute=frozenset(file for file, always in self.absolute.items() if always),
            fields=frozenset(self.fields),
            static_fields=frozenset(field for field, static in self.fields.items() if static),
            has_speakers=self.has_speakers,
        )

    def walk(self, nodes: Iterable[Element | Passage], scope: _Scope) -> None:
        pending = [(iter(nodes), scope)]  # not recursive: markup may be nested to any depth
        while pending:
            siblings, scope = pending[-1]
            node = next(siblings, None)
            if node is None:
                pending.pop()
            elif isinstance(node, Passage):
                self.add_passage(node, scope, "text")
            elif node.kind == "let":
                self.add_let(node, scope)
            elif node.kind not in {"stylesheet", "context"}:
                pending.append(self.add_element(node, scope))

    def add_element(self, element: Element, scope: _Scope) -> tuple[Iterator[Element | Passage], _Scope]:
        """Add an element's attributes; return its content and the scope of that content."""
        scope = self.loop_and_condition(element, scope)
        self.has_speakers |= element.kind in MESSAGE_ELEMENTS
        before = len(self.expressions)
        evaluated = EVALUATED.get(element.kind)
        for key, value in element.attributes:
            self.has_speakers |= key == "speaker"
            if key not in {"for", "if"} and (evaluated is None or key in evaluated):
                if element.kind == "conversation" and key == "messages":
                    self.add_messages(value, scope)
                self.add_passage(value, scope, "attribute", key)
        if element.kind == "include":
            return self.included(element, scope)
        if element.kind in READERS and (source := element.find("src").text) and "{{" not in source:
            # POML resolves it against the template's folder, not against the include's.
            self.assets[self.file(self.folder, source)] = None
        field = _FIELDS.get(element.kind)
        if field is None:
            content = () if element.kind == "meta" or not is_known(element) else element.children
            return iter(content), scope
        if element.kind in SCHEMAS:
            self.add_schema(element, scope)
        if scope.is_main:
            self.fields[field] = self.fields.get(field, True) and self.is_static(self.expressions[before:], scope)
        return iter(()), scope

    def add_messages(self, value: Passage, scope: _Scope) -> None:
        """Add the variables in the ``messages`` of a ``<conversation>``."""
        codes = [code for _, code in expressions(value.text)]
        alone = len(codes) == 1 and value.text.strip().strip("{}").strip() == codes[0] and is_identifier(codes[0])
        names = [use.name for code in codes if not _MAKES_MESSAGES.search(code) for use in analyse(code).uses]
        free = {name: None for name in names if self.is_free(name, scope)}
        (self.messages if alone else self.message_sources).update(free)

    def loop_and_condition(self, element: Element, scope: _Scope) -> _Scope:
        """Add ``for`` and then ``if``, whatever their order in the tag; return the scope after them."""
        loop, condition = element.find("for"), element.find("if")
        scope = scope._replace(conditional=scope.conditional or bool(loop.text or condition.text))
        if parts := split_loop(loop.text):
            _, start, code = parts
            self.add_expression(code, start, loop, scope, "for")
        scope = scope._replace(in_element=scope.in_element.union(loop_names(loop.text)))
        if condition.text:
            start, code = unwrapped(condition.text)
            self.add_expression(code, start, condition, scope, "if")
            scope = scope._replace(guarded=scope.guarded | analyse(code).tested)
        return scope

    def included(self, element: Element, scope: _Scope) -> tuple[Iterator[Element | Passage], _Scope]:
        """Return the content of an included file and its scope; none if it was visited with the same names bound."""
        path = element.find("src").text
        nothing: tuple[Iterator[Element | Passage], _Scope] = iter(()), scope
        if not path:
            return nothing
        file = self.file(scope.folder, path)
        self.includes[file] = None
        bound = scope.in_file | scope.in_element
        # The same file with the same names bound adds nothing new; this also ends cycles.
        visit = file, frozenset(bound), scope.guarded
        text = None if visit in self.visited else self.read(file)
        if text is None:
            return nothing
        self.visited.add(visit)
        document = parse(text, file)
        self.sources[file] = source = document.source
        root = document.content()
        inside = scope._replace(source=source, folder=file.parent, in_file=bound, in_element=frozenset(), is_main=False)
        return iter(root.children if root.kind == "poml" else [root]), inside

    def add_let(self, element: Element, scope: _Scope) -> None:
        name, source, value = element.find("name"), element.find("src").text, element.find("value")
        file, before = None, len(self.expressions)
        if source:
            file = self.file(scope.folder, source)
            self.assets[file] = None
        if name.text and value.text and not source:
            start, code = unwrapped(value.text)
            self.add_expression(code, start, value, scope, "value")
        names: Iterable[str] = bound_by(name.text) if name.text else ()
        if not name.text and file is not None:
            names = _json_keys(self.read(file) or "")
        elif not name.text and not value.text:
            names = _json_keys(element.text().text)
        names = set(names)
        scope.in_file.update(names)
        self.constants -= names
        if scope.is_main and not source and self.is_static(self.expressions[before:], scope):
            self.constants |= names

    def add_schema(self, element: Element, scope: _Scope) -> None:
        passage, parser = element.text(), element.find("parser").text
        text = passage.text.strip()
        if parser not in {"json", "eval"}:  # not given, or itself an expression
            parser = "json" if text.startswith("{") else "eval"
        if parser == "json":
            self.add_passage(passage, scope, "text")
            return
        start, code = unwrapped(text)
        start += len(passage.text) - len(passage.text.lstrip())
        scope = scope._replace(in_element=scope.in_element | {"z"})
        self.add_expression(code, start, passage, scope, "schema")

    def add_passage(self, passage: Passage, scope: _Scope, kind: Kind, attribute: str = "") -> None:
        """Add every expression in a passage."""
        for start, code in expressions(passage.text):
            self.add_expression(code, start, passage, scope, kind, attribute)

    def add_expression(
        self, code: str, start: int, passage: Passage, scope: _Scope, kind: Kind, attribute: str = ""
    ) -> None:
        """Add an expression and the variables that it uses."""
        expression = Expression(code, scope.source, passage.at(start), kind, attribute)
        self.expressions.append(expression)
        # POML does not decode an entity, so it is an error there. Its name must not count as a variable.
        analysis = analyse(ENTITY.sub(lambda entity: ENTITIES[entity[1]], code))
        for at, name, _ in analysis.uses:
            if self.is_free(name, scope):
                guarded = name in analysis.tested or name in scope.guarded
                self.uses.append(Use(name, expression, passage.at(start + at), guarded, scope.conditional))

    def file(self, folder: Path, source: str) -> Path:
        """Return the file that a ``src`` names, and record whether it is only named by absolute paths."""
        file = Path(os.path.abspath(folder / source))  # noqa: PTH100 - like Node's path.join, it does not follow links
        self.absolute[file] = self.absolute.get(file, True) and os.path.isabs(source)  # noqa: PTH117
        return file

    def is_static(self, expressions: Sequence[Expression], scope: _Scope) -> bool:
        """Return whether expressions use only constants (and zod in a schema), outside of conditions and loops."""
        known = _CONSTANT_GLOBALS | self.constants
        for expression in expressions:
            analysis = analyse(expression.code)
            others = {use.name for use in analysis.uses} - known
            if analysis.broken or others - ({"z"} if expression.kind == "schema" else set()):
                return False
        return not scope.conditional

    def is_free(self, name: str, scope: _Scope) -> bool:
        return not (name in scope.in_element or name in scope.in_file or name in _GLOBALS) and is_identifier(name)


def loop_names(loop: str) -> list[str]:
    """Return the names that a ``for`` binds; if it is malformed, all its words, so that none counts as a variable."""
    parts = split_loop(loop)
    return ["loop", *(bound_by(parts[0]) if parts else WORD.findall(loop))] if loop else []


def _read(file: Path) -> str | None:
    content = read_file(file)
    return None if content is None else decode(content, str(file))[0]


def _json_keys(text: str) -> set[str]:
    value = json_value(text)
    return set(value) if isinstance(value, dict) else set()


def json_value(text: str) -> Any:
    """Return the value of a JSON text, or None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
