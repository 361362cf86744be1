"""POML prompts for LlamaIndex."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pomlflow.autolog import switch
from pomlflow.dispatch import Mask
from pomlflow.llama_index.events import PomlRenderEvent
from pomlflow.llama_index.prompt import PomlPromptTemplate

if TYPE_CHECKING:
    from pomlflow.llama_index.handler import PomlCallbackHandler

__all__ = ["PomlCallbackHandler", "PomlPromptTemplate", "PomlRenderEvent", "autolog"]


def autolog(
    disable: bool = False,
    log_traces: bool = True,
    silent: bool = False,
    register: bool = True,
    mask: Mask | None = None,
    trace_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Trace each engine, agent and workflow of LlamaIndex, and each POML prompt of LlamaIndex's outside of them.

    It is the part of `pomlflow.autolog` that is about LlamaIndex, and takes its arguments.

    Args:
        disable: Undo it.
        log_traces: False traces and registers nothing.
        silent: Whether to keep back pomlflow's warnings.
        register: Whether to register each POML prompt and link its version to the trace.
        mask: From a span's ``{"inputs": …, "outputs": …}`` to what of it may be stored.
        trace_dir: A folder for POML's own local trace files, of all renders of the process.

    Raises:
        ConfigurationError: `mask` is no function, or the folder cannot be made.

    Example:
        >>> import pomlflow.llama_index
        >>> pomlflow.llama_index.autolog()  # doctest: +SKIP
    """
    switch("llama_index", disable, log_traces, silent, register, mask, trace_dir)


def __getattr__(name: str) -> Any:
    if name == "PomlCallbackHandler":  # it brings MLflow, which an engine without tracing must not pay for
        from pomlflow.llama_index.handler import PomlCallbackHandler

        return PomlCallbackHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
