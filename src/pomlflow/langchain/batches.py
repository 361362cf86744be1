"""Batches of awaited renders: all of the pool, and no more of its queue than that takes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.prompts.chat import BaseChatPromptTemplate
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from pomlflow.settings import settings

__all__ = ["BatchedPromptTemplate"]

_EACH = 8  # renders for each Node process: it never waits for the event loop, and other renders hardly for the batch


class BatchedPromptTemplate(BaseChatPromptTemplate):
    """A chat prompt whose async batches, also as a step of a chain's, take turns.

    LangChain awaits all items of such a batch at once, a thousand or a million: more than the engine lets wait
    (`pomlflow.configure(max_queue=…)`), and the last of them would wait for longer than a render may take.
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
        return await super().abatch(inputs, _in_turn(config), return_exceptions=return_exceptions, **kwargs)

    @override
    async def abatch_as_completed(
        self,
        inputs: Sequence[Any],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, Any]]:
        """Render for each input; give each with its place, as it is done."""
        async for done in super().abatch_as_completed(inputs, _in_turn(config), **kwargs):
            yield done


def _in_turn(config: Any) -> Any:
    """The config, or each of the configs, with as many items at once as are of use, or as the caller wants fewer."""
    if isinstance(config, Sequence):
        return [_in_turn(one) for one in config]
    limits = settings()
    most = max(1, min(_EACH * limits.workers, limits.max_queue))
    wanted = (config or {}).get("max_concurrency")
    return {**(config or {}), "max_concurrency": most if wanted is None else min(wanted, most)}
