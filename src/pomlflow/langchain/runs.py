"""LangChain runs that are being traced, and the span that the context holds for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
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

open_runs: dict[UUID | None, Run] = {}
"""The open runs of all handlers, since a run with several handlers is traced once."""

suppressed: dict[UUID | None, None] = {}
"""Runs that go on after their traces have ended; what LangChain starts in them is not traced."""


@dataclass(eq=False)
class Run:
    """A LangChain run that is being traced."""

    run_id: UUID
    tracer: BaseCallbackHandler  # the handler that traces it
    span: GuardedSpan
    parent: Run | None
    is_generator: bool  # whether its body is a generator, which runs in the context of its reader
    task: asyncio.Task[Any] | None  # the task in which it was started
    children: dict[Run, None] = field(default_factory=dict)  # those that have not ended
    cancelled_ns: int | None = None  # the time when it was cancelled
    _proxy: ContextProxy = field(init=False)

    def open(self, span: Span) -> None:
        """Make the run's span the active one, and add the run to the open ones."""
        self._proxy = ContextProxy(span, self.run_id, is_generator=self.is_generator)
        # Never removed from the context, since LangChain may report the end of a run in another context.
        provider.set_span_in_context(cast("LiveSpan", SimpleNamespace(_span=self._proxy)))
        suppressed.pop(self.run_id, None)  # a caller may give an id to several runs, one after the other
        open_runs[self.run_id] = self
        if self.parent is not None:
            self.parent.children[self] = None

    def end(self, outputs: Any = None, status: SpanStatus = _OK, *, by_control_flow: bool = False) -> None:
        """End the span. Children that have not ended are ended too, or become children of the parent.

        `by_control_flow` is whether the run ended by an interrupt, a command to a parent graph or a reader who left.
        """
        if not self._close() and self.cancelled_ns is None:
            return
        new_parent = None if self.is_generator or self.run_id in suppressed else self.parent
        for child in list(self.children):
            if new_parent is None or child.cancelled_ns is not None:
                child.end_early(by_control_flow=by_control_flow)
            else:  # a task that a step has started and not awaited
                new_parent.children[child] = None
                child.parent = new_parent
        try:
            if outputs is not None:
                self.span.set_outputs(outputs)
            self.span.end(status, end_time_ns=self.cancelled_ns)
        finally:
            if self.parent is not None:
                self.parent.children.pop(self, None)

    def end_early(self, *, by_control_flow: bool = False) -> None:
        """End the span before LangChain reports the end. A cancelled run is an error, unless control flow cancelled it.

        Only the end of a graph shows which of the two it was: when its reader leaves, a graph first cancels its nodes
        and then ends itself.
        """
        suppress(self.run_id)
        failed = self.cancelled_ns is not None and not by_control_flow
        if failed:
            self.span.add_event(SpanEvent.from_exception(cast("Exception", asyncio.CancelledError())))
        self.end(status=_CANCELLED if failed else _OK, by_control_flow=by_control_flow)

    def cancel(self) -> None:
        """Close a cancelled run and those of its children that were cancelled; their spans end when the parent ends.

        The spans of children that go on in other tasks (``asyncio.shield``) or threads end early.
        """
        suppress(self.run_id)
        if not self._close():
            return
        self.cancelled_ns = time.time_ns()
        for child in list(self.children):
            task = child.task
            if child.cancelled_ns is not None or (task and (task is self.task or task.done() or task.cancelling())):
                child.cancel()
            else:
                child.end_early()
        if self.parent is None:
            self.end_early()

    def _close(self) -> bool:
        """Remove the run from the open ones; return False if it was removed before."""
        if open_runs.pop(self.run_id, None) is None:
            return False
        self._proxy.span = None
        return True


def suppress(run_id: UUID) -> None:
    """Trace nothing that LangChain starts in a run from now on."""
    suppressed[run_id] = None
    if len(suppressed) > _MAX_SUPPRESSED:  # LangChain never reports the end of a cancelled model, so some remain
        suppressed.pop(next(iter(suppressed)), None)


class ContextProxy:
    """A span that a context holds for a run: the run's span, and after the run the span that was active before.

    It stays in a context after the run. With an ended span there, MLflow would lose every later trace of that task.
    A run whose body is a generator runs in the context of its reader, so what the reader does between two chunks is not
    part of the run.
    """

    def __init__(self, span: Span, run_id: UUID, *, is_generator: bool) -> None:
        self.span: Span | None = span  # None after the run
        before: Span | ContextProxy = provider.get_current_otel_span() or INVALID_SPAN
        while isinstance(before, ContextProxy) and before.span is None:  # else the chain would only grow
            before = before.before
        self.before: Span | ContextProxy = before
        self.run_id = run_id
        self.is_generator = is_generator
        self.reader = current_run_id() if is_generator else None

    def resolved(self) -> Span | ContextProxy:
        """Return the proxy of the run that the calling code is part of, or the span outside of all runs."""
        found: Span | ContextProxy = self
        while isinstance(found, ContextProxy) and (
            found.span is None or (found.is_generator and current_run_id() == found.reader)
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
        """The attributes. MLflow reads the trace's id from the request id; ``"null"`` means that no trace is active."""
        attributes = getattr(self._span_now(), "attributes", None) or {}
        return attributes if SpanAttributeKey.REQUEST_ID in attributes else {SpanAttributeKey.REQUEST_ID: "null"}

    @property
    def context(self) -> SpanContext:
        """The span context, under the name that it has in the SDK's spans."""
        return cast("SpanContext", self._span_now().get_span_context())

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: only the handler ends a run's span, also if OpenTelemetry's `use_span` has it."""


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
    while isinstance(found, ContextProxy):
        found = found.before
    return _unless_ended(found)


def parent_in(span: LiveSpan) -> LiveSpan:
    """Return the parent for a new span in a run: the user's span that is open inside the run, or the run's own span."""
    inner = user_span()
    if inner is INVALID_SPAN:
        return span
    with active(inner):
        return nearest(span)


def _unless_ended(span: Span) -> Span:
    return INVALID_SPAN if isinstance(span, ReadableSpan) and not cast("Span", span).is_recording() else span
