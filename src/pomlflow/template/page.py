"""One file's markup, in the form that the rules of `pomlflow.template.lint` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pomlflow.template.markup import TOOLS, Element, Passage, SourceText
from pomlflow.template.source import Expression, Snapshot

SCHEMAS = frozenset({"outputschema", *TOOLS})
# Elements whose content is not sent in a message.
_NOT_TEXT = SCHEMAS | {"stylesheet", "context", "let", "meta", "runtime"}


class Node(NamedTuple):
    """An element, its name, and the names of the elements around it, in lower case without hyphens."""

    element: Element
    name: str
    inside: frozenset[str]


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
    def values(self) -> list[tuple[Passage, Node]]:
        """The value of every attribute in which POML replaces ``{{…}}``, with its element."""
        return [
            (value, node)
            for node in self.nodes
            for key, value in node.element.attributes
            if key not in {"for", "if"} and node.name not in {"let", "include", "meta"}
        ]

    @cached_property
    def expressions(self) -> list[Expression]:
        """Every expression of this file, except schemas in JavaScript."""
        found = self.snapshot.inference.expressions
        return [one for one in found if one.source.file == self.source.file and one.kind != "schema"]
