"""What a render is requested with, and what it results in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pomlflow.engine.serialize import dumps

__all__ = ["Request", "Result"]

_OPTIONAL = ("stylesheet", "path", "natives", "placeholders")


class Request(NamedTuple):
    """One render.

    Attributes:
        markup: The markup.
        context: The variables as a JSON object, from `encode`.
        revive: Whether it holds what JSON cannot carry, from `encode`.
        stylesheet: A stylesheet in addition to the markup's own, or None.
        path: The absolute path that relative sources are resolved against, or None.
        inline: Whether that path only stands for a folder, and errors must not show it.
        label: The name of inline markup in errors; None for ``<inline>``.
        roots: The only folders that it may read, for markup that is not trusted, which is rendered in Node processes
            of its own; None for those of the settings.
        chat: Whether to give messages, or one text.
        natives: For a variable that is a list of messages with a native form, a mark for each: where a
            ``<conversation>`` shows the message, its mark comes out.
        placeholders: Variables without a value, for a check: each renders as its own name, and problems that the
            missing value may have caused are left out.
        keep_whitespace: Whether a variable that stands alone in text, ``{{name}}``, keeps its newlines and runs of
            blanks, which POML collapses; not where JSON, YAML or a table is written, whose syntax they would break.
    """

    markup: str
    context: bytes = b"{}"
    revive: bool = False
    stylesheet: Mapping[str, Any] | None = None
    path: str | None = None
    inline: bool = False
    label: str | None = None
    roots: tuple[str, ...] | None = None
    chat: bool = True
    natives: Mapping[str, Sequence[str]] | None = None
    placeholders: Sequence[str] | None = None
    keep_whitespace: bool = False

    @property
    def file(self) -> str | None:
        """The file, for messages; None for inline markup without a label."""
        return self.label if self.inline else self.path

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.file or "<inline>"

    def line(self) -> bytes:
        """Return the JSON for the worker, without the opening brace; raises `VariableError` for the stylesheet."""
        fields: dict[str, Any] = {"markup": self.markup, "chat": self.chat, "revive": self.revive}
        if self.keep_whitespace:
            fields["keep_whitespace"] = True
        for name in _OPTIONAL:
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        head, _ = dumps(fields)
        return b'%b,"context":%b}' % (head[1:-1], self.context)


class Result(NamedTuple):
    """What a render gave.

    Attributes:
        output: What ``poml.poml(format="dict")`` gives.
        node_ms: Milliseconds inside Node, from the request's JSON to the response's.
        kept_whitespace: Whether there was whitespace to keep, and it was kept.
    """

    output: dict[str, Any]
    node_ms: float
    kept_whitespace: bool
