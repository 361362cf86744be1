"""A template at one moment: its markup, what that takes, and the files that it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pomlflow.exceptions import Problem
from pomlflow.record import PromptFile
from pomlflow.template.files import sha256
from pomlflow.template.markup import SourceText

__all__ = ["Inference", "Kind", "Origin", "Snapshot", "Use", "prompt_files"]

Kind = Literal["text", "attribute", "for", "if", "value", "schema"]


class Use(NamedTuple):
    """One use of a variable in an expression.

    `offset` is its place in `source`, whose file is None for the root; `kind` is the kind of place: an element's text,
    the ``for``, the ``if`` or another attribute, the ``value`` of a ``<let>``, or a schema in JavaScript. A `guarded`
    variable is tested by ``typeof``, in the expression or in an ``if`` around it.
    """

    name: str
    source: SourceText
    offset: int
    kind: Kind
    expression: str
    guarded: bool = False

    @property
    def alone(self) -> bool:
        """Whether the expression is nothing but the variable."""
        return self.expression.strip() == self.name

    @property
    def file(self) -> Path | None:
        """The included file that it stands in; None for the markup itself."""
        return self.source.file

    @property
    def line(self) -> int:
        """The line, from 1."""
        return self.source.place(self.offset)[0]

    @property
    def column(self) -> int:
        """The column, from 1, in characters."""
        return self.source.place(self.offset)[1]


@dataclass(frozen=True)
class Inference:
    """What a markup takes.

    Attributes:
        variables: The variables that it needs, in order of first use: reading order, an include's at its place. One
            that only some branch needs (``a ? b : c``, an element's ``if``) is among them.
        optional: Those that it renders without, in the same order: a variable whose every use is guarded by
            ``typeof`` in the same expression or in the ``if`` of an enclosing element, and the message histories of
            `messages`, which are an empty list where they are not given.
        messages: The variables that are, alone, the ``messages`` of a ``<conversation>``. One of them is in
            `variables` instead of `optional` when another use needs more than an empty list: any use but its
            ``length``, its test in an ``if`` and its loop in a ``for``.
        passed: Those whose items an expression passes on as the ``messages`` of a ``<conversation>``:
            ``{{history.slice(-6)}}``; not in an expression with a function, which makes messages of its own.
        uses: Every use of each of the variables, in the same order.
        expressions: The raw text of every expression, without the braces.
        includes: Every file that an ``<include>`` leads to, missing ones too, without repeats.
        assets: Every other file that the markup names without a variable (a picture, a document, a ``<let src>``),
            missing ones too, without repeats.
        absolute: Those of both that the markup names by their absolute paths only.
        not_utf8: What is wrong with those that must be UTF-8 and are not.
        reads: Whether anything in the markup names a file, by a variable too.
        parts: Which of ``"schema"``, ``"tools"`` and ``"runtime"`` the markup has.
        static: Those of them that depend on nothing but the markup: no variable, nor a ``<let>`` that comes of one or
            of a file, the clock or the process, in them or in an ``if`` or ``for`` around them.
        has_speakers: Whether it gives messages a speaker, by an element such as ``<system-msg>`` or a ``speaker=``.
        patterns: The names that are bound by a pattern, ``[key, value] in pairs``, in a ``for`` or a ``<let>``.
    """

    variables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()
    expressions: tuple[str, ...] = ()
    includes: tuple[Path, ...] = ()
    assets: tuple[Path, ...] = ()
    absolute: frozenset[Path] = frozenset()
    not_utf8: tuple[Problem, ...] = ()
    reads: bool = False
    parts: frozenset[str] = frozenset()
    static: frozenset[str] = frozenset()
    has_speakers: bool = False
    patterns: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Snapshot:
    """A template at one moment.

    `digest` is the content's identity, `pomlflow.record.content_digest` of the markup and `files`, those that the
    markup names, includes first; `stamps` has the metadata of each file before it was read. `folder` is what relative
    sources are resolved against. `path` is the markup's own file, and `relative` the same from the prompt root. Of a
    prompt in the registry: `version` is its number, `uri` its ``prompts:/name/version``, `roots` the only folders that
    it may read (None for trusted markup, for which the user's settings hold), `missing` why a file that it names does
    not exist, by its absolute path, `runtime` the settings for what the markup leaves open. `register` is False where
    it must never become a version of its own.
    """

    source: str
    digest: str
    inference: Inference
    folder: Path
    stamps: tuple[tuple[Path, object], ...] = ()
    files: tuple[PromptFile, ...] = ()
    path: Path | None = None
    relative: str | None = None
    version: int | None = None
    uri: str | None = None
    roots: tuple[str, ...] | None = None
    missing: tuple[tuple[str, str], ...] = ()
    runtime: Mapping[str, Any] = field(default_factory=dict)
    register: bool | None = None


class Origin(Protocol):
    """The source of a template that is neither a file nor given markup: a prompt in a registry.

    Attributes:
        name: The prompt's name there.
        uri: The requested URI: ``prompts:/name@alias`` or ``prompts:/name/3``.
        refresh: Seconds after which it is checked for a newer version.
    """

    name: str
    uri: str
    refresh: float

    def current(self) -> Snapshot:
        """Return the current template without waiting; the same object as long as it does not change."""


def prompt_files(inference: Inference, folder: Path) -> tuple[PromptFile, ...]:
    """Read the files that a markup in `folder` names; a missing one has the digest of an empty file."""
    return tuple(
        PromptFile(file.as_posix() if file in inference.absolute else _shown(file, folder), sha256(file), file, folder)
        for file in (*inference.includes, *inference.assets)
    )


def _shown(file: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive
        return file.name
