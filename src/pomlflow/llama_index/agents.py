"""What one of LlamaIndex's agents is built of, out of a POML prompt.

An agent calls its model with arguments of its own, and takes no others; its system prompt is a text, and it has no
place for examples. So it is given a model that adds both to each call: the file's settings, and its messages beside the
system's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import new_class
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.llms import LLM
from pydantic import BaseModel, PrivateAttr
from typing_extensions import override

from pomlflow.exceptions import PomlError
from pomlflow.frame import tool_specs
from pomlflow.llama_index.providers import for_provider, provider_of, settings_for
from pomlflow.llama_index.rendered import Rendered
from pomlflow.llama_index.request import with_fields
from pomlflow.llama_index.structured import output_class
from pomlflow.llama_index.texts import remember
from pomlflow.llama_index.tools import tied

__all__ = ["agent_kwargs"]

L = TypeVar("L", bound=LLM)


def agent_kwargs(rendered: Rendered, llm: LLM, tools: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Make the arguments of an agent.

    Args:
        rendered: A render of its prompt.
        llm: Its model.
        tools: The functions of its tools, as `tied` takes them.
        own: Arguments of the model's chat, which win over the file's.

    Returns:
        Those of `FunctionAgent`, `ReActAgent` and `CodeActAgent`.

    Raises:
        SettingError: The model does not take a setting.
        ToolError: A tool is without a function, or a function without a tool.
        PomlError: The system's message is more than text.
    """
    output, place = rendered.record.result(), rendered.place
    settings = {**settings_for(llm, output.get("runtime"), place).values, **own}
    choice = settings.pop("tool_choice", None)  # at each call an agent would never come to an end
    system, examples = _system_and_examples(rendered, place)
    made: dict[str, Any] = {
        "llm": _adding(llm, settings, examples),
        "system_prompt": system,
        "tools": tied(tool_specs(output), tools, place),
    }
    if choice is not None and llm.metadata.is_function_calling_model:
        made["initial_tool_choice"] = choice
    if schema := output.get("schema"):
        made["output_cls"] = output_class(schema, place)
    remember(rendered.record)  # its texts reach the model in runs to come
    return made


def _system_and_examples(rendered: Rendered, place: str) -> tuple[str | None, list[ChatMessage]]:
    if rendered.text is not None:  # one text, and nobody says whose: what the agent is to be
        system, examples = rendered.messages, []
    else:
        system = [message for message in rendered.messages if message.role == MessageRole.SYSTEM]
        examples = [message for message in rendered.messages if message.role != MessageRole.SYSTEM]
    blocks = [block for message in system for block in message.blocks]
    for block in blocks:
        if not isinstance(block, TextBlock):
            raise PomlError(f"{place}: an agent's system prompt is a text, which cannot hold its {block.block_type}")
    return "\n\n".join(message.content or "" for message in system) or None, examples


class _Adding(BaseModel):
    """Makes a model's class add to each call."""

    _poml: tuple[dict[str, Any], list[ChatMessage]] = PrivateAttr(default=({}, []))

    def _added(self, asked: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        settings, examples = self._poml
        options = {**settings, **options}
        if "messages" in options:
            options["messages"] = for_provider(self, _exemplified(options["messages"], examples))
        elif asked and not isinstance(asked[0], str):  # a completion has no examples
            asked = (for_provider(self, _exemplified(asked[0], examples)), *asked[1:])
        return asked, options

    @override
    def __reduce__(self) -> Any:
        plain = self.model_copy()
        private = {name: value for name, value in (self.__pydantic_private__ or {}).items() if name != "_poml"}
        object.__setattr__(plain, "__pydantic_private__", private)
        object.__setattr__(plain, "__class__", type(self).__bases__[1])
        return _adding, (plain, *self._poml)


def _adding(llm: L, settings: dict[str, Any], examples: list[ChatMessage]) -> L:
    """A model that adds settings and examples to each call, and sends what tools show to where OpenAI takes it."""
    if not settings and not examples and provider_of(llm) != "openai":
        return llm
    kind: type = type(llm)
    made = with_fields(llm, settings).model_copy()
    object.__setattr__(
        made, "__pydantic_private__", {**(llm.__pydantic_private__ or {}), "_poml": (settings, examples)}
    )
    object.__setattr__(made, "__class__", _class(kind))
    return made


@lru_cache(maxsize=256)
def _class(kind: type) -> type:
    made = new_class(kind.__name__, (_Adding, kind))
    # Set afterwards: methods that are there when a class is made, LlamaIndex gives spans of their own.
    for verb in ("chat", "stream_chat", "complete", "stream_complete"):
        setattr(made, verb, _verb(made, verb))
        setattr(made, f"a{verb}", _averb(made, f"a{verb}"))
    if any(base.__module__ == "llama_index.llms.anthropic.base" for base in kind.__mro__):
        # LlamaIndex's Anthropic (0.12.3) asks for structured answers past its own chat, without any settings.
        for verb in ("structured_predict", "astructured_predict"):
            setattr(made, verb, getattr(LLM, verb))
    return made


def _verb(made: type, verb: str) -> Callable[..., Any]:
    def call(self: Any, *asked: Any, **options: Any) -> Any:
        asked, options = self._added(asked, options)
        return getattr(super(made, self), verb)(*asked, **options)

    call.__name__ = verb
    return call


def _averb(made: type, verb: str) -> Callable[..., Any]:
    async def call(self: Any, *asked: Any, **options: Any) -> Any:
        asked, options = self._added(asked, options)
        return await getattr(super(made, self), verb)(*asked, **options)

    call.__name__ = verb
    return call


def _exemplified(messages: Sequence[ChatMessage], examples: list[ChatMessage]) -> list[ChatMessage]:
    """Messages with the examples behind the system's."""
    first = next((at for at, m in enumerate(messages) if m.role != MessageRole.SYSTEM), len(messages))
    if messages[first : first + len(examples)] == examples:  # a class whose achat calls its chat
        return list(messages)
    return [*messages[:first], *(example.model_copy(deep=True) for example in examples), *messages[first:]]
