"""What one call sends to a model, made of one render and of what the user says beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, TextBlock
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.utils import parse_partial_json
from llama_index.core.output_parsers import PydanticOutputParser
from pydantic import BaseModel

from pomlflow.exceptions import PomlError, SettingError, ToolError
from pomlflow.frame import ToolSpec, parse_answer, tool_specs
from pomlflow.llama_index.providers import for_provider, native_schema, settings_for, tool_choice
from pomlflow.llama_index.rendered import Rendered
from pomlflow.llama_index.structured import output_class, partial_answer
from pomlflow.llama_index.tools import described

if TYPE_CHECKING:
    from pomlflow.llama_index.prompt import PomlPromptTemplate

__all__ = ["Request", "Response", "text_of", "with_fields"]

L = TypeVar("L", bound=LLM)
Response = ChatResponse | CompletionResponse
_REFUSED = re.compile(r"unexpected keyword argument '(\w+)'")
# What a model's class has fields for that add to a call's arguments, instead of being their defaults.
_ADDED = frozenset({"tools", "mcp_servers"})


class Request:
    """One call of a model.

    Args:
        prompt: Whose render it is.
        llm: The model.
        rendered: The render.
        own: What the user says: arguments of the model's chat, which win over the template's.
        output_cls: For a structured answer, the user's class for it; the schema is then the template's, or its own.
        structured: Whether the answer is to be read by the schema.

    Attributes:
        llm: The model, with the settings that its class has fields for.
        messages: What its chat is sent.
        options: The keyword arguments of its chat or completion.

    Raises:
        SettingError: The model does not take a setting of the template's.
        ConfigurationError: There is no schema to answer by.
    """

    def __init__(
        self,
        prompt: PomlPromptTemplate,
        llm: LLM,
        rendered: Rendered,
        own: Mapping[str, Any],
        *,
        output_cls: type[BaseModel] | None = None,
        structured: bool = False,
    ) -> None:
        self._parser, self._rendered, self._place = prompt.output_parser, rendered, rendered.place
        output = rendered.record.result()
        runtime = settings_for(llm, output.get("runtime"), self._place).values
        if "max_completion_tokens" in own:  # OpenAI's newer name for it
            runtime.pop("max_tokens", None)
        self.llm: Any = with_fields(llm, {**runtime, **own})
        self._kind = output_cls
        self._schema: Mapping[str, Any] | None = output.get("schema")
        if structured:
            self._kind = output_cls or output_class(self._schema, self._place)
            self._schema = self._schema or self._kind.model_json_schema()
        self._prepared = False  # whether the messages are in the shape of a chat with tools
        self._told = ""  # what a model that has no other way is told of the schema
        self.messages = self._messages()
        self.options: dict[str, Any] = {}
        self._specs = tool_specs(output)
        choice = runtime.pop("tool_choice", None)
        self._add_tools_and_schema(structured)
        if choice is not None and self._specs and not structured:
            self.options["tool_choice"] = tool_choice(llm, choice)
        self._from_template = {*runtime, *self.options}
        self.options |= {**runtime, **own}

    def _messages(self) -> list[ChatMessage]:
        """The messages, with what LlamaIndex's `predict` adds to them."""
        messages = self._rendered.chat(self._parser)
        if self.llm.output_parser is not None:
            messages = self.llm.output_parser.format_messages(messages)
        return for_provider(self.llm, cast("list[ChatMessage]", self.llm._extend_messages(messages)))

    def _add_tools_and_schema(self, structured: bool) -> None:
        schema = self._schema
        native = None if schema is None else native_schema(self.llm, schema)
        calling = isinstance(self.llm, FunctionCallingLLM)
        self._calls = structured and native is None and calling and self.llm.metadata.is_function_calling_model
        if self._calls:
            kind = cast("type[BaseModel]", self._kind)
            form = kind.model_json_schema() if schema is None else dict(schema)
            spec = ToolSpec(kind.__name__, form.get("description") or "Gives the answer.", form)
            self._add_tools([spec], required=True)
            return
        if self._specs and not structured:
            self._add_tools(self._specs, required=False)
        if native is not None:
            self.options |= native
        elif schema is not None:
            self._told = _told(output_class(schema, self._place))
            self.messages = _told_at_the_end(self.messages, self._told)

    def _add_tools(self, specs: list[ToolSpec], *, required: bool) -> None:
        """In the shape that the model's own class has for them."""
        if not isinstance(self.llm, FunctionCallingLLM):
            self.options["tools"] = [spec.openai() for spec in specs]
            return
        prepared = self.llm._prepare_chat_with_tools_compat(
            [described(spec) for spec in specs],
            chat_history=list(self.messages),
            allow_parallel_tool_calls=not required,
            tool_required=required,
        )
        self.messages, self._prepared = prepared.pop("messages"), True
        self.options |= {name: value for name, value in prepared.items() if value is not None}

    @property
    def chats(self) -> bool:
        """Whether the model is to chat, which is how tools are called, or to complete a text."""
        return self._prepared or bool(self.llm.metadata.is_chat_model)

    @property
    def text(self) -> str:
        """What a completion is sent.

        Raises:
            PomlError: There is more than text in the prompt.
        """
        lost = [block for message in self._rendered.messages for block in message.blocks if block.block_type != "text"]
        if lost:
            raise PomlError(
                f"{self._place}: a completion is a text, which cannot hold the prompt's {lost[0].block_type}: use chat"
            )
        llm = self.llm
        text = self._rendered.completion(self._parser, llm.messages_to_prompt, llm.completion_to_prompt)
        if llm.output_parser is not None:
            text = llm.output_parser.format(text)
        extended: str = llm._extend_prompt(text)
        return f"{extended}\n\n{self._told}" if self._told else extended

    def send(self, verb: str) -> Any:
        """Call the model.

        Args:
            verb: ``chat``, ``stream_chat``, ``complete`` or ``stream_complete``.

        Returns:
            What the model gives.

        Raises:
            SettingError: The model's class does not take a setting of the template's.
            ToolError: It takes no tools.
        """
        with self._refusals():
            return self._call(verb)

    async def asend(self, verb: str) -> Any:
        """Call the model without holding up the event loop, by ``achat`` …; otherwise as `send`."""
        with self._refusals():
            return await self._call(verb)

    def _call(self, verb: str) -> Any:
        call = getattr(self.llm, verb)
        if verb.endswith("chat"):
            return call(self.messages, **self.options)
        return call(self.text, formatted=True, **self.options)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say what of the template a model's class does not take."""
        try:
            yield
        except TypeError as error:
            found = _REFUSED.search(str(error))
            if found is None or found[1] not in self._from_template:
                raise
            name, kind = found[1], type(self.llm).__name__
            if name == "tools":
                raise ToolError(
                    f"{self._place} has tools, and {kind} takes none: take a model that calls functions, or an agent "
                    "that needs none to (ReActAgent)",
                    self._specs[0].name,
                ) from error
            raise SettingError(f"{self._place}: <runtime> says {name}, which {kind} does not take", name) from error

    # The answer, read by the schema.

    def read(self, response: Response | None) -> Any:
        """Give the answer as an instance of its class.

        Raises:
            AnswerError: It is not as the schema says.
        """
        kind = cast("type[BaseModel]", self._kind)
        return kind.model_validate(parse_answer(self._answer(response), self._schema or {}, self._place))

    def read_partly(self, response: Response) -> BaseModel | None:
        """Give what has come of a streamed answer so far, unchecked; None where that is nothing yet."""
        with suppress(ValueError):
            found = parse_partial_json(self._answer(response))
            if isinstance(found, dict) and any(value is not None for value in found.values()):
                return partial_answer(cast("type[BaseModel]", self._kind), found)
        return None

    def _answer(self, response: Response | None) -> str:
        if self._calls and isinstance(response, ChatResponse):
            calls = self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
            if calls:
                return json.dumps(calls[0].tool_kwargs)
        return "" if response is None else text_of(response)


