"""The private and internal parts of MLflow on which LlamaIndex spans rely.

MLflow's own LlamaIndex tracer defines the types of spans and the attributes of models, tools and events. If a version
of MLflow lacks one of its parts, one warning is logged, and spans have neither types nor these attributes.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from inspect import BoundArguments
from types import SimpleNamespace
from typing import Any, Final, cast

import mlflow
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import StartEvent
from mlflow.entities import Document, LiveSpan, Span, SpanType, TraceState
from mlflow.tracing import provider
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils import set_span_chat_tools
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN

from pomlflow._log import warn_once
from pomlflow.frame.media import with_data_uris
from pomlflow.tracking.background import Task, TaskState, worker
from pomlflow.tracking.experiment import start_span as start_mlflow_span
from pomlflow.tracking.redaction import GuardedSpan, json_data
from pomlflow.tracking.spans import active, nearest
from pomlflow.tracking.stores import Stores

_mlflow: Any = None
with suppress(ImportError):  # not one of MLflow's public modules
    from mlflow.llama_index import tracer as _mlflow

UNREAD: Final = "[stream, not read to its end]"

_ROOT = get_dispatcher()
_SPANS: Any = getattr(_mlflow, "MlflowSpanHandler", None)
_EVENTS: Any = getattr(_mlflow, "MlflowEventHandler", None)


class Details:
    """Span types and attributes of components and events, as MLflow's tracer stores them."""

    def __init__(self, find: Callable[[str | None], GuardedSpan | None]) -> None:
        self._find = find
        try:
            # Neither is ever added to the dispatcher: autolog() would take them for its own and not set itself up.
            spans, events = _SPANS(), _EVENTS(self)
            self._span_type, self._attributes = spans._get_span_type, spans._get_instance_attributes
            self._handle: Callable[[BaseEvent], None] = events.handle
        except (AttributeError, TypeError) as error:
            message = (
                "Spans have neither types nor the attributes of models and tools: MLflow's own tracer differs (%s)"
            )
            warn_once("llama-index tracer", message, error)
            self._span_type = self._attributes = self._handle = lambda _: None

    def span_type(self, instance: Any) -> str:
        """Return the type of a component's spans."""
        return self._span_type(instance) or SpanType.UNKNOWN

    def attributes(self, instance: Any) -> dict[str, Any]:
        """Return the attributes of a component's spans."""
        try:
            return self._attributes(instance) or {}
        except Exception as error:  # noqa: BLE001 - a component's own code, such as a model's metadata
            warn_once("llama-index attributes", "A component's attributes could not be traced: %r", error)
            return {}

    def handle(self, event: BaseEvent) -> None:
        """Write an event's attributes (model, token counts, tool) to its span."""
        self._handle(event)

    # MLflow's event handler calls these two methods of the span handler that it gets:

    def get_span_for_event(self, event: BaseEvent) -> GuardedSpan | None:
        """Return the span of an event."""
        return self._find(event.span_id)

    def resolve_pending_stream_span(self, span: LiveSpan, event: BaseEvent) -> None:
        """Do nothing, since `SpanHandler` handles the ends of streams."""


def autolog_handler() -> Any:
    """Return the span handler of ``mlflow.llama_index.autolog()``, or None if that is off."""
    if _SPANS is not None:
        for handler in _ROOT.span_handlers:
            if isinstance(handler, _SPANS):
                return handler
    return None


def autolog_span(span_id: str | None) -> LiveSpan | None:
    """Return the span that ``mlflow.llama_index.autolog()`` has open for a LlamaIndex span."""
    find = getattr(autolog_handler(), "get_span_for_event", None)
    if find is None or span_id is None:
        return None
    return cast("LiveSpan | None", find(SimpleNamespace(span_id=span_id)))


def start_span(name: str, span_type: str, attributes: dict[str, Any], parent: LiveSpan | None) -> LiveSpan:
    """Start a span under a parent. With None, it is under the active span, or a root if that span's trace has ended."""
    with active(INVALID_SPAN) if parent is None and has_outlived_trace() else nullcontext():
        return start_mlflow_span(
            mlflow.get_current_active_span() if parent is None else nearest(parent),
            name=name,
            span_type=span_type,
            attributes=attributes,
        )


