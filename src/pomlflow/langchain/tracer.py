"""MLflow's LangChain tracer with each span at its place, also in batches, streams and tasks.

All that leans on private parts of MLflow's tracer stands here. What is mended, seen with MLflow 3.12 to 3.17; each has
a test that tells when MLflow does it right by itself:

1. ``chain.batch()`` merges its items into one incomplete trace, leaves an ended span active, and later traces of that
   thread are lost; autolog guards ``RunnableSequence.batch`` alone, so ``with_retry().batch()`` loses them there too.
2. With ``run_inline=True`` the root span of an async run stays active, and agents nest wrongly.
3. With ``run_inline=False`` a function under ``@mlflow.trace`` in an async step makes a trace of its own.
4. In a sync stream the parser nests under the model.
5. Beside autolog or another tracer in one run's handlers, each of them makes a span of it.

Two ideas mend them. LangChain's own ``parent_run_id`` decides where a span belongs, not what happens to be active. And
what is put into the context is not the span but a stand-in, which may be left there by mistake.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple, cast
from uuid import UUID

import mlflow
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from mlflow.entities import LiveSpan, SpanStatus, SpanStatusCode
from mlflow.entities.span import NoOpSpan
from mlflow.tracing import provider
from opentelemetry.trace import INVALID_SPAN, Span

from pomlflow.langchain.context import StandIn, nearest, run_here, surroundings, user_span
from pomlflow.tracking.redaction import within_limit
from pomlflow.tracking.spans import active, within

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing it, MLflow (3.17) warns of type hints of its own
    from mlflow.langchain import langchain_tracer
    from mlflow.langchain.langchain_tracer import MlflowLangchainTracer

__all__ = ["MlflowLangchainTracer", "Run", "Tracer", "missing_parts", "span_of"]

_OK = SpanStatus(SpanStatusCode.OK)
_STREAM = {"input": ""}  # what LangChain gives for inputs as a stream begins
_ATTACH: ContextVar[bool] = getattr(langchain_tracer, "_should_attach_span_to_context", ContextVar("unknown"))
_MANAGERS = "langchain_core.callbacks.manager"
_PARTS = {
    "_start_span": {"span_name", "parent_run_id", "span_type", "run_id", "inputs", "attributes"},
    "_end_span": {"run_id", "span", "outputs", "attributes", "status"},
    "_get_parent_span": {"parent_run_id"},
    "_get_span_by_run_id": {"run_id"},
}


def missing_parts(tracer: type) -> list[str]:
    """Name what this MLflow's tracer lacks of the private parts that are leant on here; none, and it can be mended."""
    missing = []
    for name, parameters in _PARTS.items():
        function = getattr(tracer, name, None)
        if function is None or not parameters <= inspect.signature(function).parameters.keys():
            missing.append(name)
    others = (
        (langchain_tracer, "_should_attach_span_to_context"),
        (provider, "get_current_otel_span"),
        (provider, "set_span_in_context"),
    )
    return missing + [name for module, name in others if not hasattr(module, name)]


@dataclass
class Run:
    """A LangChain run that is being traced.

    Attributes:
        span: Its span.
        stand_in: What the context holds for it.
        held: For each context variable, the token that takes the stand-in out again, and what was set.
        token: Nothing: MLflow's tracer takes a span out of the context by it.
        stream: Whether it is a generator.
        inputs: What a mask is still to see.
        error: The type of what was raised, kept for the same reason.
        chunk: The last that was streamed.
    """

    span: LiveSpan
    stand_in: StandIn
    held: list[tuple[Token[Any], Any]]
    stream: bool = False
    token: None = None
    inputs: Any = None
    error: str | None = None
    chunk: Any = None

    def leave(self) -> None:
        """Take the run out of the context, or where that cannot be done, make it harmless there."""
        self.stand_in.close()
        for token, value in self.held:
            if token.var.get(None) is value:
                with suppress(ValueError):  # a copy of the context that it was set in
                    token.var.reset(token)


