"""POML prompts for LangChain."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pomlflow.autolog import switch
from pomlflow.dispatch import Mask
from pomlflow.langchain.output import PomlOutputParserError, PomlRefusalError
from pomlflow.langchain.prompt import PomlPromptTemplate
from pomlflow.langchain.prompt_value import PomlChatPromptValue, PomlStringPromptValue

if TYPE_CHECKING:
    from pomlflow.langchain.handler import PomlCallbackHandler
    from pomlflow.langchain.middleware import PomlMiddleware

__all__ = [
    "PomlCallbackHandler",
    "PomlChatPromptValue",
    "PomlMiddleware",
    "PomlOutputParserError",
    "PomlPromptTemplate",
    "PomlRefusalError",
    "PomlStringPromptValue",
    "autolog",
]


def autolog(
    disable: bool = False,
    log_traces: bool = True,
    silent: bool = False,
    register: bool = True,
    mask: Mask | None = None,
    trace_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Trace each chain, agent and graph of LangChain, and each POML prompt of LangChain's outside of them.

    It is the part of `pomlflow.autolog` that is about LangChain, and takes its arguments.

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
        >>> import pomlflow.langchain
        >>> pomlflow.langchain.autolog()  # doctest: +SKIP
    """
    switch("langchain", disable, log_traces, silent, register, mask, trace_dir)


def __getattr__(name: str) -> Any:
    if name == "PomlCallbackHandler":  # it brings MLflow, which a chain without tracing must not pay for
        from pomlflow.langchain.handler import PomlCallbackHandler

        return PomlCallbackHandler
    if name == "PomlMiddleware":  # it is made from langchain's agents, which the prompts need nothing of
        try:
            from pomlflow.langchain.middleware import PomlMiddleware
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("langchain", "langgraph"):
                raise
            raise ImportError("PomlMiddleware needs langchain: pip install 'langchain>=1.3'") from error

        return PomlMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
