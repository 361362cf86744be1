"""A template at one moment: its markup, its variables, and the files that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pomlflow.exceptions import Problem
from pomlflow.record import PromptFile
from pomlflow.template.files import sha256
from pomlflow.template.markup import SourceText
from pomlflow.template.names import relative_path

Kind = Literal["text", "attribute", "for", "if", "value", "schema"]


class Expression(NamedTuple):
    """One expression in a markup.

    Attributes:
        code: The JavaScript, without braces.
        source: The text with the expression; its file is None for the template's own markup.
        offset: The offset of the code in that text.
        kind: Where it stands: in an element's text, in its ``for``, its ``if`` or another attribute, in the ``value``
            of a ``<let>``, or in a schema in JavaScript.
    """

    code: str
    source: SourceText
    offset: int
    kind: Kind


class Use(NamedTuple):
    """One use of a variable in an expression.

    Attributes:
        name: The variable's name.
        expression: The expression.
        offset: The offset of the name in the text that has the expression.
        guarded: Whether ``typeof`` tests the variable, in the expression or in an ``if`` around it.
    """

    name: str
    expression: Expression
    offset: int
    guarded: bool = False

    @property
    def alone(self) -> bool:
        """Whether the expression is nothing but the variable."""
        return self.expression.code.strip() == self.name

    @property
    def file(self) -> Path | None:
        """The included file with the use; None for the template's own markup."""
        return self.expression.source.file

    @property
    def position(self) -> tuple[int, int]:
        """The line and the column, both from 1, the column in characters."""
        return self.expression.source.locate(self.offset)[:2]


@dataclass(frozen=True)
class Inference:
    """What was inferred from a markup: its variables, files and parts.

    Attributes:
        variables: The required variables, in order of first use. That is reading order, with an included file at the
            place of its ``<include>``. A variable that only one branch needs (``a ? b : c``, an element's ``if``) is
            required.
        optional: The optional variables, in the same order. A variable is optional if ``typeof`` guards each use of it,
            in the same expression or in the ``if`` of an enclosing element. Message histories (`messages`) are
            optional too; their default is an empty list.
        messages: The variables that are by themselves the ``messages`` of a ``<conversation>``. Such a variable is
            required if another use needs more than an empty list: any use except its ``length``, a test in an ``if``
            and a loop in a ``for``.
        message_sources: The variables whose items are the ``messages`` of a ``<conversation>`` by an expression, such
            as ``{{history.slice(-6)}}``. Expressions with a function do not count, since they make new messages.
        uses: Every use of every variable, in the same order.
        expressions: Every expression, in the same order.
        includes: Every file that an ``<include>`` names, also in an included file, missing ones too, without repeats.
        assets: Every other file that the markup names without a variable (a picture, a document, a ``<let src>``),
            missing ones too, without repeats.
        absolute: Which of these files the markup names only by their absolute paths.
        not_utf8: The problems of files that must be UTF-8 and are not.
        names_files: Whether anything in the markup names a file, even by a variable.
        fields: Which of ``"schema"``, ``"tools"`` and ``"runtime"`` the markup gives the frame.
        static_fields: Which of these depend on nothing but the markup. A field is not static if it, or an ``if`` or a
            ``for`` around it, uses a variable, a file, the clock or the process, directly or by a ``<let>``.
        has_speakers: Whether the markup sets speakers, by an element such as ``<system-msg>`` or by ``speaker=``.
    """

    variables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    message_sources: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()
    expressions: tuple[Expression, ...] = ()
    includes: tuple[Path, ...] = ()
    assets: tuple[Path, ...] = ()
    absolute: frozenset[Path] = frozenset()
    not_utf8: tuple[Problem, ...] = ()
    names_files: bool = False
    fields: frozenset[str] = frozenset()
    static_fields: frozenset[str] = frozenset()
    has_speakers: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A template at one moment.

    Attributes:
        source: The markup.
        digest: The digest that identifies the content: `pomlflow.record.content_digest` of the markup and `files`.
        inference: The variables and files of the markup.
        folder: The folder that relative sources are resolved against.
        stamps: The metadata of each file before it was read (`pomlflow.template.files.stamp`).
        files: The files that the markup names, includes first.
        path: The markup's own file; None for inline markup and for a prompt in the registry.
        trace_path: The path of that file as traces show it, see `RenderRecord.path`.
        version: The number of the version in the registry; None for other markup, also for an optimiser's candidate.
        uri: The URI of the version in the registry, ``prompts:/name/version``.
        roots: The only folders that untrusted markup may read; None for trusted markup, to which the settings apply.
        missing: Pairs of the absolute path of a file that does not exist, and the reason.
        runtime: The settings of the registry's version, for those that the markup does not set.
        register: False if the markup must never become a version of its own; None otherwise.
    """

    source: str
    digest: str
    inference: Inference
    folder: Path
    stamps: tuple[tuple[Path, object], ...] = ()
    files: tuple[PromptFile, ...] = ()
    path: Path | None = None
    trace_path: str | None = None
    version: int | None = None
    uri: str | None = None
    roots: tuple[str, ...] | None = None
    missing: tuple[tuple[str, str], ...] = ()
    runtime: Mapping[str, Any] = field(default_factory=dict)
    register: bool | None = None

    @property
    def label(self) -> str | None:
        """The name of the markup in errors: its file, or its URI in a registry; None for inline markup."""
        if self.path is not None:
            return str(self.path)
        return self.uri if self.uri is None or self.version is not None else f"the candidate for {self.uri}"


class Origin(Protocol):
    """The source of a template that is neither a file nor inline markup: a prompt in a registry.

    Attributes:
        name: The prompt's name in the registry.
        uri: The requested URI: ``prompts:/name@alias`` or ``prompts:/name/3``.
        refresh: Seconds between checks for a newer version.
    """

    name: str
    uri: str
    refresh: float

    def current(self) -> Snapshot:
        """Return the current template without waiting; the same object as long as it does not change."""


def prompt_files(inference: Inference, folder: Path) -> tuple[PromptFile, ...]:
    """Return the files that a markup in `folder` names; a missing file has the digest of an empty one."""
    found = []
    for file in (*inference.includes, *inference.assets):
        relative = relative_path(str(file), str(folder)) or file.name
        path = file.as_posix() if file in inference.absolute else relative
        found.append(PromptFile(path, sha256(file), file, folder))
    return tuple(found)