def store_unread(root: LiveSpan) -> None:
    """Store the trace of a root span that waits for the readers of streams, in the background."""
    if root.parent_id is None:
        stores = Stores.current()
        worker.submit(_UnreadTrace(uri=stores.tracking, workspace=stores.workspace, root=root))


@dataclass(kw_only=True, eq=False, repr=False)
class _UnreadTrace(Task):
    """Store a trace as if its streams ended now. MLflow stores all of it again when they do."""

    root: LiveSpan
    _trace: Any = None

    def run(self) -> TaskState:
        """Store the spans, and then the trace."""
        manager: Any = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call]
        is_over = self.root.end_time_ns is not None
        with manager.get_trace(self.root.trace_id) as live:
            self._trace = self._trace or live
            if self._trace is None or self._trace.info.experiment_id is None:
                return TaskState.DONE
            trace = self._trace.to_mlflow_trace()
        info, now_ns = copy.copy(trace.info), time.time_ns()
        if not is_over:
            info.state, info.execution_duration = TraceState.OK, now_ns // 1_000_000 - info.request_time
            info.response_preview = info.response_preview or UNREAD
        with suppress(NotImplementedError):  # the store has no single spans
            client = TracingClient(self.uri)
            client.log_spans(info.experiment_id, [_ended(span, now_ns) for span in trace.data.spans])
            client.start_trace(info)
        # If MLflow has stored the end of the trace meanwhile, this may have replaced it.
        return TaskState.DONE if is_over or self.root.end_time_ns is None else TaskState.NOT_YET


def _ended(span: Span, now_ns: int) -> Span:
    if span.end_time_ns is not None:
        return span
    outputs = {SpanAttributeKey.OUTPUTS: json.dumps(UNREAD)}
    data = span.to_dict()
    status = {"code": "STATUS_CODE_OK", "message": ""}
    return Span.from_dict(
        {**data, "end_time_unix_nano": now_ns, "status": status, "attributes": {**outputs, **data["attributes"]}}
    )


def inputs_of(bound_args: BoundArguments) -> dict[str, Any]:
    """Return a component's arguments. Those of a workflow are in its start event; its other arguments are internal."""
    arguments = bound_args.arguments
    start = arguments.get("start_event")
    return start.to_dict() if isinstance(start, StartEvent) else dict(arguments)


def plain_data(value: Any) -> Any:
    """Return a component's content as JSON data, with its media as data URIs."""
    return with_data_uris(json_data(value))


def documents(span: LiveSpan, outputs: Any) -> Any:
    """Return a retriever's nodes as the documents that MLflow's page shows; other outputs as they are."""
    if span.span_type != SpanType.RETRIEVER or not isinstance(outputs, list):
        return outputs
    return [Document.from_llama_index_node_with_score(n) if isinstance(n, NodeWithScore) else n for n in outputs]


def set_chat_tools(span: LiveSpan, tools: Any) -> None:
    """Store the tools of a model's call, if MLflow supports their form."""
    with suppress(Exception):
        set_span_chat_tools(span, tools)


def activate(span: LiveSpan) -> Any:
    """Make a span the active one; return the token for `deactivate`."""
    return provider.set_span_in_context(span)


def deactivate(token: Any) -> None:
    """Undo `activate`, if this is the context in which it was done."""
    if token is not None:
        with suppress(Exception):
            provider.detach_span_from_context(token)


@contextmanager
def inside(span: LiveSpan, span_id: str) -> Iterator[None]:
    """Make a span the active one, for MLflow and for LlamaIndex."""
    token, span_token = active_span_id.set(span_id), activate(span)
    try:
        yield
    finally:
        provider.detach_span_from_context(span_token)
        active_span_id.reset(token)


def has_outlived_trace() -> bool:
    """Return whether the active span's trace has ended; MLflow would put new spans into it, and lose them."""
    # upstream: mlflow 3.12-3.18: a task that outlives its trace loses all later ones
    current: Any = provider.get_current_otel_span()
    if not isinstance(current, ReadableSpan):
        return False
    span = mlflow.get_current_active_span()
    if span is None:
        return True
    traces = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call]
    root = traces.get_span_from_id(span.trace_id, traces.get_root_span_id(span.trace_id))
    return root is not None and root.end_time_ns is not None
