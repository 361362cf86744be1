"""A model that delegates to another one and adds a POML file's settings, examples, tools and schema to its calls.

If the delegate refuses, an error with the text of the refusal is raised, for complete responses and for streams.

`agent_kwargs` makes one for an agent. A `PomlLLM` makes one for each call.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata, MessageRole
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import BaseModel, Field, InstanceOf, SerializeAsAny
from typing_extensions import override

from pomlflow.exceptions import AnswerError
from pomlflow.frame.answers import refusal_in
from pomlflow.frame.tools import ToolSpec
from pomlflow.llama_index.messages import joined_text
from pomlflow.llama_index.providers import (
    apply_fields,
    move_media_after_tools,
    native_schema,
    tool_choice,
)
from pomlflow.llama_index.streams import wrap_stream
from pomlflow.llama_index.structured import AnswerReader, instructions, output_class, with_instructions
from pomlflow.llama_index.tools import describe_tool
from pomlflow.record import RenderRecord

Response = ChatResponse | CompletionResponse

_dispatcher = get_dispatcher(__name__)
Options = Mapping[str, Any] | None

earlier_render: ContextVar[RenderRecord | None] = ContextVar("pomlflow_llama_index_earlier_render", default=None)
"""The render of an agent's prompt that applies to the current call of its model; it was made before the run."""


