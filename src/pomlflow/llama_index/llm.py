"""A model of LlamaIndex's bound to a POML prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.llms import LLM
from llama_index.core.llms.llm import (
    astream_chat_response_to_tokens,
    astream_completion_response_to_tokens,
    stream_chat_response_to_tokens,
    stream_completion_response_to_tokens,
)
from llama_index.core.types import TokenAsyncGen, TokenGen
from pydantic import BaseModel

from pomlflow.llama_index.request import Request, Response, text_of

if TYPE_CHECKING:
    from pomlflow.llama_index.prompt import PomlPromptTemplate

__all__ = ["PomlLLM"]

_dispatcher = get_dispatcher(__name__)
Options = Mapping[str, Any] | None


class PomlLLM:
    """A model bound to a POML prompt: LlamaIndex's verbs, with the prompt's variables.

    Each call renders once. What the render says beside its messages is applied to this one call: tools in the shape of
    the model's class, runtime settings under its names, the output schema as the provider's structured output (as a
    function to call, or told in the prompt, where the model has none). What the user gives here wins.

    Args:
        prompt: The prompt.
        llm: The model.
        **llm_kwargs: Arguments of the model's chat, for all calls.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from pomlflow.llama_index import PomlPromptTemplate
        >>> bound = PomlPromptTemplate("<p>{{topic}}</p>").bind_to(MockLLM(), max_tokens=2)
        >>> bound.predict(topic="POML")
        'text text'
    """

    def __init__(self, prompt: PomlPromptTemplate, llm: LLM, /, **llm_kwargs: Any) -> None:
        if not isinstance(llm, LLM):
            raise TypeError(f"bind_to takes one of LlamaIndex's LLMs, not a {type(llm).__name__}")
        self.prompt = prompt
        self.llm = llm
        self.llm_kwargs = llm_kwargs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prompt.name or self.prompt.path or '<inline>'!r}, {self.llm.class_name()})"

    def _request(self, given: Mapping[str, Any], own: Options, **options: Any) -> Request:
        rendered = self.prompt._render(given)
        return Request(self.prompt, self.llm, rendered, {**self.llm_kwargs, **(own or {})}, **options)

    async def _arequest(self, given: Mapping[str, Any], own: Options, **options: Any) -> Request:
        rendered = await self.prompt._arender(given)
        return Request(self.prompt, self.llm, rendered, {**self.llm_kwargs, **(own or {})}, **options)

    @_dispatcher.span
    def chat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponse:
        """Render, and chat.

        Args:
            llm_kwargs: Arguments of the model's chat for this call; they win over all others.
            **variables: The prompt's.

        Returns:
            The model's response.

        Raises:
            PomlError: The render failed, or the model does not take what the template says.
        """
        response: ChatResponse = self._request(variables, llm_kwargs).send("chat")
        return response

    @_dispatcher.span
    def stream_chat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponseGen:
        """Render, and chat in a stream; otherwise as `chat`."""
        stream: ChatResponseGen = self._request(variables, llm_kwargs).send("stream_chat")
        return stream

    @_dispatcher.span
    async def achat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponse:
        """Render and chat without holding up the event loop; otherwise as `chat`."""
        response: ChatResponse = await (await self._arequest(variables, llm_kwargs)).asend("achat")
        return response

    @_dispatcher.span
    async def astream_chat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponseAsyncGen:
        """Render and chat in a stream, without holding up the event loop; otherwise as `chat`."""
        stream: ChatResponseAsyncGen = await (await self._arequest(variables, llm_kwargs)).asend("astream_chat")
        return stream

    @_dispatcher.span
    def complete(self, *, llm_kwargs: Options = None, **variables: Any) -> CompletionResponse:
        """Render to one text, and have it completed.

        Args:
            llm_kwargs: Arguments of the model's completion for this call; they win over all others.
            **variables: The prompt's.

        Returns:
            The model's response.

        Raises:
            PomlError: As `chat`, and where the prompt has more than text.
        """
        response: CompletionResponse = self._request(variables, llm_kwargs).send("complete")
        return response

    @_dispatcher.span
    def stream_complete(self, *, llm_kwargs: Options = None, **variables: Any) -> CompletionResponseGen:
        """Render to one text, and have it completed in a stream; otherwise as `complete`."""
        stream: CompletionResponseGen = self._request(variables, llm_kwargs).send("stream_complete")
        return stream

    @_dispatcher.span
    async def acomplete(self, *, llm_kwargs: Options = None, **variables: Any) -> CompletionResponse:
        """Render and complete without holding up the event loop; otherwise as `complete`."""
        response: CompletionResponse = await (await self._arequest(variables, llm_kwargs)).asend("acomplete")
        return response

    @_dispatcher.span
    async def astream_complete(self, *, llm_kwargs: Options = None, **variables: Any) -> CompletionResponseAsyncGen:
        """Render and complete in a stream, without holding up the event loop; otherwise as `complete`."""
        stream: CompletionResponseAsyncGen = await (await self._arequest(variables, llm_kwargs)).asend(
            "astream_complete"
        )
        return stream

    @_dispatcher.span
    def predict(self, *, llm_kwargs: Options = None, **variables: Any) -> str:
        """Render, and give the text of the answer, whether the model chats or completes.

        Args:
            llm_kwargs: Arguments of the model's chat or completion for this call; they win over all others.
            **variables: The prompt's.

        Returns:
            The text.

        Raises:
            PomlError: As `chat`.
        """
        request = self._request(variables, llm_kwargs)
        response = request.send("chat" if request.chats else "complete")
        return request.llm._parse_output(text_of(response))  # type: ignore[no-any-return]

    @_dispatcher.span
    async def apredict(self, *, llm_kwargs: Options = None, **variables: Any) -> str:
        """Render and predict without holding up the event loop; otherwise as `predict`."""
        request = await self._arequest(variables, llm_kwargs)
        response = await request.asend("achat" if request.chats else "acomplete")
        return request.llm._parse_output(text_of(response))  # type: ignore[no-any-return]

    @_dispatcher.span
    def stream(self, *, llm_kwargs: Options = None, **variables: Any) -> TokenGen:
        """Render, and give the text of the answer piece by piece; otherwise as `predict`."""
        request = self._request(variables, llm_kwargs)
        if request.chats:
            return stream_chat_response_to_tokens(request.send("stream_chat"))
        return stream_completion_response_to_tokens(request.send("stream_complete"))

    @_dispatcher.span
    async def astream(self, *, llm_kwargs: Options = None, **variables: Any) -> TokenAsyncGen:
        """Render and stream without holding up the event loop; otherwise as `stream`."""
        request = await self._arequest(variables, llm_kwargs)
        if request.chats:
            return await astream_chat_response_to_tokens(await request.asend("astream_chat"))
        return await astream_completion_response_to_tokens(await request.asend("astream_complete"))

    @_dispatcher.span
    def structured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> Any:
        """Render, and give the answer as ``<output-schema>`` says; the model has no tools then.

        Args:
            output_cls: A pydantic class for the answer; by default `PomlPromptTemplate.output_cls`'s. Where the
                template has no schema, the class's own is asked for.
            llm_kwargs: Arguments of the model's chat or completion for this call; they win over all others.
            **variables: The prompt's.

        Returns:
            An instance: its properties are attributes, and ``model_dump()`` gives a dict, as LlamaIndex's own
            structured prediction does.

        Raises:
            AnswerError: The answer is not as the schema says; it holds the answer.
            ConfigurationError: There is neither a schema nor a class.
            PomlError: As `chat`.
        """
        request = self._request(variables, llm_kwargs, output_cls=output_cls, structured=True)
        return request.read(request.send("chat" if request.chats else "complete"))

    @_dispatcher.span
    async def astructured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> Any:
        """Do so without holding up the event loop; otherwise as `structured_predict`."""
        request = await self._arequest(variables, llm_kwargs, output_cls=output_cls, structured=True)
        return request.read(await request.asend("achat" if request.chats else "acomplete"))

    @_dispatcher.span
    def stream_structured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> Iterator[Any]:
        """Render, and give the answer as it grows; otherwise as `structured_predict`.

        Yields:
            Instances of what has come so far, unchecked, whose other properties are None; the last one is whole, and
            checked by the schema.
        """
        request = self._request(variables, llm_kwargs, output_cls=output_cls, structured=True)
        stream: Iterator[Response] = request.send("stream_chat" if request.chats else "stream_complete")
        return _growing(request, stream)

    @_dispatcher.span
    async def astream_structured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> AsyncIterator[Any]:
        """Do so without holding up the event loop; otherwise as `stream_structured_predict`."""
        request = await self._arequest(variables, llm_kwargs, output_cls=output_cls, structured=True)
        stream = await request.asend("astream_chat" if request.chats else "astream_complete")
        return _agrowing(request, stream)


def _growing(request: Request, stream: Iterator[Response]) -> Iterator[Any]:
    seen = last = None
    for last in stream:
        partly = request.read_partly(last)
        if partly is not None and partly != seen:
            seen = partly
            yield partly
    yield request.read(last)


async def _agrowing(request: Request, stream: AsyncIterator[Response]) -> AsyncIterator[Any]:
    seen = last = None
    async for last in stream:
        partly = request.read_partly(last)
        if partly is not None and partly != seen:
            seen = partly
            yield partly
    yield request.read(last)
