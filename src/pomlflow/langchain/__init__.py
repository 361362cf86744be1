"""POML prompts for LangChain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pomlflow.langchain.model import PomlOutputParserError
from pomlflow.langchain.prompt import PomlPromptTemplate
from pomlflow.langchain.values import PomlChatPromptValue, PomlStringPromptValue

if TYPE_CHECKING:
    from pomlflow.langchain.callbacks import PomlCallbackHandler

__all__ = [
    "PomlCallbackHandler",
    "PomlChatPromptValue",
    "PomlOutputParserError",
    "PomlPromptTemplate",
    "PomlStringPromptValue",
]


def __getattr__(name: str) -> Any:
    if name == "PomlCallbackHandler":  # it brings MLflow, which a chain without tracing must not pay for
        from pomlflow.langchain.callbacks import PomlCallbackHandler

        return PomlCallbackHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
