"""A LlamaIndex span that is being traced: what is known of it, and what of that is stored."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import BoundArguments
from typing import Any, Protocol, cast

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import StartEvent
from mlflow.entities import Document, LiveSpan, SpanEvent, SpanStatus, SpanStatusCode, SpanType
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
from mlflow.tracing import provider
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.utils import dump_span_attribute_value, set_span_chat_tools

from pomlflow.llama_index.messages import with_data_uris
from pomlflow.tracking.redaction import LimitedSpan, event_within_limit, within_limit
from pomlflow.tracking.spans import Mask, masked, masked_exception, store_content, warn_once

__all__ = ["OpenSpan", "Owner", "inputs_of"]

# What events tell of a model or tool rather than of what was said; MLflow's own keys beside.
_HARMLESS = {"usage", "model_name", "top_n", "name", "description", "parameters"}
_INCOMPLETE = "a LlamaIndex span is stored without all of its content: %r"
_OK = SpanStatus(SpanStatusCode.OK)


class Owner(Protocol):
    """Whose trace a span is part of."""

    register: bool
    mask: Mask | None


@dataclass(eq=False)
class OpenSpan:
    """A LlamaIndex span that has not ended.

    Attributes:
        id: LlamaIndex's.
        span: MLflow's.
        owner: Whose trace it is.
        parent: The LlamaIndex span around it, where that is traced.
        model: Whether it is a model's.
        token: What takes it out of the context.
        inputs: What a mask is still to see.
        exited: Whether LlamaIndex is done with it.
        ready: Whether its own stream, if any, has ended.
        streaming: Whether its result is a stream.
        stream: Its own stream.
        frame: The id of that generator's frame.
        lazy: Whether there were spans in it that began as its stream was read.
        below: The spans in it that have not ended.
        outputs: What it gave; for a stream what came last.
        text: What its stream, or one below it, came to.
        error: Why it failed.
    """

    id: str
    span: LiveSpan
    owner: Owner
    parent: OpenSpan | None
    model: bool
    token: Any = None
    inputs: Any = None
    exited: bool = False
    ready: bool = False
    streaming: bool = False
    stream: weakref.ref[Any] | None = None
    frame: int = 0
    lazy: bool = False
    below: dict[str, OpenSpan] = field(default_factory=dict)
    outputs: Any = None
    text: str | None = None
    error: BaseException | None = None

    @property
    def mask(self) -> Mask | None:
        """What says how much of it may be stored."""
        return self.owner.mask

    def is_in(self, other: OpenSpan) -> bool:
        """Whether it is another span, or somewhere in that."""
        opened: OpenSpan | None = self
        while opened is not None and opened is not other:
            opened = opened.parent
        return opened is not None

    @property
    def waits(self) -> bool:
        """Whether a span below is still to end: one that streams, or, in a stream, any."""
        return any(child.exited or self.streaming for child in list(self.below.values()))

    @property
    def writable(self) -> Any:
        """The span as MLflow's event handler may write to it."""
        if self.mask is None:
            return LimitedSpan(self.span)
        return _Guarded(self.span)

    def begin(self, inputs: dict[str, Any]) -> None:
        """Store the inputs, or keep them for the mask."""
        try:
            if self.span.trace_id == NO_OP_SPAN_TRACE_ID:
                return
            if self.model and (tools := inputs.get("kwargs", {}).get("tools")):
                with suppress(Exception):  # as MLflow does: a model may take its tools in a shape of its own
                    set_span_chat_tools(self.span, tools)
            if self.mask is not None:
                self.inputs = _plain(inputs)
                return
            store(self.span, SpanAttributeKey.INPUTS, within_limit(inputs, _plain))
        except Exception as failed:  # noqa: BLE001 - what is there of the span is still worth storing
            warn_once("llama-index content", _INCOMPLETE, failed)

    def leave_context(self) -> None:
        """Be the active span no longer."""
        token, self.token = self.token, None
        if token is not None:
            with suppress(Exception):  # another context than it was entered in
                provider.detach_span_from_context(token)

    def learn(self, child: OpenSpan) -> None:
        """Take over what a stream below came to."""
        self.text = child.told
        if self.model and not self.lazy:  # a model's generators are made of one another: LLM.stream of LLM.stream_chat
            self.ready = True
        if self.exited and self.streaming:
            self.error = self.error or child.error

    @property
    def told(self) -> str | None:
        """The text that its stream came to."""
        if self.text is not None:
            return self.text
        last = self.outputs
        text = last.message.content if isinstance(last, ChatResponse) else getattr(last, "text", None)
        return None if text is None else str(text)

    def end(self) -> None:
        """Store what there is, through the mask where there is one."""
        status = _OK
        try:
            if self.span.trace_id != NO_OP_SPAN_TRACE_ID:
                status = self._store()
        except Exception as failed:  # noqa: BLE001 - what is there of the span is still worth storing
            warn_once("llama-index content", _INCOMPLETE, failed)
        finally:
            self.span.end(status=status)

    def _store(self) -> SpanStatus:
        span, error, mask = self.span, self.error, self.mask
        outputs = self.text if self.streaming and self.outputs is None else self.outputs
        if span.span_type == SpanType.RETRIEVER and isinstance(outputs, list):
            outputs = [_document(node) for node in outputs]
        kept: dict[str, Any] = {}
        if mask is not None:
            kept = masked(mask, self.inputs, _plain({"error": str(error)} if error else outputs))
            if "inputs" in kept:
                store_content(span, SpanAttributeKey.INPUTS, within_limit(kept["inputs"]))
            outputs = kept.get("outputs")
        if error is None:
            if outputs is not None:
                store(span, SpanAttributeKey.OUTPUTS, within_limit(outputs, _plain))
            return _OK
        event = masked_exception(type(error).__name__, kept) if mask else SpanEvent.from_exception(cast("Any", error))
        event = event_within_limit(event)
        span.add_event(event)
        return SpanStatus(SpanStatusCode.ERROR, str(event.attributes["exception.message"]))


class _Guarded:
    """A span as MLflow's event handler may write to it where a mask is set."""

    def __init__(self, span: LiveSpan) -> None:
        self._span = span

    def set_attribute(self, key: str, value: Any) -> None:
        if key in _HARMLESS or key.startswith("mlflow."):
            self._span.set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span, name)


def inputs_of(bound_args: BoundArguments) -> dict[str, Any]:
    """A component's arguments; a workflow's are in its start event, beside the runtime's own."""
    arguments = bound_args.arguments
    start = arguments.get("start_event")
    return start.to_dict() if isinstance(start, StartEvent) else dict(arguments)


def _plain(value: Any) -> Any:
    """What JSON can hold of a value, as MLflow would store it."""
    return with_data_uris(json.loads(dump_span_attribute_value(value)))


def store(span: LiveSpan, key: str, content: Any) -> None:
    if store_content(span, key, content):
        stored = (getattr(span._span, "attributes", None) or {}).get(key)
        if isinstance(stored, str) and '"block_type": "' in stored:
            store_content(span, key, with_data_uris(json.loads(stored)))


def _document(node: Any) -> Any:
    return Document.from_llama_index_node_with_score(node) if isinstance(node, NodeWithScore) else node
