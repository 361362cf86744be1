"""POML prompts for LlamaIndex.

Some of LlamaIndex's parameters take a prompt only as plain text. A prompt's text that is passed there has no POML span
and no link to its version. These parameters are ``system_prompt`` of agents, chat engines and models, the ``str``
templates of extractors, and ``code_act_system_prompt`` of a `CodeActAgent`. `PomlPromptTemplate.agent_kwargs` renders
an agent's prompt with a span and a link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pomlflow._lazy import lazy_names

if TYPE_CHECKING:
    from pomlflow.llama_index.convert import to_poml
    from pomlflow.llama_index.events import PomlRenderEvent
    from pomlflow.llama_index.handler import PomlCallbackHandler
    from pomlflow.llama_index.llm import PomlRefusalError
    from pomlflow.llama_index.prompt import PomlPromptTemplate

__all__ = [
    "PomlCallbackHandler",
    "PomlPromptTemplate",
    "PomlRefusalError",
    "PomlRenderEvent",
    "to_poml",
]

# Lazy, since prompts do not need MLflow, which the handler imports.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PomlCallbackHandler": "handler",
        "PomlPromptTemplate": "prompt",
        "PomlRefusalError": "llm",
        "PomlRenderEvent": "events",
        "to_poml": "convert",
    },
    requires={"llama_index": "pomlflow[llama-index]"},
)
