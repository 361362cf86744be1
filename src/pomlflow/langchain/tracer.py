"""MLflow's LangChain tracer with each span under its own parent, also in batches, streams, tasks and graphs.

`missing_methods` checks the private methods of MLflow that this module relies on. A span's parent is the span of the
run that LangChain names as the parent, and not the active span. LangChain may report the end of a run in another task
or thread than its start, where a span cannot be removed from the context. So the context holds a `ContextProxy` instead
of the run's span.

upstream: mlflow 3.12-3.18, each with a test that fails when MLflow has fixed it:

1. ``chain.batch()`` merges its items into one incomplete trace, and later traces of that thread are lost; autolog
   guards only ``RunnableSequence.batch``.
2. With ``run_inline=True`` the root span of an async run stays active.
3. With ``run_inline=False`` a function under ``@mlflow.trace`` in an async step makes a trace of its own.
4. In a synchronous stream the parser is nested under the model.
5. With autolog on, a tracer in a model's constructor traces the model twice.
6. A run with metadata, arguments or an error whose text cannot be read has no span, or one that never ends.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Final, cast
from uuid import UUID

import mlflow
from langchain_core.callbacks import BaseCallbackHandler
from mlflow.entities import LiveSpan, SpanStatus, SpanStatusCode, SpanType
from mlflow.entities.span import NoOpSpan
from mlflow.utils.autologging_utils import autologging_is_disabled, get_autologging_config
from opentelemetry.trace import Span

from pomlflow.dispatch import Mask
from pomlflow.frame.media import with_openai_parts
from pomlflow.langchain.runs import Run, current_run_id, open_runs, parent_in, suppress, suppressed, user_span
from pomlflow.tracking.experiment import start_span
from pomlflow.tracking.redaction import GuardedSpan
from pomlflow.tracking.spans import active

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # upstream: mlflow 3.17: importing it warns of its own type hints
    from mlflow.langchain.langchain_tracer import MlflowLangchainTracer as MlflowLangchainTracer  # noqa: PLC0414

_OK: Final = SpanStatus(SpanStatusCode.OK)
_STREAM_INPUT: Final = {"input": ""}  # the inputs that LangChain reports when a stream starts
_EVENTS_TASK: Final = "_astream_events_implementation_v2.<locals>.consume_astream"  # LangChain's, of `astream_events`
_METHODS: Final = {  # private methods of MLflow's tracer, and the parameters that are used
    "_start_span": {"span_name", "parent_run_id", "span_type", "run_id", "inputs", "attributes"},
    "_end_span": {"run_id", "span", "outputs", "attributes", "status"},
    "_get_span_by_run_id": {"run_id"},
    "_assign_span_name": {"serialized", "default_name"},
    "_serialize_invocation_params": {"attributes"},
}


def missing_methods(tracer: type) -> list[str]:
    """Return the names of the private methods that the installed MLflow lacks; if there are none, `Tracer` works."""
    missing = []
    for name, parameters in _METHODS.items():
        function = getattr(tracer, name, None)
        if function is None or not parameters <= inspect.signature(function).parameters.keys():
            missing.append(name)
    return missing


def _without_control_flow(callback: Callable[..., None]) -> Callable[..., None]:
    """Wrap an error callback so that control flow and cancellations end the run and are not stored as its error."""

    def on_error(self: Tracer, error: BaseException, *, run_id: UUID, **options: Any) -> None:
        if self._end_if_stopped(error, run_id, options.get("inputs")):
            return
        callback(self, error, run_id=run_id, **options)
        if (run := self._run_of_this_handler(run_id)) is not None:  # MLflow could not read the error's text (6)
            run.end(status=SpanStatus(SpanStatusCode.ERROR, type(error).__name__))

    return on_error


class Tracer(MlflowLangchainTracer):
    """MLflow's tracer without the faults that the module lists."""

    register: bool = True  # whether to register POML prompts, if a template does not set that
    mask: Mask | None = None
    process_wide: bool = False  # whether `autolog` made it: then it starts no trace while MLflow's autolog is on

    @property
    def run_inline(self) -> bool:
        """Whether LangChain calls the handler in the run's own task, so that its changes of the context remain."""
        # upstream: langchain-core 1.0-1.7: while any handler is inline, the asynchronous start of a text model is
        # reported to no other handler, `astream_events` included. So this one is not inline for that event.
        caller = sys._getframe(1)
        # Before Python 3.12, the caller is a list comprehension, which has a frame of its own.
        names = {caller.f_code.co_name, caller.f_back and caller.f_back.f_code.co_name}
        return "on_llm_start" not in names

    @run_inline.setter
    def run_inline(self, value: bool) -> None: ...

    def _start_span(
        self,
        span_name: str,
        parent_run_id: UUID | None,
        span_type: str,
        run_id: UUID,
        inputs: Any = None,
        attributes: dict[str, Any] | None = None,
    ) -> LiveSpan:
        if not self._should_trace(run_id, parent_run_id):
            return _no_span()
        # A call in a run may pass callbacks of its own, and then LangChain reports no parent.
        parent = open_runs.get(parent_run_id) or open_runs.get(current_run_id())
        with active(user_span()) if parent is None else nullcontext():
            parent_span = parent_in(parent.span.span) if parent is not None else mlflow.get_current_active_span()
            if parent is None and _is_autologs_span(parent_span, span_name, span_type, attributes or {}):
                return _no_span()
            span = start_span(parent_span, name=span_name, span_type=span_type)
        is_generator = _is_generator(span_type, inputs, attributes)
        guarded = GuardedSpan(span, self.mask, with_openai_parts)
        run = Run(run_id, self, guarded, parent, is_generator=is_generator, task=_current_task())
        run.open(cast("Span", span._span))
        # After the start of the span, so that a value that cannot be read costs only its attribute (6).
        run.span.set_attributes(self._serialize_invocation_params(attributes) or {})
        if inputs is not None:
            run.span.set_inputs(inputs)
        return cast("LiveSpan", run.span)

    def _should_trace(self, run_id: UUID, parent_run_id: UUID | None) -> bool:
        """Return whether this handler is to trace a run that starts."""
        if run_id in open_runs:  # this handler is in LangChain's list twice, or after another one of ours
            return False
        if (parent_run_id or current_run_id()) in suppressed:
            suppress(run_id)
            return False
        # MLflow's autolog adds no tracer to a run that inherits one. So a run below one of ours is always ours.
        ours = parent_run_id in open_runs if parent_run_id is not None else not self.process_wide
        return ours or not _mlflow_autolog_is_on()

    def _end_span(
        self,
        run_id: UUID,
        span: LiveSpan,  # noqa: ARG002 - the run's own span is used
        outputs: Any = None,
        attributes: dict[str, Any] | None = None,
        status: SpanStatus = _OK,
    ) -> None:
        run = open_runs.get(run_id)
        if run is None:
            suppressed.pop(run_id, None)
        elif run.tracer is self:
            run.span.set_attributes(attributes or {})
            run.end(outputs, status)

    def _get_span_by_run_id(self, run_id: UUID) -> LiveSpan:
        run = self._run_of_this_handler(run_id)
        return _no_span() if run is None else cast("LiveSpan", run.span)

    def _run_of_this_handler(self, run_id: UUID) -> Run | None:
        run = open_runs.get(run_id)
        return run if run is not None and run.tracer is self else None

    def _assign_span_name(self, serialized: dict[str, Any] | None, default_name: str = "unknown") -> str:
        """Return the name of a run; LangChain gives no name for some, such as an anonymous edge of a graph."""
        serialized = serialized or {}
        return str(serialized.get("name") or (serialized.get("id") or [default_name])[-1])

    on_chain_error = _without_control_flow(MlflowLangchainTracer.on_chain_error)
    on_tool_error = _without_control_flow(MlflowLangchainTracer.on_tool_error)
    on_llm_error = _without_control_flow(MlflowLangchainTracer.on_llm_error)
    on_retriever_error = _without_control_flow(MlflowLangchainTracer.on_retriever_error)

    def _end_if_stopped(self, error: BaseException, run_id: UUID, inputs: Any = None) -> bool:
        """End a run if control flow or a cancellation stopped it; return whether it did."""
        run = self._run_of_this_handler(run_id)
        control_flow: tuple[type[BaseException], ...] = (asyncio.CancelledError, GeneratorExit, *_graph_control_flow())
        if run is None or not isinstance(error, control_flow):
            return False
        if inputs:
            run.span.set_inputs(inputs)
        if isinstance(error, asyncio.CancelledError) and not _reader_left(run.task):
            run.cancel()
        else:
            run.end_early(by_control_flow=True)
        return True


