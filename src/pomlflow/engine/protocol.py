"""The records of the engine: a request, its result, and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pomlflow.engine.serialize import dumps

_OPTIONAL = ("stylesheet", "path", "marks", "placeholders")


class Request(NamedTuple):
    """One render."""

    markup: str
    context: bytes = b"{}"  # the variables, from `encode`
    revive: bool = False  # the context has encoded values that JSON cannot express
    stylesheet: Mapping[str, Any] | None = None
    path: str | None = None  # relative sources are resolved against its folder; the file need not exist
    label: str | None = None  # the name of the markup in errors; None for <inline>
    roots: tuple[str, ...] | None = None  # the only folders that untrusted markup may read; None for trusted markup
    chat: bool = True
    marks: Mapping[str, Sequence[Any]] | None = None  # by variable: the text of each native message in the output
    placeholders: Sequence[str] | None = None  # for a check: the variables without a value
    keep_whitespace: bool = False  # of variables that are alone in text, unless it would break JSON or a table

    def to_json(self) -> bytes:
        """Return the JSON for the worker, without the opening brace, before which `NodeProcess.call` puts an id."""
        fields: dict[str, Any] = {"markup": self.markup, "chat": self.chat, "revive": self.revive}
        if self.keep_whitespace:
            fields["keep_whitespace"] = True
        for name in _OPTIONAL:
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        head, _ = dumps(fields)
        return b'%b,"context":%b}' % (head[1:-1], self.context)


class Result(NamedTuple):
    """The result of a render."""

    output: dict[str, Any]  # the result of poml.poml(format="dict")
    node_ms: float  # from parsing the request in Node to writing the answer
    kept_whitespace: bool  # that POML would have collapsed


@dataclass(frozen=True)
class Stats:
    """The state and the counters of the engine of this Python process.

    Attributes:
        workers: Node processes that run.
        max_workers: The maximum number of Node processes; one for trusted templates and one for the others are always
            allowed.
        starting: Node processes that are being started.
        running: Renders that run.
        waiting: Renders that wait for a process.
        rendered: Renders that POML answered, with a frame or with an error of the template.
        failed: Renders that were granted a process but got no answer: they took too long, or the process ended.
        refused: Renders that were refused because too many waited.
        cancelled: Async renders that were cancelled.
        restarted: Processes that were started in place of one that had ended.
        recycled: Processes that were ended because of their memory.
        memory: Resident bytes of the processes, as last reported.
        private_memory: Bytes that they take without Node's program, which they share; 0 on other systems than Linux.
        pids: The ids of the processes, those for untrusted templates last.
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
