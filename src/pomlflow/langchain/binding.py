"""A model of LangChain's that hears all that a POML frame says, not its messages alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self, cast

from langchain_core.language_models import BaseLanguageModel, LanguageModelInput
from langchain_core.messages import ToolMessage
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable
from typing_extensions import override

from pomlflow.exceptions import PomlError
from pomlflow.frame import match, tool_specs
from pomlflow.langchain.messages import media_after_tools
from pomlflow.langchain.model_arguments import arguments, changing_source, explained, place_of, speaks_chat_completions
from pomlflow.langchain.output import Growing, read
from pomlflow.record import RenderRecord

__all__ = ["PomlModel", "reach"]


@dataclass(frozen=True)
class _Call:
    """One call of a model, ready to be made."""

    model: Runnable[Any, Any]
    value: Any
    config: RunnableConfig
    kwargs: dict[str, Any]
    record: RenderRecord | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)

    def explained(self) -> AbstractContextManager[None]:
        if self.record is None or not self.unknown:
            return nullcontext()
        return explained(self.unknown, self.model, place_of(self.record))


class PomlModel(RunnableBindingBase[LanguageModelInput, Any]):
    """A model that is called with the tools, the output schema and the settings of the prompt value that it is given.

    `PomlPromptTemplate.bind_to` puts it at the model's place in a chain. It is no run of its own: what LangChain and
    MLflow see is the model, called with the frame's arguments. They are worked out at each call.

    Args:
        bound: The model; also one with tools or arguments bound, or with configurable fields.
        kwargs: What the caller has bound: it wins over the frame.
        config: As LangChain has it.
        parse: Whether to give the object that the answer holds instead of the message.
        functions: The names of the functions that the frame's tools must be matched by; None for no such check.
    """

    parse: bool = False
    functions: list[str] | None = None

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return ["pomlflow", "langchain", "model"]

    @property
    @override
    def OutputType(self) -> type[Any]:
        return cast("type[Any]", Any) if self.parse else super().OutputType

    @override
    def bind(self, **kwargs: Any) -> Self:
        """Add arguments that win over the frame's."""
        return self.model_copy(update={"kwargs": {**self.kwargs, **kwargs}})

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Call the model."""
        call = self._call(input, config, kwargs)
        with call.explained():
            return self._answer(call.model.invoke(call.value, call.config, **call.kwargs), call)

    @override
    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Call the model."""
        call = self._call(input, config, kwargs)
        with call.explained():
            return self._answer(await call.model.ainvoke(call.value, call.config, **call.kwargs), call)

    @override
    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Stream the answer; with `parse`, the object as far as it is there."""
        call = self._call(input, config, kwargs)
        growing = Growing()
        with call.explained():
            for chunk in call.model.stream(call.value, call.config, **call.kwargs):
                if not self._reads(call):
                    yield chunk
                elif growing.take(chunk):
                    yield growing.value
        if self._reads(call) and growing.finish(self._answer(growing.message, call)):
            yield growing.value

    @override
    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Stream the answer; with `parse`, the object as far as it is there."""
        call = self._call(input, config, kwargs)
        growing = Growing()
        with call.explained():
            async for chunk in call.model.astream(call.value, call.config, **call.kwargs):
                if not self._reads(call):
                    yield chunk
                elif growing.take(chunk):
                    yield growing.value
        if self._reads(call) and growing.finish(self._answer(growing.message, call)):
            yield growing.value

    # A binding hands these to what it is bound to, with one set of arguments for all; each input has its own frame.
    batch = Runnable.batch
    abatch = Runnable.abatch
    batch_as_completed = Runnable.batch_as_completed
    abatch_as_completed = Runnable.abatch_as_completed
    transform = Runnable.transform
    atransform = Runnable.atransform

    def _call(self, value: Any, config: RunnableConfig | None, given: Mapping[str, Any]) -> _Call:
        given = {**self.kwargs, **given}
        model, bound, config = _resolved(self.bound, self._merge_configs(config))
        if not isinstance(model, BaseLanguageModel):  # a configuration chose something that holds several
            inner = reach(model.bind(**bound) if bound else model, parse=self.parse, functions=self.functions)
            return _Call(inner, value, config, given)
        record: RenderRecord | None = getattr(value, "_record", None)
        if record is None:
            if self.parse:
                raise PomlError("parse=True takes the prompt value of a POML prompt, which holds the schema")
            return _Call(model, value, config, {**bound, **given})
        if self.functions is not None:
            match(tool_specs(record.result()), self.functions, place_of(record), changing_source(record))
        if self.parse and record.result().get("schema") is None:
            raise PomlError(f"{place_of(record)} has no <output-schema>, which parse=True reads the answer by")
        said = arguments(model, record, bound, given)
        if speaks_chat_completions(model) and any(isinstance(message, ToolMessage) for message in value.to_messages()):
            value = media_after_tools(value.to_messages())
        return _Call(said.model, value, config, said.values, record, said.unknown)

    def _reads(self, call: _Call) -> bool:
        return self.parse and call.record is not None

    def _answer(self, answer: Any, call: _Call) -> Any:
        return read(answer, call.record) if self.parse and call.record is not None else answer


