"""A model that delegates to another one and adds a POML file's settings, examples, tools and schema to its calls.

An agent gets such a model; `bind_to` makes one for each render.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.instrumentation.dispatcher import (  # type: ignore[attr-defined]
    DISPATCHER_SPAN_DECORATED_ATTR,
)
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool
from pydantic import BaseModel, Field, InstanceOf, SerializeAsAny
from typing_extensions import override

from pomlflow.exceptions import PomlError
from pomlflow.frame import ToolSpec
from pomlflow.llama_index.internals import prepare_chat_with_tools, validate_chat_with_tools
from pomlflow.llama_index.providers import (
    apply_fields,
    for_provider,
    native_schema,
    refused_argument,
    tool_choice,
)
from pomlflow.llama_index.refusals import astream_checked, checked, google_refusals, stream_checked, text_of
from pomlflow.llama_index.structured import AnswerReader, instructions, output_class, with_instructions
from pomlflow.llama_index.tools import describe_tool
from pomlflow.record import RenderRecord

__all__ = ["BoundLLM", "Options", "Request", "earlier_render"]

Options = Mapping[str, Any] | None
Response = ChatResponse | CompletionResponse
F = TypeVar("F", bound=Callable[..., Any])

earlier_render: ContextVar[RenderRecord | None] = ContextVar("pomlflow_llama_index_earlier_render", default=None)
"""The render, made before the run, whose text and settings are part of the model's call that begins."""


