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
# 4. A task that outlives its trace loses the spans of its later traces.
# 5. What a generator does while it is read is not nested in its span, which LlamaIndex has left by then.

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
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
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode, SpanType
from mlflow.tracing import provider
from mlflow.tracing.utils import set_span_chat_tools
from pydantic import Field

from pomlflow._log import warn_once
from pomlflow.frame.media import with_data_uris
from pomlflow.llama_index.mlflow_tracer import (
    activate,
    autolog_handler,
    autolog_span,
    documents,
    inputs_of,
    mlflow_functions,
    start_span,
)
from pomlflow.llama_index.streams import Deferred, frame_of, sources_of, stream_of
from pomlflow.tracking.redaction import GuardedSpan, warn_incomplete
from pomlflow.tracking.shutdown import call_before_flush

_OBJECTS: Final = (LLMStructuredPredictInProgressEvent, LLMStructuredPredictEndEvent)
_RESPONSES: Final = (LLMChatInProgressEvent, LLMCompletionInProgressEvent, LLMChatEndEvent, LLMCompletionEndEvent)
_ENDS: Final = (LLMChatEndEvent, LLMCompletionEndEvent, LLMStructuredPredictEndEvent)
# Attributes from events that describe a model or tool and hold no content; MLflow's own keys are stored as well.
_SAFE: Final = frozenset({"usage", "model_name", "top_n", "name", "description", "parameters"})


def _no_stream() -> None:
    return None


@dataclass(eq=False)
class TracedSpan:
    """A LlamaIndex span that is traced."""

    id: str  # LlamaIndex's
    guarded: GuardedSpan
    handler: Any  # the handler whose trace it is part of
    parent: TracedSpan | None  # the traced span around it
    token: Any = None  # of the context in which it is active
    left: bool = False  # whether LlamaIndex has left it: its call has returned or failed
    streams: bool = False  # whether its result is a stream
    stream: Callable[[], Any] = _no_stream  # a weak reference to its generator, until that has ended
    sources: list[Any] = field(default_factory=list)  # weak references to the streams that its generator reads
    below: dict[str, TracedSpan] = field(default_factory=dict)  # its children that have not ended, by LlamaIndex's id
    output: Any = None  # the last piece of its stream, or the text of it or of a stream below it
    failure: SpanEvent | None = None  # not an exception: its traceback would keep the generators of its frames alive

    @property
    def must_stay_open(self) -> bool:
        """Whether its call or its generator runs, or it waits for children."""
        runs = not self.left or frame_of(self.stream()) is not None
        # A stream waits for all of its children, another span only for those whose calls have returned.
        return runs or any(child.left or self.streams for child in list(self.below.values()))

    def is_in(self, other: TracedSpan) -> bool:
        """Return whether it is the other span, or below it."""
        span: TracedSpan | None = self
        while span is not None and span is not other:
            span = span.parent
        return span is not None

    def use_result_of(self, child: TracedSpan) -> None:
        """Use the text and the failure of a stream below it that has ended."""
        last = child.output
        text = last.message.content if isinstance(last, ChatResponse) else getattr(last, "text", last)
        if isinstance(text, str) and text and (self.output is None or isinstance(self.output, str)):
            self.output = text
        if self.streams and self.left:
            self.failure = self.failure or child.failure

    def end(self) -> None:
        """Store the content of its stream and its status, and end MLflow's span."""
        if self.streams:
            self.guarded.set_outputs(self.output)
        status = SpanStatus(SpanStatusCode.OK)
        if self.failure is not None:
            self.guarded.add_event(self.failure)
            status = SpanStatus(SpanStatusCode.ERROR, str(self.failure.attributes["exception.message"]))
        self.guarded.end(status)


