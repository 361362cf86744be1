"""Make MLflow spans of LlamaIndex's spans.

The tree is that of MLflow's own LlamaIndex tracer, without its faults.

A span whose call has returned stays open while streams below it are open. So the root span ends last, which is when
MLflow stores the trace. When a span fails, all spans below it whose calls have returned are ended, because LlamaIndex
reports no further events for them.
"""

# upstream: mlflow 3.12-3.18: its own LlamaIndex tracer has five faults, each with a test that finds it
# 1. A streaming query leaves its spans in memory; if it is not read to its end, its trace stays in progress.
# 2. Async streams are taken for results, and the spans above them never end.
# 3. What LlamaIndex does in a user's own span (`@mlflow.trace`) in a tool is not nested in that span.
# 4. A task that outlives its trace loses all later ones.
# 5. What a generator does while it is read is not nested in its span, which LlamaIndex has left by then.

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from inspect import BoundArguments
from typing import Any, Final

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
)
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.workflow import Workflow
from mlflow.entities import LiveSpan, SpanStatus, SpanStatusCode, SpanType
from mlflow.tracing import provider
from mlflow.tracing.utils import set_span_chat_tools
from pydantic import Field

from pomlflow._log import warn_once
from pomlflow.frame.media import with_data_uris
from pomlflow.llama_index.mlflow_tracer import (
    UNREAD,
    autolog_handler,
    autolog_span,
    documents,
    inputs_of,
    inside,
    mlflow_details,
    start_span,
)
from pomlflow.llama_index.streams import Deferred, frame_of, holds_stream, stream_of
from pomlflow.tracking.redaction import GuardedSpan
from pomlflow.tracking.shutdown import call_before_exit, call_before_flush

# Attributes from events that describe a model or tool and hold no content; MLflow's own keys are stored as well.
_SAFE: Final = frozenset({"usage", "model_name", "top_n", "name", "description", "parameters"})


class SpanState(Enum):
    """The state of a span. LlamaIndex leaves a span when its call returns or fails."""

    OPEN = auto()  # the call is running
    STREAMING = auto()  # LlamaIndex has left it; its result is a stream that has not ended
    EXITED = auto()  # LlamaIndex has left it; it waits for spans below it, or has ended


@dataclass(eq=False)
class TracedSpan:
    """A LlamaIndex span that is traced."""

    id: str  # LlamaIndex's
    guarded: GuardedSpan
    handler: Any  # the handler whose trace it is part of
    parent: TracedSpan | None  # the traced span around it
    is_model: bool  # whether its component is a model
    state: SpanState = SpanState.OPEN
    token: Any = None  # of the context in which it is active
    streamed: bool = False  # whether its result is a stream
    stream: Callable[[], Any] = lambda: None  # a weak reference to its stream, if that is a generator
    frame: int = 0  # the id of the stream's frame
    runs_lazily: bool = False  # whether spans have begun below it after LlamaIndex had left it
    below: dict[str, TracedSpan] = field(default_factory=dict)  # its children that have not ended, by LlamaIndex's id
    outputs: Any = None  # the last piece of its stream
    text: str | None = None  # the text of its stream, or of a stream below it
    error: BaseException | None = None

    @property
    def waits(self) -> bool:
        """Whether it must stay open for children: for any if it streams, else for those that LlamaIndex has left."""
        return any(child.state is not SpanState.OPEN or self.streamed for child in list(self.below.values()))

    def is_in(self, other: TracedSpan) -> bool:
        """Return whether it is the other span, or below it."""
        span: TracedSpan | None = self
        while span is not None and span is not other:
            span = span.parent
        return span is not None

    def streamed_text(self) -> str | None:
        """Return the text of its stream."""
        if self.text is not None:
            return self.text
        last = self.outputs
        text = last.message.content if isinstance(last, ChatResponse) else getattr(last, "text", None)
        return None if text is None else str(text)

    def take_stream_of(self, child: TracedSpan) -> None:
        """Use the text and the error of a stream below it that has ended."""
        self.text = child.streamed_text() or self.text
        # A model's streams are nested: that of LLM.stream reads that of LLM.stream_chat, and ends with it.
        if self.is_model and self.state is SpanState.STREAMING and (child.error is not None or not self.runs_lazily):
            self.state = SpanState.EXITED
        if self.streamed and self.state is not SpanState.OPEN:
            self.error = self.error or child.error

    def end(self) -> None:
        """Store the content of its stream and its status, and end MLflow's span."""
        if self.streamed:
            self.guarded.set_outputs(self.text if self.outputs is None else self.outputs)
        status = SpanStatus(SpanStatusCode.OK)
        if self.error is not None:
            self.guarded.record_exception(self.error)  # type: ignore[arg-type]  # MLflow takes any exception
            status = SpanStatus(SpanStatusCode.ERROR, str(self.error))
        self.guarded.end(status)