def _without_span(method: F) -> F:
    """Keep LlamaIndex from giving a method a span: the delegate's method has one."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class BoundLLM(LLM):
    """A model that adds a render's settings and examples to each call of its delegate.

    Attributes:
        delegate: The model, with the settings for which its class has fields.
        settings: Arguments of its chat from ``<runtime>``; the caller's arguments override them.
        llm_kwargs: Arguments of its chat from the caller, which override `settings`.
        examples: Messages that follow the system message of each chat.
        place: The template, for errors.
        record: The render, if it was made before the calls; without content.
    """

    delegate: SerializeAsAny[LLM]
    settings: dict[str, Any] = Field(default_factory=dict)
    llm_kwargs: dict[str, Any] = Field(default_factory=dict)
    examples: list[ChatMessage] = Field(default_factory=list)
    place: str = "<inline>"
    record: InstanceOf[RenderRecord] | None = Field(default=None, exclude=True)

    @classmethod
    def of(cls, llm: LLM, settings: Mapping[str, Any], llm_kwargs: Mapping[str, Any], **fields: Any) -> BoundLLM:
        """Bind a model; one that calls functions gives one that does."""
        kind = BoundFunctionCallingLLM if isinstance(llm, FunctionCallingLLM) else BoundLLM
        delegate = apply_fields(llm, {**settings, **llm_kwargs})
        shared = {name: getattr(delegate, name) for name in LLM.model_fields}
        added = {"delegate": delegate, "settings": dict(settings), "llm_kwargs": dict(llm_kwargs), **fields}
        return _unvalidated(kind).model_copy(update={**shared, **added})

    @classmethod
    @override
    def class_name(cls) -> str:
        return "poml_bound_llm"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return self.delegate.metadata

    @override
    def to_payload(self) -> dict[str, Any]:
        return self.delegate.to_payload()

    def _messages(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        first = next((at for at, m in enumerate(messages) if m.role != MessageRole.SYSTEM), len(messages))
        examples = [example.model_copy(deep=True) for example in self.examples]
        return for_provider(self.delegate, [*messages[:first], *examples, *messages[first:]])

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.settings, **self.llm_kwargs, **given}

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Report the earlier render to the handler, and explain an argument that the delegate's class refuses."""
        token = earlier_render.set(self.record)
        try:
            with google_refusals(self.place):
                yield
        except TypeError as error:
            refusal = refused_argument(error, self.delegate, self.settings.keys() - self.llm_kwargs.keys(), self.place)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            earlier_render.reset(token)

    @_without_span
    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        with self._call():
            return checked(self.delegate.chat(self._messages(messages), **self._options(kwargs)), self.place)

    @_without_span
    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        with self._call():
            return checked(await self.delegate.achat(self._messages(messages), **self._options(kwargs)), self.place)

    @_without_span
    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        with self._call():
            return stream_checked(
                self.delegate.stream_chat(self._messages(messages), **self._options(kwargs)), self.place
            )

    @_without_span
    @override
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        with self._call():
            return astream_checked(
                await self.delegate.astream_chat(self._messages(messages), **self._options(kwargs)), self.place
            )

    @_without_span
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        with self._call():
            return checked(self.delegate.complete(prompt, formatted=formatted, **self._options(kwargs)), self.place)

    @_without_span
    @override
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        with self._call():
            return checked(
                await self.delegate.acomplete(prompt, formatted=formatted, **self._options(kwargs)), self.place
            )

    @_without_span
    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        with self._call():
            return stream_checked(
                self.delegate.stream_complete(prompt, formatted=formatted, **self._options(kwargs)), self.place
            )

    @_without_span
    @override
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        with self._call():
            return astream_checked(
                await self.delegate.astream_complete(prompt, formatted=formatted, **self._options(kwargs)), self.place
            )

    # Structured answers by the same rules as those of `PomlLLM`, settings included; the delegate's own methods, such as
    # Anthropic's, are not called.

    @_without_span
    @override
    def structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Options = None, **prompt_args: Any) -> Any:
        request = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
        return request.read(request.send())

    @_without_span
    @override
    async def astructured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Any:
        request = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
        return request.read(await request.send("a"))

    @_without_span
    @override
    def stream_structured_predict(  # type: ignore[override]  # an iterator is enough
        self, output_cls: Any, prompt: Any, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Iterator[Any]:
        return self._structured(output_cls, prompt, llm_kwargs, prompt_args).stream()

    @_without_span
    @override
    async def astream_structured_predict(  # type: ignore[override]
        self, output_cls: Any, prompt: Any, llm_kwargs: Options = None, **prompt_args: Any
    ) -> AsyncIterator[Any]:
        return await self._structured(output_cls, prompt, llm_kwargs, prompt_args).astream()

    def _structured(self, kind: type[BaseModel], prompt: Any, given: Options, variables: Mapping[str, Any]) -> Request:
        reader = AnswerReader.of(kind, None, self.place)
        return self.request(prompt, given, variables=variables, reader=reader)

    def request(
        self,
        prompt: Any,
        given: Options = None,
        *,
        variables: Mapping[str, Any] | None = None,
        chats: bool | None = None,
        tools: Sequence[ToolSpec] = (),
        choice: Any = None,
        schema: Mapping[str, Any] | None = None,
        reader: AnswerReader | None = None,
    ) -> Request:
        """Prepare a call with a prompt, tools and an output schema, in the forms that the model's class takes."""
        variables = variables or {}
        options: dict[str, Any] = {}
        addition, answers_by_tool = "", False
        if reader is not None:
            schema = reader.schema
        if schema is not None and (native := native_schema(self.delegate, schema)) is not None:
            options |= native
        elif reader is not None and isinstance(self, FunctionCallingLLM) and self.metadata.is_function_calling_model:
            tools, answers_by_tool = [reader.tool()], True
        elif schema is not None:
            addition = instructions(output_class(schema, self.place))
        messages = with_instructions(self._get_messages(prompt, **variables), addition)
        if tools and isinstance(self, FunctionCallingLLM):
            prepared = prepare_chat_with_tools(
                self.delegate,
                [describe_tool(spec) for spec in tools],
                chat_history=messages,
                allow_parallel_tool_calls=not answers_by_tool,
                tool_required=answers_by_tool,
            )
            messages = prepared.pop("messages")
            options |= {name: value for name, value in prepared.items() if value is not None}
            chats = True if chats is None else chats
        elif tools:
            options["tools"] = [spec.openai() for spec in tools]
        if choice is not None and tools:
            options["tool_choice"] = tool_choice(self.delegate, choice)
        options |= self._options(given or {})
        if self.metadata.is_chat_model if chats is None else chats:
            return Request(self, messages, options, reader, answers_by_tool=answers_by_tool)
        text = self._text(prompt, messages, variables)
        return Request(self, f"{text}\n\n{addition}" if addition else text, options, reader)

    def _text(self, prompt: Any, messages: Sequence[ChatMessage], variables: Mapping[str, Any]) -> str:
        for block in (block for message in messages for block in message.blocks if not isinstance(block, TextBlock)):
            raise PomlError(
                f"{self.place}: a completion is a text, which cannot hold the prompt's {block.block_type}: use chat"
            )
        return self._get_prompt(prompt, **variables)

    def answer(self, response: Response) -> str:
        """Return the text of a response, read by the model's output parser."""
        return self._parse_output(text_of(response))


@lru_cache
def _unvalidated(kind: type[BoundLLM]) -> BoundLLM:
    """Return an instance to copy: validation would take as long as all the rest of a call."""
    return kind.model_construct()


class BoundFunctionCallingLLM(BoundLLM, FunctionCallingLLM):
    """A bound model that calls functions, since LlamaIndex looks for this class."""

    @_without_span
    @override
    def _prepare_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, tool_required: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        return prepare_chat_with_tools(self.delegate, tools, *args, tool_required=tool_required, **kwargs)

    @override
    def _validate_chat_with_tools_response(self, response: ChatResponse, *args: Any, **kwargs: Any) -> ChatResponse:
        return validate_chat_with_tools(self.delegate, response, *args, **kwargs)

    @override
    def get_tool_calls_from_response(self, response: ChatResponse, *args: Any, **kwargs: Any) -> list[ToolSelection]:
        delegate: Any = self.delegate
        calls: list[ToolSelection] = delegate.get_tool_calls_from_response(response, *args, **kwargs)
        return calls


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of a bound model: its messages or text, its arguments, and how the answer is read."""

    model: BoundLLM
    content: list[ChatMessage] | str
    options: dict[str, Any]
    reader: AnswerReader | None = None
    answers_by_tool: bool = False

    @property
    def chats(self) -> bool:
        """Whether the model chats; else it completes a text."""
        return not isinstance(self.content, str)

    def send(self, prefix: str = "") -> Any:
        """Call the model; `prefix` is that of the method: "", "a", "stream_" or "astream_"."""
        if isinstance(self.content, str):
            return getattr(self.model, f"{prefix}complete")(self.content, formatted=True, **self.options)
        return getattr(self.model, f"{prefix}chat")(self.content, **self.options)

    def read(self, response: Response | None) -> Any:
        """Return the structured answer, checked by its schema; raise `AnswerError` if it does not match."""
        assert self.reader is not None  # noqa: S101
        return self.reader.read(self._answer(response))

    def stream(self) -> Iterator[Any]:
        """Yield the structured answer as it grows."""
        return self._growing(self.send("stream_"))

    async def astream(self) -> AsyncIterator[Any]:
        """Yield the structured answer as it grows."""
        return self._agrowing(await self.send("astream_"))

    def _growing(self, stream: Iterator[Response]) -> Iterator[Any]:
        seen = last = None
        for last in stream:
            partial = self._partial(last)
            if partial is not None and partial != seen:
                seen = partial
                yield partial
        yield self.read(last)

    async def _agrowing(self, stream: AsyncIterator[Response]) -> AsyncIterator[Any]:
        seen = last = None
        async for last in stream:
            partial = self._partial(last)
            if partial is not None and partial != seen:
                seen = partial
                yield partial
        yield self.read(last)

    def _partial(self, response: Response) -> BaseModel | None:
        assert self.reader is not None  # noqa: S101
        return self.reader.partial(self._answer(response))

    def _answer(self, response: Response | None) -> str:
        if self.answers_by_tool and isinstance(response, ChatResponse):
            model: Any = self.model
            calls = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
            if calls:
                return json.dumps(calls[0].tool_kwargs)
        return "" if response is None else text_of(response)