class SpanHandler(BaseSpanHandler[Any]):
    """The span handler in LlamaIndex's dispatcher; `choose` returns the handler for a span without a traced parent."""

    choose: Any = Field(default=None, repr=False)
    # The base class's `open_spans` has each TracedSpan until it has ended, by LlamaIndex's id.
    streaming: dict[str, Any] = Field(default_factory=dict, repr=False)  # those that have returned a generator
    handlers: dict[str, Any] = Field(default_factory=dict, repr=False)  # by the ids of autolog's spans
    mlflow: Any = Field(default=None, repr=False)
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
        if self.mlflow is None:
            call_before_flush(self.end_streams)
            self.mlflow = mlflow_functions(self)
            self.deferred = Deferred()

    def end_streams(self, is_exit: bool) -> None:
        """End the spans of streams that have ended, which a variable or traceback may hold; at exit, of all streams."""
        if not is_exit:
            for span in list(self.streaming.values()):
                self.deferred.do(self._settle, span)
            return
        for span in reversed(list(self.open_spans.values())):  # children before their parents
            if span.left:
                self._end(span)

    def find(self, span_id: str | None) -> tuple[LiveSpan | None, Any]:
        """Return the MLflow span (ours or autolog's) that new work in a LlamaIndex span belongs to, and its handler."""
        if (found := self._around(span_id)) is not None:
            return found.guarded.span, found.handler
        return autolog_span(span_id), self.handlers.get(span_id or "") or self.choose(None)

    # MLflow's event handler calls these two methods of its span handler:

    def get_span_for_event(self, event: BaseEvent) -> GuardedSpan | None:
        """Return the span of an event."""
        return getattr(self.open_spans.get(event.span_id or ""), "guarded", None)

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

    # These two return nothing: the base class would remove a span that has to stay open.

    def prepare_to_exit_span(  # type: ignore[override]
        self, id_: str, instance: Any = None, result: Any = None, **_: Any
    ) -> None:
        """End a span whose call has returned, or keep it open for streams."""
        if result is None and isinstance(instance, Workflow) and id_.partition("-")[0].endswith(".run"):
            # A cancelled run exits like this, without an error (LlamaIndex's workflows 2.26).
            self._leave(id_, lambda span: self._fail(span, None))
        else:
            self._leave(id_, lambda span: self._exit(span, result))

    def prepare_to_drop_span(  # type: ignore[override]
        self, id_: str, err: BaseException | None = None, **_: Any
    ) -> None:
        """End a span that failed."""
        self._leave(id_, lambda span: self._fail(span, err))

    def on_event(self, event: BaseEvent) -> None:
        """Store an event's content and attributes in its span."""
        of_object = isinstance(event, _OBJECTS)  # its span id is that of the span in which the stream is read
        span = self._around(event.span_id) if of_object else self.open_spans.get(event.span_id or "")
        if span is None:
            return
        if isinstance(event, ExceptionEvent):
            if span.left:
                self.deferred.do(self._end_stream, span, None, event.exception)
        elif not isinstance(event, _OBJECTS):
            self.mlflow.handle(event)
        elif span.left:
            span.output = event.output
        if isinstance(event, _RESPONSES):
            span.output = event.response
        if span.left and isinstance(event, _ENDS):
            self.deferred.do(self._end_stream, span)

    def _around(self, span_id: str | None) -> TracedSpan | None:
        """Return the traced span that the calling code is part of, which runs in the LlamaIndex span with the id.

        If a traced generator is on the stack, that is the generator's span or one below it: when the generator is read,
        LlamaIndex has left its span, and the id is that of a span of its reader.
        """
        found: TracedSpan | None = self.open_spans.get(span_id or "")
        # If several spans return one generator, the innermost has returned first, and overrides the others here.
        running = {frame_of(span.stream()): span for span in reversed(list(self.streaming.values()))}
        frame = inspect.currentframe() if running else None
        while frame is not None:
            if (reading := running.get(frame)) is not None:
                return found if found is not None and found.is_in(reading) else reading
            frame = frame.f_back
        return found

    def _begin(
        self, id_: str, bound_args: BoundArguments, instance: Any, parent: TracedSpan | None, handler: Any
    ) -> TracedSpan:
        inputs = inputs_of(bound_args)  # first: it may raise, and a span that is active must end
        live = start_span(
            id_.partition("-")[0],
            self.mlflow.span_type(instance) or SpanType.UNKNOWN,
            None if parent is None else parent.guarded.span,
        )
        guarded = GuardedSpan(live, handler.mask, with_data_uris, safe=_SAFE)
        span = TracedSpan(id_, guarded, handler, parent)
        if parent is not None:
            parent.below[id_] = span
        span.token = provider.set_span_in_context(live)
        try:
            live.set_attributes(self.mlflow.attributes(instance) or {})
        except Exception as error:  # noqa: BLE001 - a model's metadata may raise; then its call also does
            warn_incomplete(error)
        guarded.set_inputs(inputs)
        with suppress(Exception):  # tools in another form than MLflow's
            if isinstance(instance, BaseLLM) and (tools := inputs.get("kwargs", {}).get("tools")):
                set_span_chat_tools(live, tools)
        return span

    def _leave(self, id_: str, end: Callable[[TracedSpan], None]) -> None:
        """Remove a span from the context, and call `end` with it."""
        self.handlers.pop(id_, None)
        span: TracedSpan | None = self.open_spans.get(id_)
        if span is not None:
            with suppress(Exception):  # another context than that in which it began
                provider.detach_span_from_context(span.token)
            self.deferred.do(end, span)  # the garbage collector may close a coroutine, which leaves its span

    def _exit(self, span: TracedSpan, result: Any) -> None:
        do = self.deferred.do
        stream = stream_of(result, partial(activate, span.guarded.span, span.id), partial(do, self._end_stream, span))
        if stream is None:
            # Stored now: a span that waits must not reference a result, which may hold the stream that it waits for.
            span.guarded.set_outputs(documents(span.guarded.span, result))
        elif frame_of(stream) is not None:
            span.stream = weakref.ref(stream, lambda _: do(self._end_stream, span))
            # A variable may hold the generator after its end. But its frame then drops the streams that it has read.
            span.sources = [weakref.ref(source, lambda _: do(self._settle, span)) for source in sources_of(stream)]
            self.streaming[span.id] = span
        # Else a thread of LlamaIndex reads the stream of a chat engine, and the span waits for the spans below it.
        span.streams = stream is not None
        span.left = True  # set last: from now on, the end of a span below on another thread may end this span
        self._settle(span)

    def _fail(self, span: TracedSpan, error: BaseException | None) -> None:
        self._end_below(span)
        span.failure = None if error is None else _failure(error)
        span.left = True
        self._settle(span)

    def _end_below(self, span: TracedSpan) -> None:
        """End the spans below a span that failed or whose stream has ended, except those whose calls are running."""
        for child in list(span.below.values()):
            if child.left:
                self._end_below(child)
                self._end(child)

    def _end_stream(self, span: TracedSpan, text: str | None = None, error: BaseException | None = None) -> None:
        span.output = text or span.output
        if error is not None and not isinstance(error, GeneratorExit):  # GeneratorExit: the reader stopped reading
            span.failure = _failure(error)
        self._end_below(span)
        span.stream = _no_stream
        self._settle(span)

    def _settle(self, span: TracedSpan | None) -> None:
        """End a span if it waits for nothing, and then the spans above it that waited only for it."""
        while span is not None and not span.must_stay_open:
            self._end(span)
            span = span.parent

    def _end(self, span: TracedSpan) -> None:
        if self.open_spans.pop(span.id, None) is None:  # it has ended
            return
        self.streaming.pop(span.id, None)
        span.end()
        if span.parent is not None:
            span.parent.below.pop(span.id, None)
            if span.streams:
                span.parent.use_result_of(span)


def _failure(error: BaseException) -> SpanEvent:
    return SpanEvent.from_exception(error)  # type: ignore[arg-type]  # MLflow takes any exception
