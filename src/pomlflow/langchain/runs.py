"""LangChain runs that are being traced, and the span that the context holds for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import Token
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast
from uuid import UUID

import mlflow
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables.config import var_child_runnable_config
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode
from mlflow.tracing import provider
from mlflow.tracing.constant import SpanAttributeKey
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext

from pomlflow.tracking.redaction import GuardedSpan
from pomlflow.tracking.spans import active, within

__all__ = [
    "ContextProxy",
    "Run",
    "drop",
    "ended_early",
    "forget",
    "innermost",
    "nearest",
    "open_run",
    "run_id_here",
    "surroundings",
    "user_span",
]

_OK: Final = SpanStatus(SpanStatusCode.OK)
_CANCELLED: Final = SpanStatus(SpanStatusCode.ERROR, asyncio.CancelledError.__name__)
_MOST_ENDED_EARLY: Final = 10_000

_open: dict[UUID, Run] = {}  # of all handlers: a run is traced once, however many are in its list
_ended_early: dict[UUID, None] = {}  # what LangChain still starts below these is in no trace


@dataclass(eq=False)
class Run:
    """A LangChain run that is being traced.

    Attributes:
        run_id: LangChain's id of it.
        tracer: The handler that traces it.
        span: Its span.
        parent: The run that it is part of.
        generator: Whether its body is a generator, which runs in the context of its reader.
        task: The asyncio task that it was started in.
        parts: The runs that are part of it and open, or cancelled and not yet settled.
        chunk: The last chunk that was streamed.
        cancelled: What cancelled it, and when.
    """

    run_id: UUID
    tracer: BaseCallbackHandler
    span: GuardedSpan
    parent: Run | None
    generator: bool
    task: asyncio.Task[Any] | None
    parts: dict[Run, None] = field(default_factory=dict)
    chunk: Any = None
    cancelled: tuple[asyncio.CancelledError, int] | None = None
    _proxy: ContextProxy | None = None
    _tokens: list[tuple[Token[Any], Any]] = field(default_factory=list)

    def open(self, span: Span) -> None:
        """Make the run's span the active one, and the run known."""
        self._proxy = ContextProxy(span, self.run_id, generator=self.generator)
        token = provider.set_span_in_context(cast("LiveSpan", SimpleNamespace(_span=self._proxy)))
        tokens = [token for token in (token if isinstance(token, tuple) else (token,)) if token is not None]
        self._tokens = [(token, token.var.get()) for token in tokens]
        forget(self.run_id)  # a caller may give an id to several runs, one after the other
        _open[self.run_id] = self
        if self.parent is None:
            return
        self.parent.parts[self] = None
        if self.parent.run_id not in _open:  # it has ended meanwhile, in another thread
            self.end_early()

    def end(self, outputs: Any = None, status: SpanStatus = _OK, *, by_control_flow: bool = False) -> None:
        """End the span, and those of cancelled parts, which are errors unless control flow cancelled them."""
        if not self._close():
            return
        for part in list(self.parts):
            part.settle(by_control_flow=by_control_flow)
        try:
            if outputs is not None:
                self.span.set_outputs(outputs)
            self.span.end(status)
        finally:
            self._leave()

    def end_early(self, *, by_control_flow: bool = False) -> None:
        """End the run and its open parts; what LangChain still starts in it is in no trace."""
        self.end_parts(by_control_flow=by_control_flow)
        drop(self.run_id)
        self.end(by_control_flow=by_control_flow)

    def end_parts(self, *, by_control_flow: bool = False) -> None:
        """End the runs that are still open in this one: LangChain reports their end later, or never."""
        for part in list(self.parts):
            if part.cancelled is None:
                part.end_early(by_control_flow=by_control_flow)

    def cancel(self, error: asyncio.CancelledError) -> None:
        """Close a run that was cancelled. Its parent settles whether that is an error: see `settle`.

        Of its open parts, those were cancelled that ran in the same task, or in one that was cancelled as well; what
        goes on elsewhere (``asyncio.shield``, threads) was not.
        """
        drop(self.run_id)
        if not self._close():
            return
        self.cancelled = error, time.time_ns()
        for part in list(self.parts):
            if part.cancelled is not None:
                continue
            if part.task is not None and (part.task is self.task or part.task.done() or part.task.cancelling() > 0):
                part.cancel(asyncio.CancelledError())
            else:
                part.end_early()
        if self.parent is None:
            self.settle(by_control_flow=False)

    def settle(self, *, by_control_flow: bool) -> None:
        """End the span of a run that was cancelled, with the time when it was.

        A graph whose reader stops reading cancels its nodes before it reports its own end.
        """
        if self.cancelled is None:
            return
        error, end_time_ns = self.cancelled
        for part in list(self.parts):
            part.settle(by_control_flow=by_control_flow)
        if not by_control_flow and error.__traceback__ is not None:
            self.span.add_event(SpanEvent.from_exception(error))  # type: ignore[arg-type]  # it takes any exception
        try:
            self.span.end(_OK if by_control_flow else _CANCELLED, end_time_ns=end_time_ns)
        finally:
            self._leave()

    def _close(self) -> bool:
        """Take the run out of the context, or where that is not possible, close its proxy; return False a second time.

        Another thread may end it at the same time.
        """
        if _open.pop(self.run_id, None) is None or self._proxy is None:
            return False
        self._proxy.close()
        for token, value in self._tokens:
            if token.var.get(None) is value:
                with suppress(ValueError):  # this is a copy of the context that it was set in
                    token.var.reset(token)
        return True

    def _leave(self) -> None:
        """Move the open parts to the parent."""
        parts = list(self.parts)
        if self.parent is not None:
            self.parent.parts.pop(self, None)
            self.parent.parts.update(dict.fromkeys(parts))
        for part in parts:
            part.parent = self.parent