class _Delegation:
    """The methods that call the delegate, in a class that is no `LLM`: LlamaIndex adds spans to an LLM's methods."""

    def chat(self: Any, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return self._send("chat", self._messages(messages), **kwargs)

    async def achat(self: Any, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return await self._asend("achat", self._messages(messages), **kwargs)

    def stream_chat(self: Any, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return self._send("stream_chat", self._messages(messages), **kwargs)

    async def astream_chat(self: Any, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return await self._asend("astream_chat", self._messages(messages), **kwargs)

    def complete(self: Any, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self._send("complete", prompt, formatted=formatted, **kwargs)

    async def acomplete(self: Any, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return await self._asend("acomplete", prompt, formatted=formatted, **kwargs)

    def stream_complete(self: Any, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self._send("stream_complete", prompt, formatted=formatted, **kwargs)

    async def astream_complete(self: Any, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return await self._asend("astream_complete", prompt, formatted=formatted, **kwargs)

    async def astructured_predict(
        self: Any, output_cls: type[BaseModel], prompt: Any, llm_kwargs: Options = None, **variables: Any
    ) -> Any:
        """Return an agent's structured answer, by the same rules as `PomlLLM`."""
        reader = AnswerReader.of(output_cls, None, self.label)
        request = self.request(prompt, llm_kwargs, variables=variables, reader=reader)
        return request.read(await request.send("a"))

    def _prepare_chat_with_tools(self: Any, *args: Any, tool_required: bool = False, **kwargs: Any) -> Any:
        # LlamaIndex's method for subclasses: it has no public one, and inspects this signature for `tool_required`.
        return self.delegate._prepare_chat_with_tools_compat(*args, tool_required=tool_required, **kwargs)  # noqa: SLF001

    def _validate_chat_with_tools_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.delegate._validate_chat_with_tools_response(*args, **kwargs)  # noqa: SLF001 - as above

    def get_tool_calls_from_response(self: Any, response: ChatResponse, *args: Any, **kwargs: Any) -> Any:
        return self.delegate.get_tool_calls_from_response(response, *args, **kwargs)


class BoundLLM(_Delegation, LLM):
    """A model that adds a render's settings and examples to each call of its delegate."""

    delegate: SerializeAsAny[LLM]  # the model, with the settings for which its class has fields
    options: dict[str, Any] = Field(default_factory=dict)  # arguments of its chat, which those of a call override
    examples: list[ChatMessage] = Field(default_factory=list)  # inserted after the system messages of each chat
    label: str = "<inline>"  # the template's name in errors
    record: InstanceOf[RenderRecord] | None = Field(default=None, exclude=True)  # of an agent's prompt, without content

    @classmethod
    def of(cls, llm: LLM, options: Mapping[str, Any], label: str, **fields: Any) -> BoundLLM:
        """Bind a model. The result calls functions if the model does."""
        kind = BoundFunctionCallingLLM if isinstance(llm, FunctionCallingLLM) else BoundLLM
        delegate = apply_fields(llm, options)
        shared = {name: getattr(delegate, name) for name in LLM.model_fields}
        # Without pydantic's validation, which would take as long as the rest of a call.
        return kind.model_construct(**shared, delegate=delegate, options=dict(options), label=label, **fields)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "poml_bound_llm"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return self.delegate.metadata

    def _messages(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        first = next((at for at, m in enumerate(messages) if m.role != MessageRole.SYSTEM), len(messages))
        examples = [example.model_copy(deep=True) for example in self.examples]
        return move_media_after_tools(self.delegate, [*messages[:first], *examples, *messages[first:]])

    def _send(self, method: str, content: Any, **kwargs: Any) -> Any:
        with self._call():
            return check_refusal(getattr(self.delegate, method)(content, **{**self.options, **kwargs}), self.label)

    async def _asend(self, method: str, content: Any, **kwargs: Any) -> Any:
        with self._call():
            response = await getattr(self.delegate, method)(content, **{**self.options, **kwargs})
            return check_refusal(response, self.label)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Set the earlier render for the handler during a call."""
        token = earlier_render.set(self.record)
        try:
            yield
        finally:
            earlier_render.reset(token)

    def request(
        self,
        prompt: Any,
        given: Options = None,
        *,
        variables: Mapping[str, Any] | None = None,
        always_chat: bool = False,
        tools: Sequence[ToolSpec] = (),
        choice: Any = None,
        schema: Mapping[str, Any] | None = None,
        reader: AnswerReader | None = None,
    ) -> Request:
        """Prepare a call with a prompt, tools and an output schema, in the forms that the model's class takes.

        `given` are the arguments of this call. `choice` is the tool choice. With `always_chat`, `chat` is called even
        if the model completes texts. With a `reader`, its schema is used, and it reads the answer.
        """
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
            addition = instructions(output_class(schema, self.label))
        messages = with_instructions(self._get_messages(prompt, **variables), addition)
        if tools and isinstance(self, FunctionCallingLLM):
            prepared = self._prepare_chat_with_tools(
                [describe_tool(spec) for spec in tools],
                chat_history=messages,
                allow_parallel_tool_calls=not answers_by_tool,
                tool_required=answers_by_tool,
            )
            messages = prepared.pop("messages")
            options |= {name: value for name, value in prepared.items() if value is not None}
            always_chat = True
        elif tools:
            options["tools"] = [spec.openai() for spec in tools]
        if choice is not None and tools and not answers_by_tool:  # the choice is among the file's tools
            options["tool_choice"] = tool_choice(self.delegate, choice)
        options |= {**self.options, **(given or {})}
        if always_chat or self.metadata.is_chat_model:
            return Request(self, messages, options, reader, answers_by_tool=answers_by_tool)
        joined_text(messages, f"{self.label}: use chat, since a completion is a text")
        text = self._get_prompt(prompt, **variables)
        return Request(self, f"{text}\n\n{addition}" if addition else text, options, reader)

    def answer(self, response: Response) -> str:
        """Return the text of a response, processed by the model's output parser."""
        return self._parse_output(text_of(response))


class BoundFunctionCallingLLM(BoundLLM, FunctionCallingLLM):
    """A bound model that calls functions. LlamaIndex checks for the class `FunctionCallingLLM`."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of a bound model."""

    model: BoundLLM
    content: list[ChatMessage] | str
    options: dict[str, Any]  # arguments of the model's chat or completion
    reader: AnswerReader | None = None
    answers_by_tool: bool = False  # whether the model answers with the arguments of a tool call

    def send(self, prefix: str = "") -> Any:
        """Call the model; `prefix` is that of the method: "", "a", "stream_" or "astream_"."""
        if isinstance(self.content, str):
            return getattr(self.model, f"{prefix}complete")(self.content, formatted=True, **self.options)
        return getattr(self.model, f"{prefix}chat")(self.content, **self.options)

    def read(self, response: Response | None) -> Any:
        """Return the structured answer, checked by its schema; raise `AnswerError` if it does not match."""
        assert self.reader is not None  # noqa: S101
        return self.reader.read(self._answer_text(response))

    def partial_answers(self, stream: Iterator[Response]) -> Iterator[Any]:
        """Yield the structured answer of a stream as it grows."""
        piece = None
        for piece in stream:
            if (partial := self._partial(piece)) is not None:
                yield partial
        yield self.read(piece)

    async def apartial_answers(self, stream: AsyncIterator[Response]) -> AsyncIterator[Any]:
        """Yield the structured answer of a stream as it grows."""
        piece = None
        async for piece in stream:
            if (partial := self._partial(piece)) is not None:
                yield partial
        yield self.read(piece)

    def _partial(self, response: Response) -> BaseModel | None:
        assert self.reader is not None  # noqa: S101
        return self.reader.partial(self._answer_text(response))

    def _answer_text(self, response: Response | None) -> str:
        if self.answers_by_tool and isinstance(response, ChatResponse):
            model: Any = self.model
            calls = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
            if calls:
                return json.dumps(calls[0].tool_kwargs)
        return "" if response is None else text_of(response)


class PomlRefusalError(AnswerError):
    """A model refused to answer.

    Attributes:
        answer: The text of the refusal; empty if the provider gives none.
    """


def text_of(response: Response) -> str:
    """Return the text of a model's response."""
    return (response.message.content if isinstance(response, ChatResponse) else response.text) or ""


def check_refusal(response: Any, label: str) -> Any:
    """Return a complete response, or raise the refusal in it. For a stream, return one that raises it at its end."""
    if isinstance(response, ChatResponse | CompletionResponse):
        with _refusal_check(label, None) as take:
            take(response)
        return response
    return wrap_stream(response, _refusal_check(label, active_span_id.get()))


@contextmanager
def _refusal_check(label: str, span_id: str | None) -> Iterator[Callable[[Response], None]]:
    """Raise the refusal in a response's pieces; of a stream, `span_id` is the span of the call that returned it."""
    refusal: str | None = None
    last: Any = None

    def take(piece: Response) -> None:
        nonlocal last, refusal
        last = piece
        refusal = refusal_in(piece.raw, refusal)
        if refusal is None:
            refusal = refusal_in(piece.additional_kwargs)
        if refusal is None and isinstance(piece, ChatResponse):
            refusal = refusal_in(piece.message.additional_kwargs)

    yield take
    if refusal is None:
        return
    text = refusal or text_of(last)
    error = PomlRefusalError(f"{label}: the model refused{f': {text}' if text else ''}", text)
    if span_id is not None:
        # With the id given, since the span that is active here is that of the code that reads the stream.
        _dispatcher.event(ExceptionEvent(span_id=span_id, exception=error))
    raise error
