"""LangChain's runs and POML's renders as one MLflow trace.

`PomlCallbackHandler` is MLflow's own LangChain tracer (each chain, model, tool and retriever span as MLflow gives it),
mended in `pomlflow.langchain.tracer`, with a ``poml`` span under the prompt's run. Under ``mlflow.langchain.autolog()``
alone `deliver` puts that span into autolog's trace.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.utils import dump_span_attribute_value

from pomlflow.dispatch import PATIENCE, checked_mask, join
from pomlflow.frame.openai import media_part
from pomlflow.langchain.context import nearest, run_here, surroundings
from pomlflow.langchain.tracer import MlflowLangchainTracer, Run, Tracer, missing_parts, span_of
from pomlflow.record import RenderRecord, well_formed
from pomlflow.tracking.redaction import LimitedSpan, event_within_limit, within_limit
from pomlflow.tracking.spans import Mask, log_render, masked, masked_exception, store_content, warn_once

__all__ = ["PomlCallbackHandler", "carry", "deliver", "log_under_mlflow_tracer"]

_MISSING = missing_parts(MlflowLangchainTracer)

if TYPE_CHECKING:
    _Tracer = Tracer
else:
    _Tracer = MlflowLangchainTracer if _MISSING else Tracer


class _Settings:
    """The handler's constructor: in a class of its own, because MLflow's metaclass turns its errors into warnings."""

    def __init__(self, register: bool = True, mask: Mask | None = None) -> None:
        super().__init__(run_inline=True)  # type: ignore[call-arg] # of the tracer beside it
        self.register = register
        self.mask = checked_mask(mask)
        self.blind = bool(_MISSING) and mask is not None
        if _MISSING:
            effect = "nothing is traced, because it could not be masked" if mask else "spans may be nested wrongly"
            warn_once(
                "tracer", "this version of MLflow has no LangChain tracer that is known (%s): %s", _MISSING, effect
            )


class PomlCallbackHandler(_Settings, _Tracer):
    """Trace LangChain and its POML prompts in MLflow.

    Give it wherever LangChain takes a handler: in a call's ``config``, in ``with_config``, in a constructor; to any
    chain, agent or graph; once for many threads and tasks. Where ``mlflow.langchain.autolog()`` traces a run already,
    it is left to that, and only the POML span is added.

    Args:
        register: Whether to register each POML prompt in MLflow's registry and link its version to the trace;
            a template's own ``register=`` decides first.
        mask: From a span's ``{"inputs": …, "outputs": …}`` to what of it may be stored. It is asked once for each
            span, before anything of it is stored, with plain data; for a failed one, outputs are ``{"error": …}``.
            Events that hold content (streamed tokens, tracebacks) are not stored then. Names, times, token counts,
            metadata and the model's settings are. A mask does not reach what MLflow's autolog traces beside it.

    Raises:
        ConfigurationError: `mask` is no function.

    Example:
        >>> chain.invoke({"topic": "POML"}, config={"callbacks": [PomlCallbackHandler()]})
    """

    def on_poml_render(self, record: RenderRecord, *, run_id: UUID | None, wait: float = PATIENCE) -> None:
        """Store a render.

        Args:
            record: The render.
            run_id: The LangChain run that it is part of.
            wait: Seconds that finding its prompt's version may take.
        """
        log_render(
            record,
            parent=_parent(self, run_id),
            register=self.register,
            mask=self.mask,
            wait=wait,
        )

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **options: Any
    ) -> None:
        """Store the messages in OpenAI's shape, with pictures as MLflow shows them."""
        messages = [[_with_openai_media(message) for message in batch] for batch in messages]
        super().on_chat_model_start(serialized, messages, **options)

    def store_inputs(self, run: Run, inputs: Any) -> None:
        """Store a run's inputs, or keep them until the mask can see inputs and outputs."""
        if self.mask is not None:
            run.inputs = inputs
            return
        _store_media_offloaded(run.span, SpanAttributeKey.INPUTS, within_limit(inputs, _plain))

    def store_outputs(self, run: Run, outputs: Any, status: SpanStatus) -> SpanStatus:
        """Store a run's outputs, and with a mask its inputs; give the status that may be stored."""
        if self.mask is None:
            if outputs is not None:
                _store_media_offloaded(run.span, SpanAttributeKey.OUTPUTS, within_limit(outputs, _plain))
            return SpanStatus(status.status_code, well_formed(within_limit(status.description)))
        failed = status.status_code == SpanStatusCode.ERROR
        kept = masked(self.mask, _plain(run.inputs), {"error": status.description} if failed else _plain(outputs))
        if "inputs" in kept:
            store_content(run.span, SpanAttributeKey.INPUTS, within_limit(kept["inputs"]))
        if not failed:
            if "outputs" in kept:
                store_content(run.span, SpanAttributeKey.OUTPUTS, within_limit(kept["outputs"]))
            return status
        event = event_within_limit(masked_exception(run.error or "Error", kept))
        run.span.add_event(event)
        return SpanStatus(status.status_code, str(event.attributes["exception.message"]))

    def writable(self, run: Run) -> LiveSpan:
        """The span as MLflow's tracer may write to it."""
        if self.mask is None:
            return cast("LiveSpan", LimitedSpan(run.span))
        return cast("LiveSpan", _Guarded(run))

    # Without the private parts that a mask takes, MLflow's tracer would store everything.
    ignore_agent = ignore_chain = ignore_chat_model = property(lambda self: self.blind)
    ignore_llm = ignore_retriever = ignore_retry = ignore_chain


