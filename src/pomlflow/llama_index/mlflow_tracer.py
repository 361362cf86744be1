"""The private and internal parts of MLflow on which LlamaIndex spans rely.

MLflow's own LlamaIndex tracer defines the types of spans and the attributes of models, tools and events. If a version
of MLflow lacks one of its parts, one warning is logged, and spans have neither types nor these attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from inspect import BoundArguments
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import mlflow
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import StartEvent
from mlflow.entities import Document, LiveSpan, SpanType
from mlflow.tracing import provider
from mlflow.tracing.trace_manager import InMemoryTraceManager
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN

from pomlflow._log import warn_once
from pomlflow.tracking.experiment import start_span as start_mlflow_span
from pomlflow.tracking.spans import active, nearest

_mlflow: Any = None
with suppress(ImportError):  # not one of MLflow's public modules
    from mlflow.llama_index import tracer as _mlflow


class MlflowFunctions(NamedTuple):
    """MLflow's functions for a component's span type, for its attributes, and for an event of a span."""

    span_type: Callable[[Any], Any]
    attributes: Callable[[Any], Any]
    handle: Callable[[BaseEvent], None]


def mlflow_functions(spans: Any) -> MlflowFunctions:
    """Return MLflow's functions, with `spans` as its span handler; functions that do nothing if MLflow lacks them."""
    try:
        # Neither is ever added to the dispatcher: autolog() would take them for its own and not set itself up.
        made, events = _mlflow.MlflowSpanHandler(), _mlflow.MlflowEventHandler(spans)
        return MlflowFunctions(made._get_span_type, made._get_instance_attributes, events.handle)
    except (AttributeError, TypeError) as error:
        message = "Spans have neither types nor the attributes of models and tools: MLflow's own tracer differs (%s)"
        warn_once("llama-index tracer", message, error)
        return MlflowFunctions(*[lambda _: None] * 3)


def autolog_handler() -> Any:
    """Return the span handler of ``mlflow.llama_index.autolog()``, or None if that is off."""
    handlers = get_dispatcher().span_handlers
    return next((handler for handler in handlers if handler.class_name() == "MlflowSpanHandler"), None)


def autolog_span(span_id: str | None) -> LiveSpan | None:
    """Return the span that ``mlflow.llama_index.autolog()`` has open for a LlamaIndex span."""
    find = getattr(autolog_handler(), "get_span_for_event", None)
    if find is None or span_id is None:
        return None
    return cast("LiveSpan | None", find(SimpleNamespace(span_id=span_id)))


def start_span(name: str, span_type: str, parent: LiveSpan | None) -> LiveSpan:
    """Start a span. Without a parent, it is below the active span, or is a root if that span's trace has ended."""
    with active(INVALID_SPAN) if parent is None and has_outlived_trace() else nullcontext():
        return start_mlflow_span(
            mlflow.get_current_active_span() if parent is None else nearest(parent),
            name=name,
            span_type=span_type,
        )


def inputs_of(bound_args: BoundArguments) -> dict[str, Any]:
    """Return a component's arguments. Those of a workflow are in its start event; its other arguments are internal."""
    arguments = bound_args.arguments
    start = arguments.get("start_event")
    return start.to_dict() if isinstance(start, StartEvent) else dict(arguments)


def documents(span: LiveSpan, outputs: Any) -> Any:
    """Return a retriever's nodes as the documents that MLflow's page shows; other outputs as they are."""
    if span.span_type != SpanType.RETRIEVER or not isinstance(outputs, list):
        return outputs
    return [Document.from_llama_index_node_with_score(n) if isinstance(n, NodeWithScore) else n for n in outputs]


@contextmanager
def activate(span: LiveSpan, span_id: str) -> Iterator[None]:
    """Make a span the active one for MLflow and LlamaIndex, also in tasks that are started in the block."""
    token = active_span_id.set(span_id)
    try:
        with active(cast("Any", span._span)):
            yield
    finally:
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