def span_in(handler: BaseCallbackHandler, run_id: UUID | None) -> LiveSpan | None:
    """Return the span that MLflow's own tracer has open for a run."""
    run = None if run_id is None else getattr(handler, "_run_span_mapping", {}).get(str(run_id))
    return None if run is None else cast("LiveSpan", run.span)


def _is_generator(span_type: str, inputs: Any, attributes: Mapping[str, Any] | None) -> bool:
    """Return whether the run's body is a generator: in a stream, and in a graph, which always streams."""
    metadata = (attributes or {}).get("metadata") or {}
    return inputs == _STREAM_INPUT or (span_type == SpanType.CHAIN and "ls_integration" in metadata)


def _graph_control_flow() -> tuple[type[BaseException], ...]:
    """Return the base of LangGraph's interrupts and commands to a parent graph, where LangGraph is imported."""
    errors = sys.modules.get("langgraph.errors")
    return () if errors is None else (errors.GraphBubbleUp,)


def _reader_left(task: asyncio.Task[Any] | None) -> bool:
    """Return whether LangChain cancels the task of an `astream_events` because its reader stopped reading.

    It then cancels the task once, and twice if the reader was cancelled. If the program ends after the reader has left,
    the task is also cancelled twice, while a task of asyncio closes the generator.
    """
    if task is None or getattr(task.get_coro(), "__qualname__", "") != _EVENTS_TASK:
        return False
    return task.cancelling() == 1 or any(
        type(other.get_coro()).__name__ == "async_generator_athrow" for other in asyncio.all_tasks(task.get_loop())
    )


def _is_autologs_span(span: LiveSpan | None, name: str, span_type: str, attributes: Mapping[str, Any]) -> bool:
    """Return whether the active span is the one that MLflow's autolog has just started for this run.

    If our handler is in a model's constructor, LangChain calls autolog's tracer first.
    """
    if span is None or (span.name, span.span_type) != (name, span_type) or not _mlflow_autolog_is_on():
        return False
    return bool(attributes) and attributes.keys() <= span.attributes.keys()


def _mlflow_autolog_is_on() -> bool:
    if autologging_is_disabled("langchain"):  # type: ignore[no-untyped-call]
        return False
    return bool(get_autologging_config("langchain", "log_traces", True))  # type: ignore[no-untyped-call]


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop
        return None


def _no_span() -> LiveSpan:
    return cast("LiveSpan", NoOpSpan())  # type: ignore[no-untyped-call]