class SpanHandler(BaseSpanHandler[Any]):
    """The span handler in LlamaIndex's dispatcher; `choose` returns the handler for a span without a traced parent."""

    choose: Any = Field(default=None, repr=False)
    traced: dict[str, Any] = Field(default_factory=dict, repr=False)  # TracedSpan by LlamaIndex's id
    by_frame: dict[int, Any] = Field(default_factory=dict, repr=False)  # TracedSpan by the id of its generator's frame
    handlers: dict[str, Any] = Field(default_factory=dict, repr=False)  # by the ids of autolog's spans
    details: Any = Field(default=None, repr=False)
    deferred: Any = Field(default=None, repr=False)

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        super().__init__()
        self.choose = choose

    @classmethod
    def class_name(cls) -> str:
        """Return a name of its own, since MLflow removes handlers by name."""
        return "PomlSpanHandler"

    def start(self) -> None:
        """Prepare for spans, once."""
        if self.details is None:
            call_before_exit(self.end_streams)
            call_before_flush(self.end_read_streams)
            self.details = mlflow_details(self)
            self.deferred = Deferred()

    def end_streams(self) -> None:
        """End the spans that LlamaIndex has left. At exit, a stream may still be referenced and not read to its end."""
        for span in reversed(list(self.traced.values())):  # children before their parents
            if span.state is not SpanState.OPEN:
                span.text = span.streamed_text() or UNREAD
                self._end(span)

    def end_read_streams(self) -> None:
        """End the spans of streams that were read to their end: a variable may hold a generator long after that."""
        for span in reversed(list(self.traced.values())):
            stream = span.stream()
            if span.state is SpanState.STREAMING and stream is not None and frame_of(stream) is None:
                self._end_stream_safely(span, None, None)

    def find(self, span_id: str | None) -> tuple[LiveSpan | None, Any]:
        """Return the MLflow span for what happens now in a LlamaIndex span, ours or autolog's, and its handler."""
        if (found := self._around(span_id)) is not None:
            return found.guarded.span, found.handler
        return autolog_span(span_id), self.handlers.get(span_id or "")

    # MLflow's event handler calls these two methods of its span handler:

    def get_span_for_event(self, event: BaseEvent) -> GuardedSpan | None:
        """Return the span of an event."""
        return getattr(self.traced.get(event.span_id or ""), "guarded", None)

    def resolve_pending_stream_span(self, span: LiveSpan, event: BaseEvent) -> None:
        """Do nothing, since this class handles the ends of streams."""

    def new_span(  # type: ignore[override] # all arguments are passed by name
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        **_: Any,
    ) -> TracedSpan | None:
        """Begin a span, if a handler traces it."""
        try:
            parent = self._around(parent_span_id)
            handler = parent.handler if parent else self.handlers.get(parent_span_id or "") or self.choose(instance)
            if handler is None:
                return None
            if autolog_handler() is not None:  # autolog makes the spans, and only POML spans are added
                self.handlers[id_] = handler
                return None
            return self._begin(id_, bound_args, instance, parent, handler)
        except Exception as error:  # noqa: BLE001 - telemetry never raises, and the dispatcher would hide it
            warn_once("llama-index span", "A LlamaIndex span could not be traced: %r", error)
            return None

    def prepare_to_exit_span(  # type: ignore[override]
        self, id_: str, instance: Any = None, result: Any = None, **_: Any
    ) -> TracedSpan | None:
        """End a span whose call has returned, or keep it open for streams."""
        if result is None and isinstance(instance, Workflow) and id_.partition("-")[0].endswith(".run"):
            # A cancelled run exits like this, without an error (LlamaIndex's workflows 2.26).
            return self._leave(id_, lambda span: self._fail(span, None))
        return self._leave(id_, lambda span: self._exit(span, result))

    def prepare_to_drop_span(  # type: ignore[override]
        self, id_: str, err: BaseException | None = None, **_: Any
    ) -> TracedSpan | None:
        """End a span that failed."""
        return self._leave(id_, lambda span: self._fail(span, err))

    def on_event(self, event: BaseEvent) -> None:
        """Store an event's content and attributes in its span."""
        if isinstance(event, (LLMStructuredPredictInProgressEvent, LLMStructuredPredictEndEvent)):
            self._on_structured(event)
            return
        span = self.traced.get(event.span_id or "")
        if span is None:
            return
        if isinstance(event, ExceptionEvent):
            if span.state is not SpanState.OPEN:
                self._end_stream_safely(span, None, event.exception)
            return
        self.details.handle(event)
        if isinstance(event, (LLMChatInProgressEvent, LLMCompletionInProgressEvent)):
            span.outputs = event.response
        elif span.state is not SpanState.OPEN and isinstance(event, (LLMChatEndEvent, LLMCompletionEndEvent)):
            span.outputs = event.response
            self._end_stream(span, None, None)

    def _around(self, span_id: str | None) -> TracedSpan | None:
        """Return the span with the id, or that of the nearest traced generator on the stack if it is not below it."""
        found: TracedSpan | None = self.traced.get(span_id or "")
        frame = inspect.currentframe() if self.by_frame else None
        while frame is not None:
            lazy: TracedSpan | None = self.by_frame.get(id(frame))
            stream = None if lazy is None else lazy.stream()
            if lazy is not None and stream is not None and frame_of(stream) is frame:  # ids are reused
                return found if found is not None and found.is_in(lazy) else lazy
            frame = frame.f_back
        return found

    def _begin(
        self, id_: str, bound_args: BoundArguments, instance: Any, parent: TracedSpan | None, handler: Any
    ) -> TracedSpan:
        is_model, inputs = isinstance(instance, BaseLLM), inputs_of(bound_args)
        live = start_span(
            id_.partition("-")[0],
            self.details.span_type(instance) or SpanType.UNKNOWN,
            self.details.attributes(instance) or {},
            None if parent is None else parent.guarded.span,
        )
        guarded = GuardedSpan(live, handler.mask, with_data_uris, safe=_SAFE)
        span = TracedSpan(id_, guarded, handler, parent, is_model)
        self.traced[id_] = span
        if parent is not None:
            parent.below[id_] = span
            parent.runs_lazily = parent.runs_lazily or parent.state is not SpanState.OPEN
        span.token = provider.set_span_in_context(live)
        if is_model and (tools := inputs.get("kwargs", {}).get("tools")):
            with suppress(Exception):  # tools in another form than MLflow's
                set_span_chat_tools(live, tools)
        guarded.set_inputs(inputs)
        return span

    def _leave(self, id_: str, how: Callable[[TracedSpan], None]) -> TracedSpan | None:
        self.handlers.pop(id_, None)
        span: TracedSpan | None = self.traced.get(id_)
        if span is not None:
            with suppress(Exception):  # another context than that in which it began
                provider.detach_span_from_context(span.token)
            self.deferred.do(partial(how, span))  # the garbage collector may close a coroutine, which leaves its span
        return span

    def _exit(self, span: TracedSpan, result: Any) -> None:
        state = SpanState.EXITED
        if not holds_stream(result):
            # Stored now: a span that waits must not reference a result, which may hold the stream that it waits for.
            span.guarded.set_outputs(documents(span.guarded.span, result))
        else:
            span.streamed = True
            within, ended = partial(inside, span.guarded.span, span.id), partial(self._end_stream_safely, span)
            stream = stream_of(result, within, ended)
            if stream is not None and frame_of(stream) is not None:
                self._watch(span, stream)
                state = SpanState.STREAMING
            # Otherwise a thread of LlamaIndex reads the stream, and the span waits for the spans below it.
        span.state = state  # set last: from now on, the end of a span below on another thread may end this span
        self._settle(span)

    def _fail(self, span: TracedSpan, error: BaseException | None) -> None:
        self._end_below(span)
        span.error = error
        span.state = SpanState.EXITED
        self._settle(span)

    def _end_below(self, span: TracedSpan) -> None:
        """End the spans below a span that failed or whose stream has ended, except those whose calls are running."""
        for child in list(span.below.values()):
            if child.state is not SpanState.OPEN:
                self._end_below(child)
                self._end(child)

    def _watch(self, span: TracedSpan, stream: Any) -> None:
        """End a span when its stream is collected, and register the stream's frame, by which `_around` finds it."""
        span.stream = weakref.ref(stream, lambda _: self._end_stream_safely(span, None, None))
        span.frame = id(frame_of(stream))
        known = self.by_frame.get(span.frame)  # ids are reused
        if known is None or known.stream() is not stream:  # else the inner span that returned it first stays
            self.by_frame[span.frame] = span

    def _on_structured(self, event: LLMStructuredPredictInProgressEvent | LLMStructuredPredictEndEvent) -> None:
        """Store an object of a stream of objects. The event comes from the code that reads the stream."""
        span = self._around(event.span_id)
        if span is not None and span.state is not SpanState.OPEN:
            span.outputs = event.output
            if isinstance(event, LLMStructuredPredictEndEvent):
                self._end_stream(span, None, None)

    def _end_stream_safely(self, span: TracedSpan, text: str | None, error: BaseException | None) -> None:
        self.deferred.do(partial(self._end_stream, span, text, error))

    def _end_stream(self, span: TracedSpan, text: str | None, error: BaseException | None) -> None:
        span.text = text or span.text
        if error is not None and not isinstance(error, GeneratorExit):  # GeneratorExit: the reader stopped reading
            span.error = error
        self._end_below(span)
        if span.state is SpanState.STREAMING:
            span.state = SpanState.EXITED
        self._settle(span)

    def _settle(self, span: TracedSpan | None) -> None:
        """End a span if it waits for nothing, and then the spans above it that waited only for it."""
        while span is not None and span.state is SpanState.EXITED and not span.waits and self._end(span):
            span = span.parent

    def _end(self, span: TracedSpan) -> bool:
        """End a span; return False if another thread has ended it."""
        if self.traced.pop(span.id, None) is None:
            return False
        if self.by_frame.get(span.frame) is span:
            del self.by_frame[span.frame]
        span.end()
        if span.parent is not None:
            span.parent.below.pop(span.id, None)
            if span.streamed:
                span.parent.take_stream_of(span)
        return True