class Tracer(MlflowLangchainTracer):
    """MLflow's tracer without the faults that the module tells; what is stored goes through three hooks."""

    _run_span_mapping: dict[str, Run]  # type: ignore[assignment]  # MLflow's own entries know less

    def store_inputs(self, run: Run, inputs: Any) -> None:
        """Store a run's inputs."""
        run.span.set_inputs(inputs)

    def store_outputs(self, run: Run, outputs: Any, status: SpanStatus) -> SpanStatus:
        """Store a run's outputs as it ends; give the status to store."""
        if outputs is not None:
            run.span.set_outputs(outputs)
        return status

    def writable(self, run: Run) -> LiveSpan:
        """The span that MLflow's tracer writes the rest to."""
        return run.span

    @property
    def run_inline(self) -> bool:
        """Whether LangChain calls the handler in the run's own task: else what it puts into the context is lost.

        Not for the start of a string LLM in async code: LangChain (1.0 to 1.7) tells handlers that are not inline
        nothing of it as soon as one is, so other people's handlers, ``astream_events`` too, would miss the model.
        """
        frame = sys._getframe(1)
        if frame.f_code.co_name == "<listcomp>" and frame.f_back is not None:  # a frame of its own before Python 3.12
            frame = frame.f_back
        return frame.f_code.co_name != "on_llm_start"

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
        key = str(run_id)
        if known := self._run_span_mapping.get(key):  # this handler stands twice in one list
            return known.span
        event = _Event.now()
        if self._left_to_another(event.handlers):
            return _no_span()
        stream = inputs == _STREAM or event.caller.startswith("langgraph.pregel")
        place: AbstractContextManager[None] = nullcontext()
        if span_of(self, parent_run_id) is None and self._get_parent_span(parent_run_id) is None:
            place = active(user_span())  # else OpenTelemetry takes the run that is active for the parent
        below: Any = provider.get_current_otel_span() or INVALID_SPAN
        alone = _ATTACH.set(False)  # MLflow's tracer would put the span itself into the context
        try:
            with place:
                span = super()._start_span(span_name, parent_run_id, span_type, run_id, None, within_limit(attributes))
        finally:
            _ATTACH.reset(alone)
        stand_in = StandIn(cast("Span", span._span), below, self, stream=stream)
        token = provider.set_span_in_context(cast("LiveSpan", SimpleNamespace(_span=stand_in)))
        tokens = [token for token in (token if isinstance(token, tuple) else (token,)) if token is not None]
        run = Run(span, stand_in, [(token, token.var.get()) for token in tokens], stream)
        self._run_span_mapping[key] = run
        if inputs is not None:
            self.store_inputs(run, inputs)
        return span

    def _end_span(
        self,
        run_id: UUID,
        span: LiveSpan,  # noqa: ARG002 - may be what `writable` gave
        outputs: Any = None,
        attributes: dict[str, Any] | None = None,
        status: SpanStatus = _OK,
    ) -> None:
        run = self._run_span_mapping.get(str(run_id))
        if run is None:  # it has ended, or was left to another tracer
            return
        if run.stream:
            self._end_parts(run, _OK)
        alone = _ATTACH.set(False)
        try:
            status = self.store_outputs(run, outputs, status)
            super()._end_span(run_id, run.span, None, attributes, status)
        finally:
            _ATTACH.reset(alone)
            self._run_span_mapping.pop(str(run_id), None)
            run.leave()

    def _get_span_by_run_id(self, run_id: UUID) -> LiveSpan:
        run = self._run_span_mapping.get(str(run_id))
        return _no_span() if run is None else self.writable(run)

    def _get_parent_span(self, parent_run_id: UUID | None) -> LiveSpan | None:
        if (span := span_of(self, parent_run_id)) is not None:
            return nearest(span)
        run = run_here()
        if run is None:
            return mlflow.get_current_active_span()
        # LangChain says that this is no part of the run that is active: that one is another item of a batch, or a
        # stream that is being read. Unless the call stands inside a run and was given callbacks of its own.
        around = surroundings()
        if around is not None and (span := span_of(run.tracer, around.parent_run_id)) is not None:
            return nearest(span)
        with active(user_span()):
            return mlflow.get_current_active_span()

    def _left_to_another(self, handlers: Sequence[BaseCallbackHandler]) -> bool:
        """Whether another MLflow tracer among the run's handlers traces it: no span twice.

        MLflow's own always does, wherever it stands; of ours, the first.
        """
        before_us = True
        for handler in handlers:
            if handler is self:
                before_us = False
            elif isinstance(handler, MlflowLangchainTracer) and (before_us or not isinstance(handler, Tracer)):
                return True
        return False

    def on_chain_end(self, outputs: Any, *, run_id: UUID, inputs: Any = None, **options: Any) -> None:
        """Store the outputs, and a stream's inputs, which LangChain knows only now."""
        if inputs and (run := self._run_span_mapping.get(str(run_id))):
            self.store_inputs(run, inputs)
        super().on_chain_end(outputs, run_id=run_id, **options)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, inputs: Any = None, **options: Any) -> None:
        """Store the error, and a stream's inputs."""
        if inputs and (run := self._run_span_mapping.get(str(run_id))):
            self.store_inputs(run, inputs)
        if not self._stopped(error, run_id):
            super().on_chain_error(error, run_id=run_id, **options)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **options: Any) -> None:
        """Store the error."""
        if not self._stopped(error, run_id):
            super().on_llm_error(error, run_id=run_id, **options)

    def _stopped(self, error: BaseException, run_id: UUID) -> bool:
        """End a run that was stopped from outside, with its parts; whether that is all there is to do.

        A reader who has had enough of a stream is no error, as LangChain has it in sync code too.
        """
        run = self._run_span_mapping.get(str(run_id))
        if run is not None and isinstance(error, asyncio.CancelledError):
            self._end_parts(run, SpanStatus(SpanStatusCode.ERROR, type(error).__name__))
        elif run is not None and isinstance(error, GeneratorExit):
            self._end_parts(run, _OK)
            self._end_span(run_id, run.span)
            return True
        return False

    def _end_parts(self, run: Run, status: SpanStatus) -> None:
        """End what is open in a run that is over.

        LangChain tells of the end of what was cancelled or not read to its end later than of the whole, or never
        (models, in 1.0); MLflow holds the trace back for as long.
        """
        for key, other in list(self._run_span_mapping.items()):
            if within(other.span, run.span):
                self._end_span(UUID(key), other.span, status=status)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **options: Any) -> None:
        """Store a streamed token, once where this handler stands twice in one list."""
        run = self._run_span_mapping.get(str(run_id))
        if run is not None and (chunk is None or run.chunk is not chunk):
            run.chunk = chunk
            super().on_llm_new_token(token, run_id=run_id, chunk=chunk, **options)

    def flush(self) -> None:
        """Forget what has not ended."""
        for run in list(self._run_span_mapping.values()):
            run.leave()
        super().flush()  # type: ignore[no-untyped-call]


