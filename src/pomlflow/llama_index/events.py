"""The event that tells LlamaIndex's instrumentation about each POML render."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.event_handlers import BaseEventHandler, NullEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from pydantic import InstanceOf, field_serializer
from typing_extensions import override

from pomlflow.dispatch import RenderContext, dispatch, set_sink
from pomlflow.llama_index.texts import remember
from pomlflow.record import RenderRecord

__all__ = ["PomlRenderEvent", "deliver"]

_dispatcher = get_dispatcher("pomlflow.llama_index")


class PomlRenderEvent(BaseEvent):
    """One POML render, also a failed one; any LlamaIndex event handler gets it.

    It is dispatched when the render has ended, through the dispatcher ``pomlflow.llama_index``, which propagates to
    the root. Its ``span_id`` is the LlamaIndex span in which the prompt was rendered (an LLM's predict, a query, an
    agent's step), or None outside of all. There is no LlamaIndex span for the render itself: its real times are the
    record's. As LlamaIndex's own events about models do, it holds the content.

    Args:
        record: The render.

    Example:
        >>> from llama_index.core.instrumentation import get_dispatcher
        >>> from llama_index.core.instrumentation.event_handlers import BaseEventHandler
        >>> class Lengths(BaseEventHandler):
        ...     def handle(self, event, **kwargs):
        ...         if isinstance(event, PomlRenderEvent):
        ...             print(event.record.name, event.record.end_ns - event.record.start_ns)
        >>> get_dispatcher().add_event_handler(Lengths())
    """

    record: InstanceOf[RenderRecord]

    @classmethod
    @override
    def class_name(cls) -> str:
        """The event's name, by which handlers tell events apart."""
        return "PomlRenderEvent"

    @field_serializer("record")
    def _plain(self, record: RenderRecord) -> dict[str, Any]:
        """Give JSON's types only, so that listeners which write events down can."""
        return {
            "name": record.name,
            "path": record.path,
            "digest": record.digest,
            "source": record.source,
            "variables": dict(record.variables),
            "output": None if record.output is None else dict(record.output),
            "error": None if record.error is None else str(record.error),
            "start_ns": record.start_ns,
            "end_ns": record.end_ns,
            "engine": record.engine,
            "poml_version": record.poml_version,
        }


def deliver(record: RenderRecord, file: Path | None) -> None:
    """Dispatch a render: to LlamaIndex's event handlers, and to what traces it.

    Args:
        record: The render.
        file: The absolute path of its file; None for inline markup.
    """
    if active_span_id.get() is None:  # no run: its text may be an agent's system prompt
        remember(record)
    handlers = list(_listening())
    if handlers:
        _dispatcher.event(PomlRenderEvent(record=record))
    if any(handler.class_name() == "MlflowEventHandler" for handler in handlers):
        # MLflow's autolog, which ignores events that are not LlamaIndex's own.
        from pomlflow.llama_index.handler import trace_in_span

        set_sink("llama_index", trace_in_span)
    dispatch(record, RenderContext("llama_index", file=file))


def _listening() -> Iterator[BaseEventHandler]:
    dispatcher = _dispatcher
    while True:
        yield from (handler for handler in dispatcher.event_handlers if type(handler) is not NullEventHandler)
        if not dispatcher.propagate or dispatcher is dispatcher.root:
            return
        dispatcher = dispatcher.parent
