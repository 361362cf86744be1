"""Bind a POML prompt's tools, output schema and runtime settings to LangChain's models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.language_models import BaseLanguageModel, LanguageModelInput
from langchain_core.messages import ToolMessage
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import Field
from typing_extensions import override

from pomlflow.exceptions import PomlError
from pomlflow.frame.tools import check_functions, tool_specs
from pomlflow.langchain.messages import PomlPromptValue, move_media_after_tools
from pomlflow.langchain.model_arguments import arguments, uses_chat_completions
from pomlflow.langchain.output import StreamedAnswer, parse_message
from pomlflow.record import RenderRecord


@dataclass(frozen=True)
class _Call:
    """One call of a model: the model, its input and its arguments."""

    model: Runnable[Any, Any]
    value: Any
    config: RunnableConfig
    kwargs: dict[str, Any]
    parsed_by: RenderRecord | None = None  # the render whose schema parses the answer; None if it is not parsed

    def parse(self, answer: Any) -> Any:
        """Return the object in the answer, or the answer itself if it is not parsed."""
        return answer if self.parsed_by is None else parse_message(answer, self.parsed_by)


class PomlModel(RunnableBindingBase[LanguageModelInput, Any]):
    """Call a model with the tools, output schema and settings of the prompt value that is its input.

    It adds no run of its own: traces show the model's run, with the arguments that the frame gives for each call.
    """

    parse: bool = False  # whether to return the object in the answer
    function_names: list[str] | None = None  # the frame's tools must have these names; None allows any
    own_tools: list[dict[str, Any]] = Field(default_factory=list)  # used if the markup defines no tool

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return ["pomlflow", "langchain", "binding"]

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        call = self._call(input, config, kwargs)
        return call.parse(call.model.invoke(call.value, call.config, **call.kwargs))

    @override
    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        call = self._call(input, config, kwargs)
        return call.parse(await call.model.ainvoke(call.value, call.config, **call.kwargs))

    @override
    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Stream the answer; with `parse`, the object parsed so far."""
        call = self._call(input, config, kwargs)
        answer = StreamedAnswer(call.parsed_by)
        for chunk in call.model.stream(call.value, call.config, **call.kwargs):
            yield from answer.add(chunk)
        yield from answer.finish()

    @override
    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        call = self._call(input, config, kwargs)
        answer = StreamedAnswer(call.parsed_by)
        async for chunk in call.model.astream(call.value, call.config, **call.kwargs):
            for value in answer.add(chunk):
                yield value
        for value in answer.finish():
            yield value

    # RunnableBindingBase would pass the same arguments for all inputs of a batch, but each input has its own frame.
    batch = Runnable.batch
    abatch = Runnable.abatch
    batch_as_completed = Runnable.batch_as_completed
    abatch_as_completed = Runnable.abatch_as_completed
    transform = Runnable.transform
    atransform = Runnable.atransform

    def _call(self, value: Any, config: RunnableConfig | None, bound: dict[str, Any]) -> _Call:
        """Prepare a call, and check that the frame's tools and schema fit `function_names` and `parse`.

        `bound` holds the arguments that are bound to the model. Those of the chain's call are in the prompt value.
        """
        model, config = self.bound, self._merge_configs(config)
        if not isinstance(model, BaseLanguageModel):
            wrap = partial(PomlModel, parse=self.parse, function_names=self.function_names, own_tools=self.own_tools)
            selected, config = _selected(model, config)
            return _Call(wrap_models(selected, wrap), value, config, bound)
        record = value.record if isinstance(value, PomlPromptValue) else None
        if record is None:
            if self.parse:
                raise PomlError("parse=True needs the prompt value of a POML prompt, which holds the schema")
            return _Call(model, value, config, bound)
        if self.function_names is not None:
            check_functions(
                tool_specs(record.result()), self.function_names, record.label, exact="tools" in record.static_fields
            )
        if self.parse and record.result().get("schema") is None:
            raise PomlError(f"{record.label} has no <output-schema>, which parse=True needs to parse the answer")
        prepared = arguments(model, record, bound, value.arguments, self.own_tools)
        if uses_chat_completions(model) and any(isinstance(message, ToolMessage) for message in value.to_messages()):
            value = move_media_after_tools(value.to_messages())
        return _Call(prepared.model, value, config, prepared.values, record if self.parse else None)


def wrap_models(llm: Runnable[Any, Any], wrap: Callable[..., PomlModel]) -> Runnable[Any, Any]:
    """Wrap every model in the runnable."""
    if isinstance(llm, RunnableBindingBase):  # bound arguments, and retries
        return llm.model_copy(update={"bound": wrap_models(llm.bound, wrap)})
    if isinstance(llm, RunnableWithFallbacks):
        first, *others = (wrap_models(model, wrap) for model in (llm.runnable, *llm.fallbacks))
        return llm.model_copy(update={"runnable": first, "fallbacks": others})
    if isinstance(llm, RunnableSequence):
        return RunnableSequence(wrap_models(llm.first, wrap), *llm.steps[1:], name=llm.name)
    if not isinstance(llm, BaseLanguageModel | DynamicRunnable) and not _is_configurable(llm):
        raise TypeError(f"bind_to takes a LangChain model, or a runnable made from one, not a {type(llm).__name__}")
    return wrap(bound=llm)


def _selected(runnable: Any, config: RunnableConfig) -> tuple[Runnable[Any, Any], RunnableConfig]:
    """Return the model, or the runnable made from models, that the configuration selects."""
    if isinstance(runnable, DynamicRunnable):
        return runnable.prepare(config)
    return runnable._model(config), config  # noqa: SLF001 - see _is_configurable


def _is_configurable(runnable: Any) -> bool:
    """Return whether a runnable is the result of `init_chat_model` without a fixed model."""
    # upstream: langchain 1.3-1.5: the configurable model of init_chat_model has no public class.
    return type(runnable).__name__ == "_ConfigurableModel" and callable(getattr(type(runnable), "_model", None))