def open_run(run_id: UUID | None) -> Run | None:
    """Return the run, if one of our handlers has it open."""
    return None if run_id is None else _open.get(run_id)


def ended_early(run_id: UUID | None) -> bool:
    """Return whether the run goes on after the end of its trace; what is started in it does, too."""
    return run_id in _ended_early


def drop(run_id: UUID) -> None:
    """Keep what LangChain still starts in a run out of all traces."""
    _ended_early[run_id] = None
    if len(_ended_early) > _MOST_ENDED_EARLY:  # of a model that is cancelled, LangChain never reports the end
        _ended_early.pop(next(iter(_ended_early)), None)


def forget(run_id: UUID) -> None:
    """Undo `drop`: LangChain has reported the run's end."""
    _ended_early.pop(run_id, None)


class ContextProxy(Span):
    """The span that a context holds for a run: the run's while it is open, then the one that was active before.

    It may stay in a context after the run. A span that stays there, ended, swallows every later trace of that task.

    Args:
        span: The run's.
        run_id: The run.
        generator: Whether the run's body is a generator, which runs in the context of its reader: what the reader does
            between two chunks is no part of the run.

    Attributes:
        run_id: The run.
        outside: The innermost span that was active before and is not a run's.
    """

    def __init__(self, span: Span, run_id: UUID, *, generator: bool) -> None:
        before = provider.get_current_otel_span() or INVALID_SPAN
        self.run_id = run_id
        self.span: Span | None = span
        self.generator = generator
        # Never a closed one: in a context that is never cleaned up they would make an endless chain.
        self.before: Span = before.resolved(open_only=True) if isinstance(before, ContextProxy) else before
        self.outside: Span = self.before.outside if isinstance(self.before, ContextProxy) else self.before
        self.reader = run_id_here() if generator else None

    def close(self) -> None:
        """Resolve to the span before the run from now on."""
        self.span = None

    def resolved(self, *, open_only: bool = False) -> Span:
        """Return the proxy of the run that this code is part of, or the span outside of all runs."""
        found: Span = self
        while isinstance(found, ContextProxy) and (
            found.span is None or (not open_only and found.generator and run_id_here() == found.reader)
        ):
            found = found.before
        return found

    def _now(self) -> Span:
        found = self.resolved()
        if isinstance(found, ContextProxy):
            return found.span or INVALID_SPAN
        return _unless_ended(found)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes; MLflow finds the active trace by the request id, and none by the id null."""
        attributes = getattr(self._now(), "attributes", None) or {}
        return attributes if SpanAttributeKey.REQUEST_ID in attributes else {SpanAttributeKey.REQUEST_ID: "null"}

    @property
    def context(self) -> SpanContext:
        """The span context, as the SDK's spans name it."""
        return self.get_span_context()

    def get_span_context(self) -> SpanContext:
        """Return the span context."""
        return self._now().get_span_context()

    def is_recording(self) -> bool:
        """Return whether a span is open."""
        return self._now().is_recording()

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes."""
        self._now().set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        self._now().set_attribute(key, value)

    def add_event(self, *args: Any, **kwargs: Any) -> None:
        """Add an event."""
        self._now().add_event(*args, **kwargs)

    def update_name(self, name: str) -> None:
        """Change the name."""
        self._now().update_name(name)

    def set_status(self, *args: Any, **kwargs: Any) -> None:
        """Set the status."""
        self._now().set_status(*args, **kwargs)

    def record_exception(self, *args: Any, **kwargs: Any) -> None:
        """Record an exception."""
        self._now().record_exception(*args, **kwargs)

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: only the handler ends a run."""


def surroundings() -> BaseCallbackManager | None:
    """Return the callbacks of the LangChain run that this code is part of."""
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return callbacks if isinstance(callbacks, BaseCallbackManager) else None


def user_span() -> Span:
    """Return the innermost active span that is not a run's, or an invalid one."""
    found = innermost()
    return _unless_ended(found.outside if isinstance(found, ContextProxy) else found)


def nearest(span: LiveSpan) -> LiveSpan:
    """Return the parent of what is made here in a run: a span of the user's that is open inside it, or its own."""
    inner = user_span()
    if inner is INVALID_SPAN:
        return span
    with active(inner):
        found = mlflow.get_current_active_span()
    return found if found is not None and within(found, span) else span


def innermost() -> Span:
    """Return the proxy of the run that this code is part of, or the active span outside of all runs."""
    current = provider.get_current_otel_span() or INVALID_SPAN
    return current.resolved() if isinstance(current, ContextProxy) else current


def _unless_ended(span: Span) -> Span:
    return INVALID_SPAN if isinstance(span, ReadableSpan) and not cast("Span", span).is_recording() else span


def run_id_here() -> UUID | None:
    """Return the id of the LangChain run that this code is part of."""
    around = surroundings()
    return None if around is None else around.parent_run_id
