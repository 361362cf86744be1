"""POML prompts for LlamaIndex.

Where LlamaIndex takes a prompt as plain text, it gets the prompt's text without a POML span and without a link to its
version: ``system_prompt`` of agents, chat engines and models, the ``str`` templates of extractors, and
``code_act_system_prompt`` of a `CodeActAgent`, which joins it to its ``system_prompt``.
`PomlPromptTemplate.agent_kwargs` renders an agent's prompt with a span and a link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from pomlflow._lazy import lazy_names
from pomlflow.autolog import AutologOptions, switch

if TYPE_CHECKING:
    from pomlflow.llama_index.convert import to_poml
    from pomlflow.llama_index.events import PomlRenderEvent
    from pomlflow.llama_index.handler import PomlCallbackHandler
    from pomlflow.llama_index.prompt import PomlPromptTemplate
    from pomlflow.llama_index.refusals import PomlRefusalError

__all__ = [
    "PomlCallbackHandler",
    "PomlPromptTemplate",
    "PomlRefusalError",
    "PomlRenderEvent",
    "autolog",
    "to_poml",
]

# The handler imports MLflow, which prompts do not need.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PomlCallbackHandler": "handler",
        "PomlPromptTemplate": "prompt",
        "PomlRefusalError": "refusals",
        "PomlRenderEvent": "events",
        "to_poml": "convert",
    },
    requires={"llama_index": "pomlflow[llama-index]"},
)


def autolog(disable: bool = False, **options: Unpack[AutologOptions]) -> None:
    """Trace each engine, agent and workflow of LlamaIndex, and each POML prompt of LlamaIndex's outside of them.

    It is the part of `pomlflow.autolog` for LlamaIndex, with the same arguments; `trace_dir` gets all renders of the
    process.

    Args:
        disable: Whether to undo it.
        **options: ``log_traces``, ``silent``, ``register``, ``mask`` and ``trace_dir``.

    Raises:
        ConfigurationError: `mask` is not a function, or the folder cannot be made.

    Example:
        >>> import pomlflow.llama_index
        >>> pomlflow.llama_index.autolog()  # doctest: +SKIP
    """
    switch(("llama_index",), disable=disable, **options)
