"""Which span is active where, among LangChain's runs and the user's own spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import mlflow
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables.config import var_child_runnable_config
from mlflow.entities import LiveSpan
from mlflow.tracing import provider
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, Span

from pomlflow.tracking.spans import active, within

if TYPE_CHECKING:
    from pomlflow.langchain.tracer import Tracer

__all__ = ["StandIn", "nearest", "run_here", "surroundings", "user_span", "within"]


class StandIn:
    """What the context holds for a run: its span while the run lasts, then whatever is open below it.

    LangChain ends runs in other orders, threads and tasks than it starts them, so a span that was put into a context
    cannot always be taken out of it; and a span that stays there, ended, swallows every later trace of that thread or
    task. A stand-in may stay. To MLflow and OpenTelemetry it is the very span that it stands for just then.

    Args:
        span: The run's.
        below: What was active before.
        tracer: Whose run it is.
        stream: Whether the run is a generator. A generator starts in the context of whoever reads it: what they do
            between two chunks is no part of the run.

    Attributes:
        floor: The user's own span below this and all other runs.
        tracer: Whose run it is.
    """

    def __init__(self, span: Span, below: Span | StandIn, tracer: Tracer, *, stream: bool) -> None:
        self._own: Span | None = span
        # Never one that is closed: in a context that nobody cleans they would make a chain without end.
        self._below = below.resolve(closed_only=True) if isinstance(below, StandIn) else below
        self.floor: Span = self._below.floor if isinstance(self._below, StandIn) else self._below
        self.tracer = tracer
        self._stream = stream
        self._reader = _run_id_here() if stream else None

    def close(self) -> None:
        """Stand for the run's span no longer."""
        self._own = None

    def resolve(self, *, closed_only: bool = False) -> Span | StandIn:
        """The stand-in of the run that this code is part of, or what is below them all."""
        found: Span | StandIn = self
        while isinstance(found, StandIn) and (found._own is None or (not closed_only and found._is_read_here())):
            found = found._below
        return found

    def _is_read_here(self) -> bool:
        return self._stream and _run_id_here() == self._reader

    def now(self) -> Span:
        """The span that is active here."""
        found = self.resolve()
        return (found._own or INVALID_SPAN) if isinstance(found, StandIn) else _unless_ended(found)

    @property
    def __class__(self) -> Any:  # both libraries ask isinstance() what kind of span is active, and if any is
        return type(self.now())

    @__class__.setter
    def __class__(self, value: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now(), name)

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: who finds a span in the context did not start it."""


def run_here() -> StandIn | None:
    """The innermost traced run that this code is part of, as far as the context knows."""
    current: Any = provider.get_current_otel_span()
    found = current.resolve() if isinstance(current, StandIn) else current
    return found if isinstance(found, StandIn) else None


def user_span() -> Span:
    """The innermost span that is active here and is no run of ours; an invalid one where there is none."""
    current: Any = provider.get_current_otel_span() or INVALID_SPAN
    found = current.resolve() if isinstance(current, StandIn) else current
    return _unless_ended(found.floor if isinstance(found, StandIn) else found)


def nearest(span: LiveSpan) -> LiveSpan:
    """The span that something made here and now in a run belongs under.

    Args:
        span: The run's.

    Returns:
        The user's own span (``@mlflow.trace``), where one is open inside the run; else the run's.
    """
    inner = user_span()
    if inner is INVALID_SPAN:
        return span
    with active(inner):
        found = mlflow.get_current_active_span()
    return found if found is not None and within(found, span) else span


def surroundings() -> BaseCallbackManager | None:
    """The callbacks of the LangChain run that this code is part of; None outside, and in tasks on Python 3.10."""
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return callbacks if isinstance(callbacks, BaseCallbackManager) else None


def _run_id_here() -> UUID | None:
    around = surroundings()
    return None if around is None else around.parent_run_id


def _unless_ended(span: Span) -> Span:
    return INVALID_SPAN if isinstance(span, ReadableSpan) and not cast("Span", span).is_recording() else span
