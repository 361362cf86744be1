"""What the engine is asked, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pomlflow.engine.serialize import dumps

__all__ = ["Request", "Result"]


_SELDOM = ("stylesheet", "path", "natives", "stand_ins")


class Request(NamedTuple):
    """One render to be done.

    Attributes:
        markup: The markup.
        context: The variables as a JSON object, from `encode`.
        revive: Whether it holds what JSON cannot carry, from `encode`.
        stylesheet: A stylesheet beside the markup's own, or None.
        path: The absolute path that relative sources are resolved against, or None.
        inline: Whether that path only stands for a folder, and errors are not to tell it.
        label: What errors call inline markup; None for ``<inline>``.
        roots: The only folders that it may read, for markup that is not trusted; None for those of the settings.
        chat: Whether to give messages, or one text.
        natives: For a variable that is a list of messages with a native form, a mark for each: where a
            ``<conversation>`` shows the message, its mark comes out.
        stand_ins: Variables without a value, for a check: each stands for itself, and no problem that may be its own
            is told.
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
    stand_ins: Sequence[str] | None = None
    keep_whitespace: bool = False

    @property
    def file(self) -> str | None:
        """The file, for messages; None for inline markup without a label."""
        return self.label if self.inline else self.path

    def line(self) -> bytes:
        """What the worker reads, without the opening brace.

        Raises:
            VariableError: The stylesheet holds what has no form in JSON.
        """
        asked: dict[str, Any] = {"markup": self.markup, "chat": self.chat, "revive": self.revive}
        if self.keep_whitespace:
            asked["keep_whitespace"] = True
        for name in _SELDOM:
            if (value := getattr(self, name)) is not None:
                asked[name] = value
        head, _ = dumps(asked)
        return b'%b,"context":%b}' % (head[1:-1], self.context)


class Result(NamedTuple):
    """What a render gave.

    Attributes:
        output: What ``poml.poml(format="dict")`` gives.
        engine: Which engine made it.
        node_ms: Milliseconds inside Node, from the request's JSON to the answer's, and what cleaning up after the
            render before it took, which comes after that one's answer; None for the engine ``poml``.
        kept_whitespace: Whether there was whitespace to keep, and it was kept.
    """

    output: dict[str, Any]
    engine: Literal["warm", "poml"]
    node_ms: float | None = None
    kept_whitespace: bool = False