def reach(
    llm: Runnable[Any, Any], *, parse: bool = False, functions: Sequence[str] | None = None
) -> Runnable[Any, Any]:
    """Put a `PomlModel` around each model in a runnable, so that fallbacks hear the frame in their own words too.

    Args:
        llm: A model, or what LangChain makes of one: with arguments bound, retried, with fallbacks, a chain that begins
            with it.
        parse: As `PomlModel` takes it.
        functions: As `PomlModel` takes it.

    Returns:
        The same, with models that hear POML.

    Raises:
        TypeError: It is no model.
    """
    names = None if functions is None else list(functions)
    if isinstance(llm, RunnableWithFallbacks):
        return llm.model_copy(
            update={
                "runnable": reach(llm.runnable, parse=parse, functions=names),
                "fallbacks": [reach(other, parse=parse, functions=names) for other in llm.fallbacks],
            }
        )
    if isinstance(llm, RunnableSequence):
        return RunnableSequence(reach(llm.first, parse=parse, functions=names), *llm.steps[1:], name=llm.name)
    if isinstance(llm, RunnableBinding) and _holds_several(llm.bound):
        return reach(_pushed(llm, llm.bound), parse=parse, functions=names)
    if isinstance(llm, RunnableBindingBase) and not isinstance(llm, RunnableBinding):  # one that retries
        return llm.model_copy(update={"bound": reach(llm.bound, parse=parse, functions=names)})
    if not isinstance(llm, BaseLanguageModel | RunnableBinding | DynamicRunnable) and not _is_configurable(llm):
        raise TypeError(f"bind_to takes one of LangChain's models, or what is made of one, not a {type(llm).__name__}")
    return PomlModel(bound=llm, parse=parse, functions=names)


def _holds_several(runnable: Any) -> bool:
    while isinstance(runnable, RunnableBinding):
        runnable = runnable.bound
    return isinstance(runnable, RunnableBindingBase | RunnableWithFallbacks | RunnableSequence)


def _pushed(binding: RunnableBinding[Any, Any], inner: Any) -> Any:
    """What is bound to something that holds models, bound to each of them: so the frame still wins over it."""
    if isinstance(inner, RunnableWithFallbacks):
        others = [_pushed(binding, other) for other in inner.fallbacks]
        return inner.model_copy(update={"runnable": _pushed(binding, inner.runnable), "fallbacks": others})
    if isinstance(inner, RunnableSequence):
        return RunnableSequence(_pushed(binding, inner.first), *inner.steps[1:], name=inner.name)
    if isinstance(inner, RunnableBindingBase):
        return inner.model_copy(update={"bound": _pushed(binding, inner.bound)})
    return binding.model_copy(update={"bound": inner})


def _resolved(
    runnable: Runnable[Any, Any], config: RunnableConfig
) -> tuple[Runnable[Any, Any], dict[str, Any], RunnableConfig]:
    """The model that a call reaches, what is bound to it, and its configuration."""
    bound: dict[str, Any] = {}
    while True:
        if isinstance(runnable, RunnableBinding):
            binding: RunnableBinding[Any, Any] = runnable
            bound, config, runnable = {**binding.kwargs, **bound}, binding._merge_configs(config), binding.bound
        elif isinstance(runnable, DynamicRunnable):
            runnable, config = runnable.prepare(config)
        elif _is_configurable(runnable):
            runnable = cast("Any", runnable)._model(config)
        else:
            return runnable, bound, config


def _is_configurable(runnable: Any) -> bool:
    """Whether it is what `init_chat_model` gives without a fixed model; langchain 1.4 gives that no public name."""
    return type(runnable).__name__ == "_ConfigurableModel" and callable(getattr(type(runnable), "_model", None))
