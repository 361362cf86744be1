"""Limit the concurrency of async batches to what the engine's pool can use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.prompts.chat import BaseChatPromptTemplate
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from pomlflow.settings import settings

__all__ = ["BatchedPromptTemplate"]

# Renders of a batch in the queue: enough that no worker waits for the event loop, but few, so that others hardly wait.
_RENDERS_PER_WORKER = 8


class BatchedPromptTemplate(BaseChatPromptTemplate):
    """A chat prompt whose async batches, also those of a chain, are rendered with limited concurrency.

    LangChain starts all items at once, which may be more than the engine's queue holds or renders within their timeout.
    """

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Render for each input."""
        return await super().abatch(inputs, _bounded(config), return_exceptions=return_exceptions, **kwargs)


def _bounded(config: Any) -> Any:
    """Return the config, or each of the configs, with a limited `max_concurrency`."""
    if isinstance(config, Sequence):
        return [_bounded(one) for one in config]
    limits = settings()
    most = max(1, min(_RENDERS_PER_WORKER * limits.workers, limits.max_queue))
    wanted = (config or {}).get("max_concurrency")
    return {**(config or {}), "max_concurrency": most if wanted is None else min(wanted, most)}