def span_of(tracer: MlflowLangchainTracer, run_id: UUID | None) -> LiveSpan | None:
    """The span of a run that a tracer, also MLflow's own, has open."""
    run = None if run_id is None else getattr(tracer, "_run_span_mapping", {}).get(str(run_id))
    return None if run is None else cast("LiveSpan", run.span)


class _Event(NamedTuple):
    """Who tells us of a run's start."""

    handlers: Sequence[BaseCallbackHandler]
    caller: str

    @classmethod
    def now(cls) -> _Event:
        """Read it from the frames below: LangChain gives a handler no other way to know of the others.

        Where LangChain is changed so that nothing is found, we are taken to be alone.
        """
        handlers: Sequence[BaseCallbackHandler] = ()
        frame: FrameType | None = sys._getframe(1)
        told = False
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            if module == _MANAGERS:
                manager = frame.f_locals.get("self")
                if isinstance(manager, BaseCallbackManager):
                    handlers = manager.handlers
                elif not handlers:
                    handlers = frame.f_locals.get("handlers", ())
                told = True
            elif told:
                return cls(handlers, module)
            frame = frame.f_back
        return cls(handlers, "")


def _no_span() -> LiveSpan:
    return cast("LiveSpan", NoOpSpan())  # type: ignore[no-untyped-call]
