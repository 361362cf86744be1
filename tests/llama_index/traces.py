"""Traces as text, for comparison as a whole."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests import registry_prompts
from tests.waiting import until

from pomlflow import flush

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace

QA = '<p whiteSpace="pre">{{context_str}}</p><p>{{query_str}}</p>'


@pytest.fixture
def traced(
    mlflow_store: str, stored_traces: Callable[[], list[Trace]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[Trace]]]:
    """Run something and return its traces, oldest first; wait for some with ``at_least=1``.

    Traces are stored as they end: MLflow's background export (3.17) takes a second to be flushed, and two when idle.
    """
    import mlflow

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    seen: set[str] = set()

    def new() -> list[Trace]:
        return [trace for trace in stored_traces() if trace.info.trace_id not in seen]

    def run(call: Callable[[], Any], *, at_least: int = 0) -> list[Trace]:
        call()
        assert mlflow.get_current_active_span() is None, "a span is still active"
        if at_least:  # some end on a thread that is not joined
            until(lambda: len(new()) >= at_least)
        traces = new()
        seen.update(trace.info.trace_id for trace in traces)
        return traces

    yield run
    gc.collect()  # while the marks of the test ignore its warnings
    monkeypatch.undo()
    mlflow.tracing.reset()


@pytest.fixture
def linked() -> Callable[[Trace], list[str]]:
    """The prompt versions that a trace is linked to in the store, as ``name/version``, after a flush."""

    def of(trace: Trace) -> list[str]:
        assert flush(30)
        return sorted(registry_prompts.linked(trace.info.trace_id))

    return of


def tree(trace: Trace) -> str:
    """One line for each span, in the order of their starts: indent, name, type, and ERROR where it failed."""
    spans = sorted(trace.data.spans, key=lambda span: span.start_time_ns)
    known = {span.span_id for span in spans}
    lost = [span.name for span in spans if span.parent_id is not None and span.parent_id not in known]
    assert not lost, f"spans whose parents were not stored: {lost}"
    assert [span.name for span in spans if span.end_time_ns is None] == []
    state = "ERROR" if any(s.parent_id is None and s.status.status_code.value == "ERROR" for s in spans) else "OK"
    assert trace.info.state.value == state
    return "\n".join(_lines(spans, None, 0))


def _lines(spans: list[Span], parent: str | None, depth: int) -> Iterator[str]:
    for span in spans:
        if span.parent_id == parent:
            failed = " ERROR" if span.status.status_code.value == "ERROR" else ""
            yield f"{'  ' * depth}{span.name} {span.span_type}{failed}"
            yield from _lines(spans, span.span_id, depth + 1)


def without_poml(text: str) -> str:
    """A tree without POML's spans, which have none below them."""
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith("poml"))


def poml_spans(trace: Trace) -> list[Span]:
    return [span for span in trace.data.spans if span.name.split()[0] == "poml"]


def parent(trace: Trace, span: Any) -> str:
    """The name of the span around a span."""
    return next(one.name for one in trace.data.spans if one.span_id == span.parent_id)


def span_named(trace: Trace, name: str) -> Span:
    """The only span of that name."""
    (found,) = [span for span in trace.data.spans if span.name == name]
    return found


def open_spans() -> int:
    """The number of LlamaIndex spans that the handler has not ended."""
    from llama_index.core.instrumentation import get_dispatcher

    ours = [one for one in get_dispatcher().span_handlers if one.class_name() == "PomlSpanHandler"]
    return sum(len(one.open_spans) + len(one.streaming) for one in ours)


@pytest.fixture
def autolog_trees(traced: Callable[..., list[Trace]]) -> Callable[..., list[str]]:
    """The trees that ``mlflow.llama_index.autolog()`` alone makes, without POML's spans."""
    import mlflow

    def run(call: Callable[[], Any], **options: Any) -> list[str]:
        mlflow.llama_index.autolog()
        try:
            return [without_poml(tree(trace)) for trace in traced(call, **options)]
        finally:
            mlflow.llama_index.autolog(disable=True)

    return run
