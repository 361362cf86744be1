"""The active span of a context, among LangChain's runs and the user's own spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

import mlflow
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables.config import var_child_runnable_config
from mlflow.entities import LiveSpan
from mlflow.tracing import provider
from mlflow.tracing.constant import SpanAttributeKey
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext

from pomlflow.tracking.spans import active, within

__all__ = ["ContextProxy", "innermost", "nearest", "run_id_here", "surroundings", "user_span"]


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
        self._span: Span | None = span
        self._generator = generator
        # Never a closed one: in a context that is never cleaned up they would make an endless chain.
        self._before: Span = before.resolved(open_only=True) if isinstance(before, ContextProxy) else before
        self.outside: Span = self._before.outside if isinstance(self._before, ContextProxy) else self._before
        self._reader = run_id_here() if generator else None

    def close(self) -> None:
        """Stop standing for the run."""
        self._span = None

    def resolved(self, *, open_only: bool = False) -> Span:
        """Return the proxy of the run that this code is part of, or the span outside of all runs."""
        found: Span = self
        while isinstance(found, ContextProxy) and (
            found._span is None or (not open_only and found._generator and run_id_here() == found._reader)
        ):
            found = found._before
        return found

    def _now(self) -> Span:
        found = self.resolved()
        if isinstance(found, ContextProxy):
            return found._span or INVALID_SPAN
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
