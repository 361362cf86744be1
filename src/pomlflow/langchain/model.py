"""A model of LangChain's that hears all that a POML frame says, not its messages alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseLanguageModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, coerce_to_runnable
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.utils.json import parse_partial_json
from typing_extensions import Self, override

from pomlflow.exceptions import AnswerError, PomlError
from pomlflow.frame import match, parse_answer, tool_specs
from pomlflow.langchain.arguments import arguments, explained, place_of
from pomlflow.record import RenderRecord

__all__ = ["PomlChain", "PomlModel", "PomlOutputParserError", "reach"]


class PomlOutputParserError(AnswerError, OutputParserException):
    """A model's answer is not as ``<output-schema>`` says.

    Attributes:
        answer: The answer, as the model gave it; ``llm_output`` to LangChain.
        message: The whole message that holds it.
    """

    def __init__(self, message: str, answer: str, problems: Iterable[str] = (), raw: BaseMessage | None = None) -> None:
        AnswerError.__init__(self, message, answer, problems)
        self.observation, self.llm_output, self.send_to_llm = None, answer, False
        self.message = raw

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.answer, self.problems, self.message)


@dataclass(frozen=True)
class _Call:
    """One call of a model, ready to be made."""

    model: Runnable[Any, Any]
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
            return self._read(call.model.invoke(input, call.config, **call.kwargs), call.record)

    @override
    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Call the model."""
        call = self._call(input, config, kwargs)
        with call.explained():
            return self._read(await call.model.ainvoke(input, call.config, **call.kwargs), call.record)

    @override
    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Stream the answer; with `parse`, the object as far as it is there."""
        call = self._call(input, config, kwargs)
        growing = _Growing()
        with call.explained():
            for chunk in call.model.stream(input, call.config, **call.kwargs):
                if not self._reads(call):
                    yield chunk
                elif growing.take(chunk):
                    yield growing.value
        if self._reads(call) and growing.finish(self._read(growing.message, call.record)):
            yield growing.value

    @override
    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Stream the answer; with `parse`, the object as far as it is there."""
        call = self._call(input, config, kwargs)
        growing = _Growing()
        with call.explained():
            async for chunk in call.model.astream(input, call.config, **call.kwargs):
                if not self._reads(call):
                    yield chunk
                elif growing.take(chunk):
                    yield growing.value
        if self._reads(call) and growing.finish(self._read(growing.message, call.record)):
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
            return _Call(inner, config, given)
        record: RenderRecord | None = getattr(value, "_record", None)
        if record is None:
            if self.parse:
                raise PomlError("parse=True takes the prompt value of a POML prompt, which holds the schema")
            return _Call(model, config, {**bound, **given})
        if self.functions is not None:
            match(tool_specs(record.result()), self.functions, place_of(record))
        if self.parse and record.result().get("schema") is None:
            raise PomlError(f"{place_of(record)} has no <output-schema>, which parse=True reads the answer by")
        said = arguments(model, record, bound, given)
        return _Call(said.model, config, said.values, record, said.unknown)

    def _reads(self, call: _Call) -> bool:
        return self.parse and call.record is not None

    def _read(self, answer: Any, record: RenderRecord | None) -> Any:
        if not self.parse or record is None:
            return answer
        place = place_of(record)
        if isinstance(answer, AIMessage) and answer.tool_calls:
            names = ", ".join(call["name"] for call in answer.tool_calls)
            raise PomlOutputParserError(
                f"{place}: the model called {names} instead of answering; parse=True is for answers. Run the tools, in "
                f"an agent for example",
                answer.text,
                raw=answer,
            )
        text = answer if isinstance(answer, str) else str(answer.text)
        refusal = answer.additional_kwargs.get("refusal") if isinstance(answer, AIMessage) else None
        if refusal and not text:
            raise PomlOutputParserError(f"{place}: the model refused: {refusal}", str(refusal), raw=answer)
        try:
            return parse_answer(text, record.result()["schema"], place)
        except AnswerError as error:
            raw = answer if isinstance(answer, BaseMessage) else None
            raise PomlOutputParserError(str(error), text, error.problems, raw) from error


class _Growing:
    """The object in a streamed answer, as far as it is there."""

    def __init__(self) -> None:
        self.message: Any = None
        self.value: Any = None

    def take(self, chunk: Any) -> bool:
        """Add a chunk; whether there is more of the object now."""
        self.message = chunk if self.message is None else self.message + chunk
        text = self.message if isinstance(self.message, str) else str(self.message.text)
        try:
            value = parse_partial_json(text) if text.strip() else None
        except ValueError:
            return False
        return self.finish(value)

    def finish(self, value: Any) -> bool:
        """Take a value; whether it is new."""
        if value is None or value == self.value:
            return False
        self.value = value
        return True


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
        return ["pomlflow", "langchain", "model"]

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


def _hears(step: Any) -> bool:
    """Whether a step holds a `PomlModel`."""
    if isinstance(step, PomlModel):
        return True
    if isinstance(step, RunnableBindingBase):
        return _hears(step.bound)
    return isinstance(step, RunnableWithFallbacks) and _hears(step.runnable)
