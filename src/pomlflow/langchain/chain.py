"""A chain whose arguments reach the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.runnables import RunnableConfig, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase, coerce_to_runnable
from typing_extensions import override

from pomlflow.langchain.binding import PomlModel

__all__ = ["PomlChain"]


class PomlChain(RunnableSequence[Any, Any]):
    """A chain from a prompt's variables to the model's answer: LangChain's sequence, whose arguments reach the model.

    LangChain's own gives what is bound to it to its first step, the prompt, where it is lost.

    Args:
        *steps: As `RunnableSequence` takes them; one of them holds a `PomlModel`.
        name: The run's name.
        **fields: What LangChain itself passes when it copies a chain.
    """

    def __init__(self, *steps: Any, name: str | None = None, **fields: Any) -> None:
        super().__init__(*steps, name=name, **fields)

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return ["pomlflow", "langchain", "chain"]

    @override
    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """``RunnableSequence``, as all chains are called in traces."""
        return super().get_name(suffix, name=name or self.name or RunnableSequence.__name__)

    @override
    def bind(self, **kwargs: Any) -> PomlChain:
        """Add arguments for the model, the last one that hears POML; they win over the frame's."""
        steps = list(self.steps)
        last = max(index for index, step in enumerate(steps) if _hears(step))
        steps[last] = steps[last].bind(**kwargs)
        return PomlChain(*steps, name=self.name)

    @override
    def __or__(self, other: Any) -> PomlChain:
        steps = other.steps if isinstance(other, RunnableSequence) else [coerce_to_runnable(other)]
        return PomlChain(*self.steps, *steps, name=self.name or getattr(other, "name", None))

    @override
    def __ror__(self, other: Any) -> PomlChain:
        steps = other.steps if isinstance(other, RunnableSequence) else [coerce_to_runnable(other)]
        return PomlChain(*steps, *self.steps, name=getattr(other, "name", None) or self.name)

    # Arguments come here also from a `bind` on what is made of the chain: `chain.with_retry().bind(…)`.

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run the chain."""
        return super(PomlChain, self.bind(**kwargs) if kwargs else self).invoke(input, config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run the chain."""
        return await super(PomlChain, self.bind(**kwargs) if kwargs else self).ainvoke(input, config)

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Run the chain for each input."""
        chain = self.bind(**kwargs) if kwargs else self
        return super(PomlChain, chain).batch(inputs, config, return_exceptions=return_exceptions)

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Run the chain for each input."""
        chain = self.bind(**kwargs) if kwargs else self
        return await super(PomlChain, chain).abatch(inputs, config, return_exceptions=return_exceptions)

    @override
    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Any]:
        """Stream through the chain."""
        yield from super(PomlChain, self.bind(**kwargs) if kwargs else self).transform(input, config)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        """Stream through the chain."""
        async for chunk in super(PomlChain, self.bind(**kwargs) if kwargs else self).atransform(input, config):
            yield chunk


def _hears(step: Any) -> bool:
    """Whether a step holds a `PomlModel`."""
    if isinstance(step, PomlModel):
        return True
    if isinstance(step, RunnableBindingBase):
        return _hears(step.bound)
    return isinstance(step, RunnableWithFallbacks) and _hears(step.runnable)
