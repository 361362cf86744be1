"""A model bound to a POML prompt, and the arguments of an agent that is built from one."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.llms import LLM
from llama_index.core.types import TokenAsyncGen, TokenGen
from pydantic import BaseModel

from pomlflow.frame.tools import tool_specs
from pomlflow.llama_index.llm import BoundLLM, Options, Request
from pomlflow.llama_index.messages import Rendered, joined_text
from pomlflow.llama_index.providers import settings_for
from pomlflow.llama_index.structured import AnswerReader, output_class
from pomlflow.llama_index.tools import bind_tools, plain_tools

_dispatcher = get_dispatcher(__name__)


class PomlLLM:
    """A model bound to a POML prompt. Its methods are those of LlamaIndex's models, but take the prompt's variables.

    Each call renders once and applies the whole result to the call: messages, tools, runtime settings under the model's
    names, and the output schema. The schema becomes the provider's structured output, or if the model has none, a
    function to call or instructions. Arguments given here override the file's.

    Args:
        prompt: The prompt.
        llm: The model.
        **llm_kwargs: Arguments of the model's chat or completion, for all calls.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from pomlflow.llama_index import PomlPromptTemplate
        >>> bound = PomlPromptTemplate("<p>{{topic}}</p>").bind_to(MockLLM(), max_tokens=2)
        >>> bound.predict(topic="POML")
        'text text'
    """

    def __init__(self, prompt: Any, llm: LLM, /, **llm_kwargs: Any) -> None:
        if not isinstance(llm, LLM):
            raise TypeError(f"bind_to takes one of LlamaIndex's LLMs, not a {type(llm).__name__}")
        self.prompt = prompt
        self.llm = llm
        self.llm_kwargs = llm_kwargs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prompt.name!r}, {self.llm.class_name()})"

    def _request(self, rendered: Rendered, llm_kwargs: Options, **options: Any) -> Request:
        output = rendered.record.result()
        given = {**self.llm_kwargs, **(llm_kwargs or {})}
        settings = settings_for(self.llm, output.get("runtime"), given, rendered.record.label)
        choice = settings.pop("tool_choice", None)
        model = BoundLLM.of(self.llm, {**settings, **given}, rendered.record.label)
        options = {"tools": tool_specs(output), "choice": choice, "schema": output.get("schema"), **options}
        return model.request(rendered, **options)

    def _structured(self, rendered: Rendered, llm_kwargs: Options, output_cls: type[BaseModel] | None) -> Request:
        reader = AnswerReader.of(output_cls, rendered.record.result().get("schema"), rendered.record.label)
        return self._request(rendered, llm_kwargs, tools=(), reader=reader)

    @_dispatcher.span
    def chat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponse:
        """Render the prompt, and chat.

        Args:
            llm_kwargs: Arguments of the model's chat for this call. They override all other arguments and settings.
            **variables: The prompt's variables.

        Returns:
            The model's response.

        Raises:
            PomlError: The render failed, or the model does not support a part of the file.
        """
        response: ChatResponse = self._request(self.prompt.render(variables), llm_kwargs, always_chat=True).send()
        return response

    @_dispatcher.span
    async def achat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponse:
        """Render and chat without blocking the event loop; otherwise like `chat`."""
        request = self._request(await self.prompt.arender(variables), llm_kwargs, always_chat=True)
        response: ChatResponse = await request.send("a")
        return response

    @_dispatcher.span
    def stream_chat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponseGen:
        """Render, and stream a chat; otherwise like `chat`."""
        request = self._request(self.prompt.render(variables), llm_kwargs, always_chat=True)
        stream: ChatResponseGen = request.send("stream_")
        return stream

    @_dispatcher.span
    async def astream_chat(self, *, llm_kwargs: Options = None, **variables: Any) -> ChatResponseAsyncGen:
        """Render and stream a chat without blocking the event loop; otherwise like `chat`."""
        request = self._request(await self.prompt.arender(variables), llm_kwargs, always_chat=True)
        stream: ChatResponseAsyncGen = await request.send("astream_")
        return stream

    @_dispatcher.span
    def predict(self, *, llm_kwargs: Options = None, **variables: Any) -> str:
        """Render, and return the answer's text; a model that does not chat completes a text. Otherwise like `chat`."""
        request = self._request(self.prompt.render(variables), llm_kwargs)
        return request.model.answer(request.send())

    @_dispatcher.span
    async def apredict(self, *, llm_kwargs: Options = None, **variables: Any) -> str:
        """Render and predict without blocking the event loop; otherwise like `predict`."""
        request = self._request(await self.prompt.arender(variables), llm_kwargs)
        return request.model.answer(await request.send("a"))

    @_dispatcher.span
    def stream(self, *, llm_kwargs: Options = None, **variables: Any) -> TokenGen:
        """Render, and stream the text of the answer; otherwise like `predict`."""
        stream = self._request(self.prompt.render(variables), llm_kwargs).send("stream_")
        return (piece.delta or "" for piece in stream)

    @_dispatcher.span
    async def astream(self, *, llm_kwargs: Options = None, **variables: Any) -> TokenAsyncGen:
        """Render and stream the text without blocking the event loop; otherwise like `predict`."""
        request = self._request(await self.prompt.arender(variables), llm_kwargs)
        stream = await request.send("astream_")
        return (piece.delta or "" async for piece in stream)

    @_dispatcher.span
    def structured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> Any:
        """Render, and return the answer as an object that matches ``<output-schema>``. The model gets no tools.

        Args:
            output_cls: A pydantic class for the answer; by default that of `PomlPromptTemplate.output_cls`. If the
                template has no schema, the class's schema is used.
            llm_kwargs: Arguments of the model's chat or completion for this call. They override all others.
            **variables: The prompt's variables.

        Returns:
            An instance of the class. Properties are attributes, and ``model_dump()`` returns a dict, as with
            LlamaIndex's own structured prediction.

        Raises:
            AnswerError: The answer does not match the schema; the error contains the answer.
            ConfigurationError: There is neither a schema nor a class.
            PomlError: An error that `chat` raises.
        """
        request = self._structured(self.prompt.render(variables), llm_kwargs, output_cls)
        return request.read(request.send())

    @_dispatcher.span
    async def astructured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> Any:
        """Return the object without blocking the event loop; otherwise like `structured_predict`."""
        request = self._structured(await self.prompt.arender(variables), llm_kwargs, output_cls)
        return request.read(await request.send("a"))

    @_dispatcher.span
    def stream_structured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> Iterator[Any]:
        """Stream the object as it grows; otherwise like `structured_predict`.

        Yields:
            Instances with the answer so far. Only the last one is complete and checked by the schema; in the others,
            missing properties are None.
        """
        request = self._structured(self.prompt.render(variables), llm_kwargs, output_cls)
        return request.partial_answers(request.send("stream_"))

    @_dispatcher.span
    async def astream_structured_predict(
        self, output_cls: type[BaseModel] | None = None, /, *, llm_kwargs: Options = None, **variables: Any
    ) -> AsyncIterator[Any]:
        """Stream the object without blocking the event loop; otherwise like `stream_structured_predict`."""
        request = self._structured(await self.prompt.arender(variables), llm_kwargs, output_cls)
        return request.apartial_answers(await request.send("astream_"))


