"""A template at one moment: its markup, its variables, and the files that it names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pomlflow.engine.file_access import read_file
from pomlflow.exceptions import Problem
from pomlflow.record import PromptFile
from pomlflow.template.markup import Document, SourceText
from pomlflow.template.names import relative_path

Kind = Literal["text", "attribute", "for", "if", "value", "schema"]


class Expression(NamedTuple):
    """One expression in a markup."""

    code: str  # the JavaScript, without braces
    source: SourceText
    offset: int  # of the code in that text
    kind: Kind
    attribute: str = ""  # for the kind `attribute`


class Use(NamedTuple):
    """One use of a variable in an expression."""

    name: str
    expression: Expression
    offset: int  # of the name in the text that has the expression
    guarded: bool = False  # ``typeof`` tests it, in the expression or in an ``if`` around it
    conditional: bool = False  # its element, or one around it, has an ``if`` or a ``for``

    @property
    def alone(self) -> bool:
        """Whether the expression is nothing but the variable."""
        return self.expression.code.strip() == self.name


@dataclass(frozen=True)
class Inference:
    """What was inferred from a markup: its variables, files and parts, in the order of POML's evaluation."""

    variables: tuple[str, ...] = ()  # required, also if only one branch needs it: ``a ? b : c``, an element's ``if``
    optional: tuple[str, ...] = ()  # guarded by ``typeof`` at each use, or a history, which is an empty list by default
    messages: tuple[str, ...] = ()  # each is the whole ``messages`` of a ``<conversation>``: ``{{history}}``
    message_sources: tuple[str, ...] = ()  # whose items become its messages, as in ``{{history.slice(-6)}}``
    uses: tuple[Use, ...] = ()
    expressions: tuple[Expression, ...] = ()
    sources: tuple[SourceText, ...] = ()  # the markup, and each included file that exists
    includes: tuple[Path, ...] = ()  # also those of included files, and missing ones
    assets: tuple[Path, ...] = ()  # every other file that is named without a variable, missing ones too
    absolute: frozenset[Path] = frozenset()  # files that the markup names only by their absolute paths
    fields: frozenset[str] = frozenset()  # which of "schema", "tools" and "runtime" the markup defines
    static_fields: frozenset[str] = frozenset()  # those with neither a condition, a loop nor a variable
    has_speakers: bool = False  # by an element such as ``<system-msg>`` or by ``speaker=``


@dataclass(frozen=True)
class Snapshot:
    """A template at one moment."""

    source: str
    digest: str  # `pomlflow.record.content_digest` of the markup and `files`
    inference: Inference
    folder: Path  # that relative sources are resolved against
    stamps: tuple[tuple[Path, object], ...] = ()  # of each file before it was read
    files: tuple[PromptFile, ...] = ()  # that the markup names, includes first
    path: Path | None = None  # the markup's own file
    trace_path: str | None = None  # see `RenderRecord.path`
    version: int | None = None  # the number of the version in the registry; None for an optimiser's candidate
    uri: str | None = None  # of that version
    roots: tuple[str, ...] | None = None  # the only folders that untrusted markup may read; None for trusted markup
    missing: tuple[tuple[str, str], ...] = ()  # the absolute path of each file that does not exist, and the reason
    runtime: Mapping[str, Any] = field(default_factory=dict)  # settings of the version that the markup may override
    register: bool | None = None  # False if the markup must never become a version of its own

    @property
    def label(self) -> str | None:
        """The name of the markup in errors: its file, or its URI in a registry; None for inline markup."""
        if self.path is not None:
            return str(self.path)
        return self.uri if self.uri is None or self.version is not None else f"the candidate for {self.uri}"

    def file_of(self, source: SourceText) -> str | None:
        """Return the name of one of the template's files in errors; None for inline markup."""
        return self.label if source.file is None else str(source.file)

    def problem(
        self, message: str, kind: str, source: SourceText, offset: int, width: int, remedy: str | None = None
    ) -> Problem:
        """Return a problem at an offset in one of the template's files."""
        line, column, text = source.locate(offset)
        return Problem(message, kind, self.file_of(source), line, column, text, width, remedy)


class Page(NamedTuple):
    """The markup of a template or of a file that it includes, for the rules of `pomlflow.template.lint`."""

    document: Document
    snapshot: Snapshot
    stylesheet: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        """The markup."""
        return self.document.source.text

    @property
    def folder(self) -> Path:
        """The folder that an include's source is resolved against."""
        file = self.document.source.file
        return self.snapshot.folder if file is None else file.parent

    @property
    def expressions(self) -> list[Expression]:
        """Every expression of this file, except schemas in JavaScript."""
        found = self.snapshot.inference.expressions
        return [one for one in found if one.source.file == self.document.source.file and one.kind != "schema"]


class Origin(Protocol):
    """The source of a template that is neither a file nor inline markup: a prompt in a registry."""

    name: str
    uri: str  # as requested: prompts:/name@alias or prompts:/name/3
    refresh: float  # seconds between checks for a newer version

    def current(self) -> Snapshot:
        """Return the current template without blocking; the same object as long as it does not change."""


def prompt_files(inference: Inference, folder: Path) -> tuple[PromptFile, ...]:
    """Return the files that a markup in `folder` names; a missing file has the digest of an empty one."""
    found = []
    for file in (*inference.includes, *inference.assets):
        relative = relative_path(str(file), str(folder)) or file.name
        path = file.as_posix() if file in inference.absolute else relative
        found.append(PromptFile(path, _sha256(file, stamp(file)), file, folder))
    return tuple(found)


def stamp(file: Path) -> object:
    """Return metadata of a file that changes whenever the file does; None for a missing file."""
    try:
        at = os.stat(file)  # noqa: PTH116 - half the cost of Path.stat
    except (OSError, ValueError):  # ValueError: a null character in an include's path
        return None
    return at.st_mtime_ns, at.st_ctime_ns, at.st_size, at.st_ino  # a copy can restore mtime, but not ctime


@lru_cache(maxsize=1024)  # frameworks copy templates often, and a document may be large
def _sha256(file: Path, _stamp: object) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; that of no bytes for a missing file or a folder."""
    return hashlib.sha256(read_file(file) or b"").hexdigest()
