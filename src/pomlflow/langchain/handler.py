"""LangChain's runs and POML's renders as one MLflow trace.

`PomlCallbackHandler` is MLflow's own LangChain tracer (each chain, model, tool and retriever span as MLflow gives it),
mended in `pomlflow.langchain.tracer`, with a ``poml`` span under the prompt's run. Under ``mlflow.langchain.autolog()``
alone `trace_in_run` puts that span into autolog's trace.
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

from pomlflow.dispatch import RenderContext, check_mask, set_sink
from pomlflow.frame.openai import media_part
from pomlflow.langchain.context import nearest, surroundings
from pomlflow.langchain.tracer import MlflowLangchainTracer, Run, Tracer, missing_parts, span_of
from pomlflow.record import RenderRecord, well_formed
from pomlflow.tracking.redaction import LimitedSpan, event_within_limit, within_limit
from pomlflow.tracking.spans import Mask, log_render, masked, masked_exception, store_content, warn_once

__all__ = ["PomlCallbackHandler", "trace_in_run"]

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
        self.mask = check_mask(mask)
        set_sink("langchain", trace_in_run)
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

    def on_poml_render(self, record: RenderRecord, *, run_id: UUID | None) -> None:
        """Store a render that is part of a LangChain run."""
        log_render(record, parent=_parent(self, run_id), register=self.register, mask=self.mask)

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


def trace_in_run(record: RenderRecord, context: RenderContext) -> bool:
    """Store a render in the LangChain run that it is part of; return whether a run that is traced is there.

    The run is the prompt's own, or the one around this call (``prompt.format_messages()`` or ``pomlflow.render()`` in
    a chain's function). Where ``mlflow.langchain.autolog()`` traces it, the settings of a handler of ours that left
    the run to it hold for the POML span.
    """
    if context.framework == "llama_index":
        return False  # it belongs to LlamaIndex's span, also inside of a LangChain run
    around = surroundings()
    if context.run is not None:
        handlers, run_id = context.run.handlers, context.run.run_id
    elif around is not None:
        handlers, run_id = around.handlers, around.parent_run_id
    else:
        return False
    tracer = _tracer_of(handlers, run_id)
    if isinstance(tracer, PomlCallbackHandler):
        tracer.on_poml_render(record, run_id=run_id)
    elif tracer is not None:
        ours = next((handler for handler in handlers if isinstance(handler, PomlCallbackHandler)), None)
        register, mask = (True, None) if ours is None else (ours.register, ours.mask)
        log_render(record, parent=_parent(tracer, run_id), register=register, mask=mask)
    return tracer is not None


def _parent(tracer: MlflowLangchainTracer, run_id: UUID | None) -> LiveSpan | None:
    span = span_of(tracer, run_id)
    return span if span is None or _MISSING else nearest(span)


def _tracer_of(handlers: Sequence[BaseCallbackHandler], run_id: UUID | None) -> MlflowLangchainTracer | None:
    """The one that traces the run; else the first, ours before MLflow's."""
    tracers = [handler for handler in handlers if isinstance(handler, MlflowLangchainTracer)]
    tracers.sort(key=lambda tracer: (span_of(tracer, run_id) is None, not isinstance(tracer, PomlCallbackHandler)))
    return tracers[0] if tracers else None


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