def text_of(response: Response) -> str:
    """The text of a model's answer."""
    return (response.message.content if isinstance(response, ChatResponse) else response.text) or ""


def with_fields(llm: L, values: Mapping[str, Any]) -> L:
    """Give a model the settings that its class has fields for, in a copy where they are others.

    A call's arguments alone do not do: LlamaIndex's OpenAI (0.8.3) lets its own ``max_tokens`` and
    ``additional_kwargs`` win over them, its models' metadata go by the fields, and many a model looks nowhere else.

    Args:
        llm: The model.
        values: By the names of its chat's arguments.

    Returns:
        The model itself, or a copy, which shares its clients.
    """
    fields = type(llm).model_fields
    changed = {
        name: value
        for name, value in values.items()
        if name in fields and name not in _ADDED and getattr(llm, name) != value
    }
    extra = getattr(llm, "additional_kwargs", None)
    if isinstance(extra, dict) and not extra.keys().isdisjoint(values):
        changed["additional_kwargs"] = {name: value for name, value in extra.items() if name not in values}
    if not changed:
        return llm
    made = llm.model_copy(update=changed)
    object.__setattr__(made, "__pydantic_private__", llm.__pydantic_private__)  # also clients that are made later
    return made


@lru_cache(maxsize=256)
def _told(kind: type[BaseModel]) -> str:
    """What LlamaIndex tells a model of a class; pydantic takes a tenth of a millisecond for it."""
    return PydanticOutputParser(kind).get_format_string(escape_json=False).strip()


def _told_at_the_end(messages: list[ChatMessage], told: str) -> list[ChatMessage]:
    if not messages or messages[-1].role != MessageRole.USER:
        return [*messages, ChatMessage(role=MessageRole.USER, content=told)]
    *before, last = messages
    blocks = [*last.blocks, TextBlock(text=told)]
    if len(last.blocks) == 1 and isinstance(last.blocks[0], TextBlock):  # many a client takes one text, and not several
        blocks = [TextBlock(text=f"{last.blocks[0].text}\n\n{told}")]
    return [*before, last.model_copy(update={"blocks": blocks})]
