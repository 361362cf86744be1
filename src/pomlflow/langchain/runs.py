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

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables.config import var_child_runnable_config
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode
from mlflow.tracing import provider
from mlflow.tracing.constant import SpanAttributeKey
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext

from pomlflow.tracking.redaction import GuardedSpan
from pomlflow.tracking.spans import active, nearest

_OK: Final = SpanStatus(SpanStatusCode.OK)
_CANCELLED: Final = SpanStatus(SpanStatusCode.ERROR, asyncio.CancelledError.__name__)
_MAX_SUPPRESSED: Final = 10_000

_open: dict[UUID, Run] = {}  # open runs of all handlers, since a run with several handlers is traced once
_suppressed: dict[UUID, None] = {}  # runs that go on after their traces; what LangChain starts in them is not traced


@dataclass(eq=False)
class Run:
    """A LangChain run that is being traced."""

    run_id: UUID
    tracer: BaseCallbackHandler  # the handler that traces it
    span: GuardedSpan
    parent: Run | None
    is_generator: bool  # whether its body is a generator, which runs in the context of its reader
    task: asyncio.Task[Any] | None  # in which it was started
    parts: dict[Run, None] = field(default_factory=dict)  # its children that are open, or cancelled and not settled
    cancelled: tuple[asyncio.CancelledError, int] | None = None  # the error, and the time in nanoseconds
    _proxy: ContextProxy | None = None
    _tokens: list[tuple[Token[Any], Any]] = field(default_factory=list)

    def open(self, span: Span) -> None:
        """Make the run's span the active one, and add the run to the open ones."""
        self._proxy = ContextProxy(span, self.run_id, is_generator=self.is_generator)
        token = provider.set_span_in_context(cast("LiveSpan", SimpleNamespace(_span=self._proxy)))
        tokens = [token for token in (token if isinstance(token, tuple) else (token,)) if token is not None]
        self._tokens = [(token, token.var.get()) for token in tokens]
        unsuppress_run(self.run_id)  # a caller may give an id to several runs, one after the other
        _open[self.run_id] = self
        if self.parent is None:
            return
        self.parent.parts[self] = None
        if self.parent.run_id not in _open:  # the parent has ended meanwhile, in another thread
            self.end_early()

    def end(self, outputs: Any = None, status: SpanStatus = _OK, *, by_control_flow: bool = False) -> None:
        """End the span, and the spans of cancelled parts. These are errors unless `by_control_flow` is set."""
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
        """End the run and its open parts. What LangChain starts in it afterwards is not traced."""
        self.end_parts(by_control_flow=by_control_flow)
        suppress_run(self.run_id)
        self.end(by_control_flow=by_control_flow)

    def end_parts(self, *, by_control_flow: bool = False) -> None:
        """End the parts that are still open, since LangChain reports their ends later or never."""
        for part in list(self.parts):
            if part.cancelled is None:
                part.end_early(by_control_flow=by_control_flow)

    def cancel(self, error: asyncio.CancelledError) -> None:
        """Close a run that was cancelled. Its span stays open until its parent decides if that is an error (`settle`).

        Its open parts in the same task, or in a task that is done or cancelled as well, count as cancelled. Parts that
        go on elsewhere (``asyncio.shield``, threads) end early.
        """
        suppress_run(self.run_id)
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
        """End the span of a cancelled run, at the time when it was cancelled.

        A graph whose reader stops reading cancels its nodes before it reports its own end, which alone shows that
        control flow cancelled them.
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
        """Close the run's proxy and, if possible, restore the context; return False if it was closed before."""
        if _open.pop(self.run_id, None) is None or self._proxy is None:
            return False
        self._proxy.close()
        for token, value in self._tokens:
            if token.var.get(None) is value:
                with suppress(ValueError):  # this context is a copy of the one in which the token was made
                    token.var.reset(token)
        return True

    def _leave(self) -> None:
        """Remove the run from its parent, and move its open parts to the parent."""
        parts = list(self.parts)
        if self.parent is not None:
            self.parent.parts.pop(self, None)
            self.parent.parts.update(dict.fromkeys(parts))
        for part in parts:
            part.parent = self.parent


def open_run(run_id: UUID | None) -> Run | None:
    """Return the run, or None if none of our handlers has it open."""
    return None if run_id is None else _open.get(run_id)


