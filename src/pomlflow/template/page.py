"""One file's markup, in the form that the rules of `pomlflow.template.lint` read."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pomlflow.template.faults import Fault
from pomlflow.template.markup import TOOLS, Element, Passage, SourceText, expressions, split_loop, unwrapped
from pomlflow.template.source import Snapshot, Use

__all__ = ["SCHEMAS", "Code", "Node", "Page", "Rule"]

SCHEMAS = frozenset({"outputschema", *TOOLS})
# Elements whose content is not sent in a message.
_NOT_TEXT = SCHEMAS | {"stylesheet", "context", "let", "meta", "runtime"}


class Node(NamedTuple):
    """An element, its name, and the names of the elements around it, in lower case without hyphens."""

    element: Element
    name: str
    inside: frozenset[str]


class Code(NamedTuple):
    """An expression, its offset in the source, its element, and its attribute, which is empty in text."""

    text: str
    offset: int
    element: Element
    key: str


@dataclass(frozen=True)
class Page:
    """The markup of a template or of a file that it includes."""

    source: SourceText
    document: Element
    folder: Path
    snapshot: Snapshot
    stylesheet: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        """The markup."""
        return self.source.text

    @cached_property
    def _lines(self) -> list[int]:
        return [0, *(found.end() for found in re.finditer("\n", self.text)), len(self.text) + 1]

    def place(self, offset: int) -> tuple[int, int, str]:
        """Return the line and the column of an offset, both from 1, and the line's text."""
        line = bisect_right(self._lines, offset)
        begin, end = self._lines[line - 1 : line + 1]
        return line, offset - begin + 1, self.text[begin : end - 1].rstrip("\r")

    @cached_property
    def first_uses(self) -> Mapping[str, Use]:
        """The first use of each of the template's variables in this file."""
        found: dict[str, Use] = {}
        for use in self.snapshot.inference.uses:
            if use.file == self.source.file and (use.name not in found or use.offset < found[use.name].offset):
                found[use.name] = use
        return found

    @cached_property
    def nodes(self) -> list[Node]:
        """Every element, in reading order."""
        found: list[Node] = []
        pending = [Node(self.document, "", frozenset())]
        while pending:
            node = pending.pop()
            inside = node.inside | {node.name} - {""}
            children = [child for child in node.element.children if isinstance(child, Element)]
            pending += [Node(child, child.name.replace("-", ""), inside) for child in reversed(children)]
            found.append(node)
        return found

    @cached_property
    def texts(self) -> list[tuple[Passage, Node]]:
        """Every piece of text of a message, with its element."""
        return [
            (child, node)
            for node in self.nodes
            if not _NOT_TEXT & {node.name, *node.inside}
            for child in node.element.children
            if isinstance(child, Passage) and child.text
        ]

    @cached_property
    def values(self) -> list[tuple[Passage, Node, str]]:
        """The value of every attribute in which POML replaces ``{{…}}``, with its element and its name."""
        return [
            (value, node, key)
            for node in self.nodes
            for key, value in node.element.attributes
            if key not in {"for", "if"} and node.name not in {"let", "include", "meta"}
        ]

    @cached_property
    def codes(self) -> list[Code]:
        """Every expression of the page."""
        return list(self._codes())

    def _codes(self) -> Iterator[Code]:
        for text, node in self.texts:
            for start, code in expressions(text.text):
                yield Code(code, text.at(start), node.element, "")
        for value, node, key in self.values:
            for start, code in expressions(value.text):
                yield Code(code, value.at(start), node.element, key)
        for node in self.nodes:
            for key, value in node.element.attributes:
                if key == "if" or (key == "value" and node.name == "let"):
                    start, code = unwrapped(value.text)
                    yield Code(code, value.at(start), node.element, key)
                elif key == "for" and (parts := split_loop(value.text)) is not None:
                    yield Code(parts[2], value.at(parts[1]), node.element, key)


Rule = Callable[[Page], Iterator[Fault]]
