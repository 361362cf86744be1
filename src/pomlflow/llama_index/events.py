"""The event of each POML render in LlamaIndex's instrumentation, and its dispatch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events import BaseEvent
from pydantic import InstanceOf, field_serializer
from typing_extensions import override

from pomlflow.dispatch import RenderContext, dispatch, set_sink
from pomlflow.record import RenderRecord

_dispatcher = get_dispatcher("pomlflow.llama_index")


class PomlRenderEvent(BaseEvent):
    """One POML render, successful or failed, for any LlamaIndex event handler.

    It is dispatched when the render has ended, through the dispatcher ``pomlflow.llama_index``, which propagates to
    the root. Its ``span_id`` is that of the LlamaIndex span around the render (a model's predict, a query, an agent's
    step), or None outside of all spans. The render has no LlamaIndex span; its times are in the record. Like
    LlamaIndex's own events about models, it holds content.

    Attributes:
        record: The render.

    Example:
        >>> from llama_index.core.instrumentation import get_dispatcher
        >>> from llama_index.core.instrumentation.event_handlers import BaseEventHandler
        >>> class Durations(BaseEventHandler):
        ...     def handle(self, event, **kwargs):
        ...         if isinstance(event, PomlRenderEvent):
        ...             print(event.record.name, event.record.end_ns - event.record.start_ns)
        >>> get_dispatcher().add_event_handler(Durations())
    """

    record: InstanceOf[RenderRecord]

    @classmethod
    @override
    def class_name(cls) -> str:
        """Return the event's name, by which handlers distinguish events."""
        return "PomlRenderEvent"

    @field_serializer("record")
    def _plain(self, record: RenderRecord) -> dict[str, Any]:
        """Return JSON types only, for handlers that store events."""
        names = ("name", "path", "digest", "source", "output", "start_ns", "end_ns", "poml_version")
        fields = {name: getattr(record, name) for name in names}
        error = None if record.error is None else str(record.error)
        return {**fields, "variables": dict(record.variables), "error": error}


def dispatch_render(record: RenderRecord, file: Path | None) -> None:
    """Dispatch a render to LlamaIndex's event handlers, and to the sink that traces it."""
    _dispatcher.event(PomlRenderEvent(record=record))
    if any(handler.class_name() == "MlflowEventHandler" for handler in _dispatcher.root.event_handlers):
        # MLflow's autolog ignores events that are not LlamaIndex's own, so our sink traces the render. Our handler
        # imports MLflow, which autolog has imported already.
        from pomlflow.llama_index.handler import trace_in_span

        set_sink("llama_index", trace_in_span)
    dispatch(record, RenderContext("llama_index", file=file))
