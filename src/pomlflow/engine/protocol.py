"""What a render is requested with, what it results in, and what the engine reports of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pomlflow.engine.serialize import dumps

__all__ = ["Request", "Result", "Stats"]

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


@dataclass(frozen=True)
class Stats:
    """What the engine of this Python process does, and has done since it started.

    Attributes:
        workers: Node processes that are there.
        max_workers: How many there may be; one each for templates of your own and of registries is always possible.
        starting: Those that are being started.
        running: Renders that run.
        waiting: Renders that wait for a process.
        rendered: Renders that POML answered, with a frame or with an error of the template.
        failed: Renders that the engine failed: out of time, or their process ended.
        refused: Renders that were refused because too many waited.
        cancelled: Async renders that were cancelled.
        restarted: Processes that were started for one that had ended.
        recycled: Processes that were replaced because of their memory.
        memory: Resident bytes of the processes, as last reported.
        private_memory: Those bytes that they share with no other process; 0 on other systems than Linux.
        pids: Process ids of the processes, those for templates of registries last.
    """

    workers: int = 0
    max_workers: int = 0
    starting: int = 0
    running: int = 0
    waiting: int = 0
    rendered: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    restarted: int = 0
    recycled: int = 0
    memory: int = 0
    private_memory: int = 0
    pids: tuple[int, ...] = ()
