"""What is taken from MLflow's own LlamaIndex tracer: its private parts, and how it is told apart from ours.

From it come the types of spans and the attributes of models, tools and events. Where a version of MLflow (seen: 3.12 to
3.17) lacks one of these parts, a warning says so once, and the spans do without; and where its autolog's handler lacks
those by which a stream's spans are taken over (`LeftSpan`), streams beside it end as MLflow ends them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events import BaseEvent
from mlflow.entities import LiveSpan, SpanType

from pomlflow.tracking.spans import warn_once

_mlflow: Any = None
with suppress(ImportError):  # none of MLflow's public modules
    from mlflow.llama_index import tracer as _mlflow

__all__ = ["Autolog", "Details", "autolog_handler", "missing_parts"]

_ROOT = get_dispatcher()
_SPANS: Any = getattr(_mlflow, "MlflowSpanHandler", None)
_EVENTS: Any = getattr(_mlflow, "MlflowEventHandler", None)
_UNKNOWN = "this version of MLflow has no LlamaIndex tracer that is known (%s): %s"


def missing_parts(autolog: Any = None) -> list[str]:
    """Name what this MLflow's tracer lacks of the private parts that are leant on.

    Args:
        autolog: The handler that autolog has set up, for the parts by which its streams are taken over; by default
            those are named that types and attributes come from.
    """
    if autolog is not None:
        names = ("get_span_for_event", "open_spans", "lock", "_pending_spans", "_span_id_to_token")
        return [f"MlflowSpanHandler.{name}" for name in names if not hasattr(autolog, name)]
    wanted = {
        "MlflowSpanHandler._get_span_type": getattr(_SPANS, "_get_span_type", None),
        "MlflowSpanHandler._get_instance_attributes": getattr(_SPANS, "_get_instance_attributes", None),
        "MlflowEventHandler._handle_event": getattr(_EVENTS, "_handle_event", None),
    }
    return [name for name, part in wanted.items() if part is None]


class Details:
    """What MLflow's tracer knows of a component and its events.

    Args:
        writable: Gives, for a LlamaIndex span's id, the span that an event's attributes are written to, or None.
    """

    def __init__(self, writable: Callable[[str | None], Any]) -> None:
        self._writable = writable
        self.missing = missing_parts()
        if self.missing:
            effect = "spans have neither types nor the attributes of models and tools"
            warn_once("llama-index tracer", _UNKNOWN, self.missing, effect)
            return
        # These two never stand in the dispatcher: autolog() would take them for its own and not set itself up.
        self._spans = _SPANS()
        self._events = _EVENTS(self)
        self._types: WeakKeyDictionary[type, str] = WeakKeyDictionary()

    def span_type(self, instance: Any) -> str:
        """The type of a component's spans."""
        if self.missing:
            return SpanType.UNKNOWN
        kind = type(instance)
        if (known := self._types.get(kind)) is None:  # MLflow looks at the class alone, and takes 50 µs for it
            known = self._types[kind] = self._spans._get_span_type(instance) or SpanType.UNKNOWN
        return known

    def attributes(self, instance: Any) -> dict[str, Any]:
        """The attributes that a component gives its spans."""
        return {} if self.missing else self._spans._get_instance_attributes(instance) or {}

    def note(self, event: BaseEvent) -> None:
        """Write what an event tells (the model, its token counts, a tool) to its span."""
        if not self.missing:
            self._events.handle(event)

    # What MLflow's event handler asks of its span handler:

    def get_span_for_event(self, event: BaseEvent) -> Any:
        """The span that an event is about."""
        return self._writable(event.span_id)

    def resolve_pending_stream_span(self, span: LiveSpan, event: BaseEvent) -> None:
        """Do nothing: streams are ours."""


def autolog_handler() -> Any:
    """The handler that ``mlflow.llama_index.autolog()`` has set up, or None: it traces everything then."""
    if _SPANS is not None:
        for handler in _ROOT.span_handlers:
            if isinstance(handler, _SPANS):
                return handler
    return None


class Autolog:
    """What is left to ``mlflow.llama_index.autolog()``, and finished where it is switched off in between.

    MLflow takes its handlers away then and forgets their open spans: those traces would never be stored.

    Attributes:
        missing: What the handler lacks of the parts by which a stream's spans are taken over from it.
    """

    def __init__(self) -> None:
        self._last: Any = None
        self.missing: list[str] = []

    def leave_to(self, handler: Any) -> None:
        """Note which handler traces."""
        if handler is self._last:
            return
        self._last, self.missing = handler, missing_parts(handler)
        if self.missing:
            effect = "what streams beside its autolog is ended by MLflow, or never"
            warn_once("llama-index streams", _UNKNOWN, self.missing, effect)

    def span(self, span_id: str | None) -> LiveSpan | None:
        """MLflow's span for LlamaIndex's, where autolog has it open."""
        find = getattr(autolog_handler() or self._last, "get_span_for_event", None)
        if find is None or span_id is None:
            return None
        return cast("LiveSpan | None", find(SimpleNamespace(span_id=span_id)))

    def orphaned(self, span_id: str | None) -> Any:
        """The handler that has a span open and was taken away meanwhile; None where all is well."""
        handler = self._last
        if handler is None or any(handler is one for one in _ROOT.span_handlers) or self.span(span_id) is None:
            return None
        return handler

    def note(self, event: BaseEvent) -> None:
        """Give an event to a handler that was taken away with the event's span open."""
        if (handler := self.orphaned(event.span_id)) is not None:
            _EVENTS(handler).handle(event)