def agent_kwargs(
    rendered: Rendered, llm: LLM, tools: Any, llm_kwargs: Mapping[str, Any], *, defined: bool
) -> dict[str, Any]:
    """Return the arguments of `FunctionAgent`, `ReActAgent` and `CodeActAgent` for a render of their prompt.

    `defined` is whether the markup defines tools.
    """
    record, label = rendered.record, rendered.record.label
    output, given = record.result(), dict(llm_kwargs)
    settings = settings_for(llm, output.get("runtime"), given, label)
    # For the first call only: an agent that must call a tool in every call never ends.
    choice = given.pop("tool_choice", settings.pop("tool_choice", None))
    system, examples = _system_and_examples(rendered, label)
    # The record is kept for links to the prompt's version, which need no content.
    record = dataclasses.replace(record, context=b"{}", output={**output, "messages": []})
    exact = "tools" in record.static_fields
    made: dict[str, Any] = {
        "llm": BoundLLM.of(llm, {**settings, **given}, label, examples=examples, record=record),
        "system_prompt": system,
        "tools": bind_tools(tool_specs(output), tools, label, exact=exact) if defined else plain_tools(tools),
    }
    if choice is not None and llm.metadata.is_function_calling_model:
        made["initial_tool_choice"] = choice
    if schema := output.get("schema"):
        made["output_cls"] = output_class(schema, label)
    return made


def _system_and_examples(rendered: Rendered, label: str) -> tuple[str | None, list[ChatMessage]]:
    """Return an agent's system prompt, and the other messages as examples."""
    if rendered.text is not None:  # one text without a role is the system prompt
        system, examples = rendered.messages, []
    else:
        system = [message for message in rendered.messages if message.role == MessageRole.SYSTEM]
        examples = [message for message in rendered.messages if message.role != MessageRole.SYSTEM]
    return joined_text(system, f"{label}: an agent's system prompt is a text") or None, examples
