"""LlamaIndex's spans as MLflow's.

The tree is that of MLflow's own tracer, without its faults, seen with MLflow 3.12 to 3.17; each has a test that tells
when MLflow does it right by itself:

1. A streaming query leaves its spans in the tracer's memory; one that is not read to its end leaves its trace open for
   ever, and its generator alive.
2. Async streams are taken for results: their span ends with a generator's address for an answer, those above it never.
3. What LlamaIndex does in a span of the user's own (``@mlflow.trace``) inside a tool is put beside that span.
4. A task that outlives its trace loses all later ones.
5. What a generator does as it is read (`LLM.stream_structured_predict` renders and calls its model then) is put beside
   its span, which LlamaIndex has left by then.

A span that has exited waits for the streams below it. So the root ends last, which is when MLflow stores the trace.
Under MLflow's autolog the first two are mended as well (`LeftSpan`): its spans are begun by it, and ended here.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import BoundArguments
from typing import Any

import mlflow
from llama_index.core.base.llms.base import BaseLLM
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
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from mlflow.entities import LiveSpan
from mlflow.tracing import provider
from mlflow.tracing.trace_manager import InMemoryTraceManager
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN
from pydantic import Field

from pomlflow.llama_index.left_span import LeftSpan
from pomlflow.llama_index.mlflow_tracer import Autolog, Details, autolog_handler
from pomlflow.llama_index.open_span import OpenSpan, Owner, inputs_of
from pomlflow.llama_index.streams import Later, follow, frame_of, has_ended, holds_stream, response_of, stream_of
from pomlflow.tracking.spans import active, warn_once, within

__all__ = ["Spans", "has_outlived_trace", "nearest"]

_MOST_LEFT = 4_096


class Spans(BaseSpanHandler[Any]):
    """Make MLflow's spans of those LlamaIndex spans that somebody wants. It stands in LlamaIndex's dispatcher.

    Args:
        choose: Gives, for the component of a span that has no traced span around it, whose trace begins here, or None.
    """

    # Fields, because pydantic finds private attributes a microsecond later.
    choose: Any = Field(default=None, repr=False)
    alive: dict[str, Any] = Field(default_factory=dict, repr=False)  # OpenSpan by LlamaIndex's id
    left: dict[str, Any] = Field(default_factory=dict, repr=False)  # weak references to owners, the same
    lazy: dict[int, Any] = Field(default_factory=dict, repr=False)  # OpenSpan by the id of its generator's frame
    autolog: Any = Field(default=None, repr=False)
    details: Any = Field(default=None, repr=False)
    later: Any = Field(default=None, repr=False)

    def __init__(self, choose: Callable[[Any], Owner | None]) -> None:
        super().__init__()
        self.choose = choose
        self.autolog = Autolog()
        self.details = Details(self._writable)
        self.later = Later()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Spans:
        return self

    @classmethod
    def class_name(cls) -> str:
        """A name of its own: MLflow takes handlers away by name."""
        return "PomlSpanHandler"

    def find(self, span_id: str | None) -> tuple[LiveSpan | None, Owner | None]:
        """The MLflow span of a LlamaIndex span, ours or autolog's, and whose trace it is, as far as that is known."""
        if (opened := self._around(span_id)) is not None:
            return opened.span, opened.owner
        return self.autolog.span(span_id), self._owner_of_left(span_id)

    # What LlamaIndex calls.

    def new_span(  # type: ignore[override] # tags, too, are passed by name, and not used
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        **_: Any,
    ) -> OpenSpan | None:
        """Begin a span, where somebody wants it."""
        try:
            self.later.catch_up()
            if (parent := self._around(parent_span_id)) is not None:
                parent_span_id = parent.id
            if (handler := autolog_handler()) is not None:
                return self._leave(handler, id_, bound_args, instance, parent, parent_span_id)
            owner = parent.owner if parent is not None else self.choose(instance)
            return None if owner is None else self._begin(id_, bound_args, instance, parent, owner)
        except Exception as error:  # noqa: BLE001 - telemetry never hurts; the dispatcher would swallow it in silence
            warn_once("llama-index span", "a LlamaIndex span could not be traced: %r", error)
            return None

    def prepare_to_exit_span(
        self, id_: str, bound_args: BoundArguments, instance: Any = None, result: Any = None, **_: Any
    ) -> OpenSpan | None:
        """End a span, or let it wait for its stream."""
        opened = self.alive.get(id_)
        try:
            if opened is not None:
                self._exit(opened, result)
            if (handler := self.autolog.orphaned(id_)) is not None:
                handler.span_exit(id_=id_, bound_args=bound_args, instance=instance, result=result)
        except Exception as error:  # noqa: BLE001
            warn_once("llama-index span end", "a LlamaIndex span could not be ended properly: %r", error)
        return opened

    def prepare_to_drop_span(
        self, id_: str, bound_args: BoundArguments, instance: Any = None, err: BaseException | None = None, **_: Any
    ) -> OpenSpan | None:
        """End a span that failed."""
        opened = self.alive.get(id_)
        try:
            if opened is not None:
                self._drop(opened, err)
            if (handler := self.autolog.orphaned(id_)) is not None:
                handler.span_drop(id_=id_, bound_args=bound_args, instance=instance, err=err)
        except Exception as error:  # noqa: BLE001
            warn_once("llama-index span end", "a LlamaIndex span could not be ended properly: %r", error)
        return opened

    def on_event(self, event: BaseEvent) -> None:
        """Take from an event what it tells of its span."""
        if isinstance(event, (LLMStructuredPredictInProgressEvent, LLMStructuredPredictEndEvent)):
            self._predicted(event)
            return
        opened = self.alive.get(event.span_id or "")
        if opened is None or (isinstance(opened, LeftSpan) and not opened.taken_over):
            self.autolog.note(event)
        if opened is None:
            return
        if isinstance(event, ExceptionEvent):
            if opened.exited:
                self.later.do(partial(self._stream_ended, opened, None, event.exception))
        else:
            if not isinstance(opened, LeftSpan) or opened.taken_over:  # before it ends: MLflow's handler comes later
                self.details.note(event)
            if isinstance(event, (LLMChatInProgressEvent, LLMCompletionInProgressEvent)):
                opened.outputs = event.response
            elif opened.exited and isinstance(event, (LLMChatEndEvent, LLMCompletionEndEvent)):
                opened.outputs = event.response
                self._stream_ended(opened, None, None)

    # The life of a span.

    def _around(self, span_id: str | None) -> OpenSpan | None:
        """The span that something is part of: LlamaIndex's active one, or that of a generator that is read in it."""
        opened: OpenSpan | None = self.alive.get(span_id or "")
        frame = sys._getframe(1) if self.lazy else None
        while frame is not None:
            lazy: OpenSpan | None = self.lazy.get(id(frame))
            stream = None if lazy is None or lazy.stream is None else lazy.stream()
            if lazy is not None and stream is not None and frame_of(stream) is frame:  # ids come again
                return opened if opened is not None and opened.is_in(lazy) else lazy
            frame = frame.f_back
        return opened

    def _leave(
        self,
        handler: Any,
        id_: str,
        bound_args: BoundArguments,
        instance: Any,
        parent: OpenSpan | None,
        parent_id: str | None,
    ) -> OpenSpan | None:
        """Leave a span to MLflow's autolog; a POML span in it is still its owner's, and a stream is seen to its end."""
        self.autolog.leave_to(handler)
        owner = parent.owner if parent is not None else self._owner_of_left(parent_id) or self.choose(instance)
        if owner is None:
            return None
        self.left[id_] = weakref.ref(owner)
        while len(self.left) > _MOST_LEFT:
            self.left.pop(next(iter(self.left)), None)
        # LlamaIndex's own call of it, which comes later, finds that done.
        handler.span_enter(id_=id_, bound_args=bound_args, instance=instance, parent_id=parent_id)
        if (span := self.autolog.span(id_)) is None:
            return None
        opened = LeftSpan(id_, span, owner, parent, isinstance(instance, BaseLLM), handler=handler)
        self._keep(opened)
        return opened

    def _predicted(self, event: LLMStructuredPredictInProgressEvent | LLMStructuredPredictEndEvent) -> None:
        """Take an object out of the stream of such: it is told of where the stream is read."""
        opened = self._around(event.span_id)
        if opened is not None and opened.exited:
            opened.outputs = event.output
            if isinstance(event, LLMStructuredPredictEndEvent):
                self._stream_ended(opened, None, None)

    def _keep(self, opened: OpenSpan) -> None:
        self.alive[opened.id] = opened
        if (parent := opened.parent) is not None:
            parent.below[opened.id] = opened
            parent.lazy = parent.lazy or parent.exited

    def _owner_of_left(self, span_id: str | None) -> Owner | None:
        owner = self.left.get(span_id or "")
        return None if owner is None else owner()

    def _begin(
        self, id_: str, bound_args: BoundArguments, instance: Any, parent: OpenSpan | None, owner: Owner
    ) -> OpenSpan | None:
        inputs = inputs_of(bound_args)
        anew = parent is None and has_outlived_trace()
        with active(INVALID_SPAN) if anew else nullcontext():
            span = mlflow.start_span_no_context(
                name=id_.partition("-")[0],
                parent_span=mlflow.get_current_active_span() if parent is None else nearest(parent.span),
                span_type=self.details.span_type(instance),
                attributes=self._attributes(instance),
            )
        opened = OpenSpan(id_, span, owner, parent, isinstance(instance, BaseLLM))
        self._keep(opened)
        opened.token = provider.set_span_in_context(span)
        opened.begin(inputs)
        return opened

    def _attributes(self, instance: Any) -> dict[str, Any]:
        try:
            attributes: dict[str, Any] = self.details.attributes(instance)
        except Exception as error:  # noqa: BLE001 - a component's own code, such as a model's metadata
            warn_once("llama-index attributes", "a component's attributes could not be traced: %r", error)
            return {}
        return attributes

    def _exit(self, opened: OpenSpan, result: Any) -> None:
        opened.leave_context()
        opened.streaming = holds_stream(result)
        if isinstance(opened, LeftSpan) and (opened.streaming or opened.waits) and not self.autolog.missing:
            opened.take_over()
        if not opened.streaming:
            opened.outputs, opened.ready = result, True
        elif (response := response_of(result)) is not None:
            ended = partial(self._follower_ended, opened)
            opened.stream = self._watch(follow(response, partial(_inside, _origin(opened, response)), ended), opened)
        elif (stream := stream_of(result)) is not None:
            opened.stream = self._watch(stream, opened)
            opened.frame = id(frame_of(stream))
            self.lazy[opened.frame] = opened
            opened.ready = opened.ready or has_ended(stream)
        else:  # followed already, or read by a thread of LlamaIndex's: the spans below tell when it has ended
            opened.ready = True
        opened.exited = True  # the last, because what is below may end on another thread just now
        self._settle(opened)

    def _drop(self, opened: OpenSpan, error: BaseException | None) -> None:
        opened.leave_context()
        for child in list(opened.below.values()):
            if child.exited:
                self._stream_ended(child, None, None)
        opened.error = error
        opened.ready = opened.exited = True
        self._settle(opened)

    def _watch(self, stream: Any, opened: OpenSpan) -> weakref.ref[Any]:
        """Have a span end with its stream where nobody reads that to its end."""

        def dropped(_: weakref.ref[Any]) -> None:
            self.later.do(partial(self._stream_ended, opened, None, None))

        return weakref.ref(stream, dropped)

    def _follower_ended(self, opened: OpenSpan, text: str | None, error: BaseException | None) -> None:
        self.later.do(partial(self._stream_ended, opened, text, error))

    def _stream_ended(self, opened: OpenSpan, text: str | None, error: BaseException | None) -> None:
        try:
            opened.text = text or opened.text
            if error is not None and not isinstance(error, GeneratorExit):  # who stops reading has not failed
                opened.error = error
            self._settle_below(opened)
            opened.ready = True
            self._settle(opened)
        except Exception as failed:  # noqa: BLE001 - this runs in the user's reading of the stream
            warn_once("llama-index span end", "a LlamaIndex span could not be ended properly: %r", failed)

    def _settle_below(self, opened: OpenSpan) -> None:
        """Let go of generators in between that came to their end with the one around them."""
        for child in list(opened.below.values()):
            if not child.exited:
                continue
            self._settle_below(child)
            stream = None if child.stream is None else child.stream()
            if stream is None or has_ended(stream):
                child.text = child.text or opened.text
                child.ready = True
                self._settle(child)

    def _settle(self, opened: OpenSpan) -> None:
        """End a span that waits for nothing, and those above that waited for it alone."""
        while opened.exited and opened.ready and not opened.waits:
            if self.alive.pop(opened.id, None) is None:  # another thread was faster
                return
            self.lazy.pop(opened.frame, None)
            opened.end()
            parent = opened.parent
            if parent is None:
                return
            parent.below.pop(opened.id, None)
            if opened.streaming:
                parent.learn(opened)
            opened = parent

    def _writable(self, span_id: str | None) -> Any:
        opened = self.alive.get(span_id or "")
        return None if opened is None else opened.writable