class _Guarded:
    """A run's span, for MLflow's tracer, while a mask has not seen the content: events wait or are dropped."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def set_attribute(self, key: str, value: Any) -> None:
        self._run.span.set_attribute(key, value)

    def add_event(self, event: SpanEvent) -> None:
        if event.name == "exception":
            self._run.error = str(event.attributes["exception.type"])


def deliver(
    record: RenderRecord, handlers: Sequence[BaseCallbackHandler], run_id: UUID | None, *, wait: float = PATIENCE
) -> None:
    """Give a render to the one handler that is to store it. Never raises.

    Args:
        record: The render.
        handlers: Those of the prompt's run.
        run_id: The prompt's run; None for a render outside of runs (``prompt.format_messages()`` in a function): then
            the handlers of the run that the function is part of are found, where there is one.
        wait: Seconds that finding the prompt's version may take; 0 on an event loop.
    """
    try:
        tracer = _tracer_of(handlers, run_id)
        if tracer is None and run_id is None:
            tracer, run_id, handlers = _tracer_around()
        if tracer is not None:
            _store(record, tracer, run_id, handlers, wait)
    except Exception as error:  # noqa: BLE001 - telemetry never hurts
        warn_once("deliver", "a render could not be traced: %r", error)


def carry(record: RenderRecord, wait: float) -> bool:
    """Take a render that is no template's of LangChain's to the run that the call is part of. Never raises.

    Args:
        record: The render.
        wait: Seconds that finding the prompt's version may take.

    Returns:
        Whether the call is part of a run that is traced.
    """
    try:
        tracer, run_id, handlers = _tracer_around()
        if tracer is None:
            return False
        _store(record, tracer, run_id, handlers, wait)
    except Exception as error:  # noqa: BLE001
        warn_once("deliver", "a render could not be traced: %r", error)
    return True


def _store(
    record: RenderRecord,
    tracer: MlflowLangchainTracer,
    run_id: UUID | None,
    handlers: Sequence[BaseCallbackHandler],
    wait: float,
) -> None:
    if isinstance(tracer, PomlCallbackHandler):
        tracer.on_poml_render(record, run_id=run_id, wait=wait)
    else:
        ours = next((handler for handler in handlers if isinstance(handler, PomlCallbackHandler)), None)
        log_under_mlflow_tracer(tracer, record, run_id, wait=wait, beside=ours)


def log_under_mlflow_tracer(
    tracer: MlflowLangchainTracer,
    record: RenderRecord,
    run_id: UUID | None,
    *,
    wait: float = PATIENCE,
    beside: PomlCallbackHandler | None = None,
) -> None:
    """Store a render in the trace of MLflow's own tracer, as ``mlflow.langchain.autolog()`` sets it up.

    Args:
        tracer: MLflow's.
        record: The render.
        run_id: The run that it is part of.
        wait: Seconds that finding the prompt's version may take.
        beside: The handler of ours that left the run to it; its settings hold for the POML span.
    """
    register, mask = (True, None) if beside is None else (beside.register, beside.mask)
    log_render(record, parent=_parent(tracer, run_id), register=register, mask=mask, wait=wait)


def _parent(tracer: MlflowLangchainTracer, run_id: UUID | None) -> LiveSpan | None:
    span = span_of(tracer, run_id)
    return span if span is None or _MISSING else nearest(span)


def _tracer_of(handlers: Sequence[BaseCallbackHandler], run_id: UUID | None) -> MlflowLangchainTracer | None:
    """The one that traces the run; else the first, ours before MLflow's."""
    tracers = [handler for handler in handlers if isinstance(handler, MlflowLangchainTracer)]
    tracers.sort(key=lambda tracer: (span_of(tracer, run_id) is None, not isinstance(tracer, PomlCallbackHandler)))
    return tracers[0] if tracers else None


def _tracer_around() -> tuple[MlflowLangchainTracer | None, UUID | None, Sequence[BaseCallbackHandler]]:
    """Who traces the run that this call is part of, the run, and all of its handlers."""
    around = surroundings()
    if around is not None:
        return _tracer_of(around.handlers, around.parent_run_id), around.parent_run_id, around.handlers
    # A task on Python 3.10, where LangChain's own context is lost. MLflow's is not.
    run = run_here()
    return (None if run is None else run.tracer), None, ()


def _plain(value: Any) -> Any:
    """What JSON can hold of a value, as MLflow would store it."""
    return _openai_media(json.loads(dump_span_attribute_value(value)))


def _with_openai_media(message: BaseMessage) -> BaseMessage:
    content = message.content
    if isinstance(content, str) or (shown := _openai_media(content)) is content:
        return message
    return message.model_copy(update={"content": shown})


def _store_media_offloaded(span: LiveSpan, key: str, content: Any) -> None:
    """Store inputs or outputs with their media in OpenAI's shape.

    MLflow (3.12 to 3.17) makes attachments of media in that shape, and stores LangChain's own inline.
    """
    if store_content(span, key, content):
        stored = span.get_attribute(key)
        if (changed := _openai_media(stored)) is not stored:
            store_content(span, key, changed)


def _openai_media(value: Any) -> Any:
    """Plain data with LangChain's media blocks in OpenAI's shape; the same object where there are none.

    Blocks: https://docs.langchain.com/oss/python/langchain/messages#content-block-reference, and those before
    LangChain 1.0, with ``data`` for ``base64``.
    """
    if isinstance(value, dict):
        data, kind = value.get("base64") or value.get("data"), value.get("mime_type")
        if value.get("type") in ("image", "audio", "video", "file") and isinstance(data, str) and isinstance(kind, str):
            return media_part(kind, data, value.get("filename"))
        items: Any = {key: _openai_media(item) for key, item in value.items()}
        return items if any(items[key] is not item for key, item in value.items()) else value
    if isinstance(value, list):
        items = [_openai_media(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


join("langchain", carry)