def is_suppressed(run_id: UUID | None) -> bool:
    """Return whether the run goes on after the end of its trace; what is started in it is not traced."""
    return run_id in _suppressed


def suppress_run(run_id: UUID) -> None:
    """Trace nothing that LangChain starts in a run from now on."""
    _suppressed[run_id] = None
    if len(_suppressed) > _MAX_SUPPRESSED:  # LangChain never reports the end of a cancelled model, so some remain
        _suppressed.pop(next(iter(_suppressed)), None)


def unsuppress_run(run_id: UUID) -> None:
    """Undo `suppress_run`, when LangChain has reported the run's end or begins another run with its id."""
    _suppressed.pop(run_id, None)


class ContextProxy:
    """A span that a context holds for a run: the run's span, and after the run the span that was active before.

    It may stay in a context after the run. With an ended span there, MLflow would lose every later trace of that task.
    A run whose body is a generator runs in the context of its reader, so what the reader does between two chunks is not
    part of the run.
    """

    def __init__(self, span: Span, run_id: UUID, *, is_generator: bool) -> None:
        before = provider.get_current_otel_span() or INVALID_SPAN
        self.run_id = run_id
        self.span: Span | None = span  # None after the run
        self.is_generator = is_generator
        # Never a closed proxy: in a context that is never cleaned up, the chain of proxies would grow without end.
        self.before = before.resolved(open_only=True) if isinstance(before, ContextProxy) else before
        # The innermost span that was active before and is not a run's.
        self.outside: Span = self.before.outside if isinstance(self.before, ContextProxy) else self.before
        self.reader = current_run_id() if is_generator else None

    def close(self) -> None:
        """Stand for the span before the run from now on."""
        self.span = None

    def resolved(self, *, open_only: bool = False) -> Span | ContextProxy:
        """Return the proxy of the run that the calling code is part of, or the span outside of all runs.

        With `open_only`, return the innermost open proxy, even if its generator's reader is calling.
        """
        found: Span | ContextProxy = self
        while isinstance(found, ContextProxy) and (
            found.span is None or (not open_only and found.is_generator and current_run_id() == found.reader)
        ):
            found = found.before
        return found

    def _span_now(self) -> Any:
        found = self.resolved()
        return found.span or INVALID_SPAN if isinstance(found, ContextProxy) else _unless_ended(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span_now(), name)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes. MLflow reads the trace's id from the request id, and takes ``"null"`` for no active trace."""
        attributes = getattr(self._span_now(), "attributes", None) or {}
        return attributes if SpanAttributeKey.REQUEST_ID in attributes else {SpanAttributeKey.REQUEST_ID: "null"}

    @property
    def context(self) -> SpanContext:
        """The span context, under the name that it has in the SDK's spans."""
        return cast("SpanContext", self._span_now().get_span_context())

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: only the handler ends a run."""


Span.register(ContextProxy)  # a context may hold only instances of `Span`


def current_manager() -> BaseCallbackManager | None:
    """Return the callback manager of the LangChain run that the calling code is part of, or None."""
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return callbacks if isinstance(callbacks, BaseCallbackManager) else None


def current_run_id() -> UUID | None:
    """Return the id of the LangChain run that the calling code is part of, or None."""
    manager = current_manager()
    return None if manager is None else manager.parent_run_id


def current_span() -> Span | ContextProxy:
    """Return the proxy of the run that the calling code is part of, or the active span outside of all runs."""
    current = provider.get_current_otel_span() or INVALID_SPAN
    return current.resolved() if isinstance(current, ContextProxy) else current


def user_span() -> Span:
    """Return the innermost active span that is not a run's, or an invalid one."""
    found = current_span()
    return _unless_ended(found.outside if isinstance(found, ContextProxy) else found)


def parent_in(span: LiveSpan) -> LiveSpan:
    """Return the parent for a new span in a run: the user's span that is open inside the run, or the run's own span."""
    inner = user_span()
    if inner is INVALID_SPAN:
        return span
    with active(inner):
        return nearest(span)


def _unless_ended(span: Span) -> Span:
    return INVALID_SPAN if isinstance(span, ReadableSpan) and not cast("Span", span).is_recording() else span
