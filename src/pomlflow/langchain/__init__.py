"""POML prompts for LangChain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pomlflow._lazy import lazy_names

if TYPE_CHECKING:
    from pomlflow.langchain.convert import to_poml
    from pomlflow.langchain.handler import PomlCallbackHandler
    from pomlflow.langchain.messages import PomlChatPromptValue, PomlStringPromptValue
    from pomlflow.langchain.middleware import PomlMiddleware
    from pomlflow.langchain.output import PomlOutputParserError, PomlRefusalError
    from pomlflow.langchain.prompt import PomlPromptTemplate

__all__ = [
    "PomlCallbackHandler",
    "PomlChatPromptValue",
    "PomlMiddleware",
    "PomlOutputParserError",
    "PomlPromptTemplate",
    "PomlRefusalError",
    "PomlStringPromptValue",
    "to_poml",
]

# Lazy, since prompts need neither MLflow, which the handler imports, nor LangChain's agents, which the middleware does.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PomlCallbackHandler": "handler",
        "PomlChatPromptValue": "messages",
        "PomlMiddleware": "middleware",
        "PomlOutputParserError": "output",
        "PomlPromptTemplate": "prompt",
        "PomlRefusalError": "output",
        "PomlStringPromptValue": "messages",
        "to_poml": "convert",
    },
    requires={
        "langchain_core": "pomlflow[langchain]",
        "langchain": "langchain>=1.3",
        "langgraph": "langchain>=1.3",
    },
)