def nearest(span: LiveSpan) -> LiveSpan:
    """The span that something made here and now in a component belongs under.

    Args:
        span: The component's.

    Returns:
        The user's own span (``@mlflow.trace``), where one is open inside the component; else the component's.
    """
    current: Any = provider.get_current_otel_span()
    if current is span._span:  # mostly, and MLflow would make a new object of it
        return span
    inner = mlflow.get_current_active_span()
    return inner if inner is not None and within(inner, span) else span


def has_outlived_trace() -> bool:
    """Whether this task began in a trace that has ended, whose span MLflow would take for the parent of a new one."""
    current: Any = provider.get_current_otel_span()
    if not isinstance(current, ReadableSpan):
        return False
    span = mlflow.get_current_active_span()
    if span is None:
        return True
    traces = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call]
    root = traces.get_span_from_id(span.trace_id, traces.get_root_span_id(span.trace_id))
    return root is not None and root.end_time_ns is not None


@contextmanager
def _inside(opened: OpenSpan) -> Iterator[None]:
    """Make a span the active one, for MLflow and for LlamaIndex."""
    span: Any = opened.span._span
    token = active_span_id.set(opened.id)
    try:
        with active(span):
            yield
    finally:
        active_span_id.reset(token)


def _origin(opened: OpenSpan, response: Any) -> OpenSpan:
    """The innermost span that a response's stream comes from."""
    for child in opened.below.values():
        if child.stream is not None and child.stream() is response.response_gen:
            return _origin(child, response)
    return opened
