"""POML prompts for LlamaIndex."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pomlflow.llama_index.events import PomlRenderEvent
from pomlflow.llama_index.prompt import PomlPromptTemplate

if TYPE_CHECKING:
    from pomlflow.llama_index.callbacks import PomlCallbackHandler

__all__ = ["PomlCallbackHandler", "PomlPromptTemplate", "PomlRenderEvent"]


def __getattr__(name: str) -> Any:
    if name == "PomlCallbackHandler":  # it brings MLflow, which an engine without tracing must not pay for
        from pomlflow.llama_index.callbacks import PomlCallbackHandler

        return PomlCallbackHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
