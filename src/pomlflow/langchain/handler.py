"""The callback handler that traces LangChain's runs and POML's renders as one MLflow trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pomlflow._arguments import refuse_arguments
from pomlflow._log import warn_once
from pomlflow.dispatch import Mask, RenderContext, check_mask, set_sink
from pomlflow.langchain.runs import ContextProxy, current_manager, current_span, open_runs, parent_in, suppressed
from pomlflow.langchain.tracer import MlflowLangchainTracer, Tracer, missing_methods, span_in
from pomlflow.record import RenderRecord
from pomlflow.tracking.spans import log_render, prepare

_MISSING = missing_methods(MlflowLangchainTracer)

if TYPE_CHECKING:
    _Tracer = Tracer
else:
    _Tracer = MlflowLangchainTracer if _MISSING else Tracer


class _Constructor:
    """The handler's constructor, in a class of its own: the metaclass of MLflow's tracer turns errors into warnings."""

    def __init__(self, register: bool = True, mask: Mask | None = None, **unknown: Any) -> None:
        refuse_arguments(unknown, "PomlCallbackHandler")
        super().__init__(run_inline=True)  # type: ignore[call-arg] # the tracer's
        self.register = register
        self.mask = check_mask(mask)
        prepare()
        set_sink("langchain", trace_in_run)
        if _MISSING:
            effect = "nothing is traced, because it could not be masked" if mask else "spans may be nested wrongly"
            warn_once(
                "langchain tracer",
                "This version of MLflow has an unknown LangChain tracer (without %s): %s",
                ", ".join(_MISSING),
                effect,
            )


class PomlCallbackHandler(_Constructor, _Tracer):
    """Trace LangChain and its POML prompts in MLflow.

    Pass it wherever LangChain takes a handler, preferably in a call's ``config`` or in ``with_config``. It works for
    any chain, agent or graph, and one handler can serve many threads and tasks. With ``mlflow.langchain.autolog()`` on,
    a run that MLflow traces already gets only the POML span. Do not add an `MlflowLangchainTracer` next to it: both
    would trace the run.

    A run with several of these handlers is traced once, by the first in LangChain's order: those of the surrounding
    run, of ``with_config``, of the call, of a model's constructor, of `pomlflow.autolog`. Its arguments apply.

    Args:
        register: Whether to register each POML prompt in MLflow's registry and link its version to the trace;
            a template's own ``register=`` overrides it.
        mask: Returns what may be stored of a span's ``{"inputs": …, "outputs": …}``. It is called once for each span,
            with plain data, before anything is stored. The outputs of a failed span are ``{"error": …}``. With a mask,
            events with content (streamed tokens, tracebacks) are not stored. Names, times, token counts, metadata and
            the model's settings are stored. It does not apply to the spans of MLflow's autolog.

    Raises:
        ConfigurationError: `mask` is not callable.

    Example:
        >>> chain.invoke({"topic": "POML"}, config={"callbacks": [PomlCallbackHandler()]})
    """

    # Where methods are missing, MLflow's own tracer is used, which would store everything unmasked. So a handler with a
    # mask then ignores all events.
    ignore_agent = ignore_chain = ignore_chat_model = property(lambda self: bool(_MISSING) and self.mask is not None)
    ignore_llm = ignore_retriever = ignore_retry = ignore_chain


def trace_in_run(record: RenderRecord, context: RenderContext) -> bool:
    """Store a render in the LangChain run that it is part of; return whether it is handled (see `dispatch`)."""
    if context.framework == "llama_index":
        return False  # it belongs to LlamaIndex's span, also inside a LangChain run
    manager, found = current_manager(), current_span()
    if manager is not None:
        handlers, run_id = manager.handlers, manager.parent_run_id
    else:  # in a classic chain, which does not set LangChain's context variable
        handlers, run_id = [], found.run_id if isinstance(found, ContextProxy) else None
    if run_id in suppressed:
        return True
    if (run := open_runs.get(run_id)) is not None:
        owner: Any = run.tracer
        log_render(record, parent=parent_in(run.span.span), register=owner.register, mask=owner.mask)
        return True
    tracers = [handler for handler in handlers if isinstance(handler, MlflowLangchainTracer)]
    if not tracers:
        return False
    span = next((span for tracer in tracers if (span := span_in(tracer, run_id)) is not None), None)
    parent = span if span is None or _MISSING else parent_in(span)
    ours = next((tracer for tracer in tracers if isinstance(tracer, PomlCallbackHandler)), None)
    register, mask = (True, None) if ours is None else (ours.register, ours.mask)
    log_render(record, parent=parent, register=register, mask=mask)
    return True
