"""Fixtures of the LlamaIndex tests: a scripted model, a small index, and restored globals of LlamaIndex."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from copy import copy, deepcopy
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.tools import BaseTool, ToolSelection
from pydantic import Field, PrivateAttr
from tests.llama_index.traces import QA, autolog_trees, linked, traced

from pomlflow.llama_index import PomlPromptTemplate, PomlRenderEvent

__all__ = ["autolog_trees", "linked", "traced"]

# LlamaIndex's own warnings: building an agent reads pydantic's deprecated `__fields__` (workflows 2.26).
_IGNORED_WARNINGS = (
    "ignore:The `__(fields|fields_set)__` attribute is deprecated:DeprecationWarning",
    "ignore:Accessing the 'model_(computed_)?fields' attribute on the instance is deprecated:DeprecationWarning",
    "ignore:is_running called from within a step:DeprecationWarning",
    "ignore:<aiosqlite.core.Connection object:ResourceWarning",  # LlamaIndex 0.14: an agent's memory is never closed
)

Answer = str | ChatMessage | Exception | Callable[[Any], Any]


class ScriptedLLM(FunctionCallingLLM):
    """A model that answers from a script, repeats the last answer, and records its requests.

    An answer is a text, a message, an error to raise, or a function that makes one of the request. `sent` holds the
    messages of each chat, `prompts` the text of each completion, `options` the keyword arguments of each call.
    """

    chat_model: bool = True
    calls_functions: bool = True
    context_window: int = 3900
    _answers: list[Answer] = PrivateAttr(default_factory=list)
    _sent: list[list[ChatMessage]] = PrivateAttr(default_factory=list)
    _prompts: list[str] = PrivateAttr(default_factory=list)
    _options: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @classmethod
    def of(cls, *answers: Answer, **fields: Any) -> ScriptedLLM:
        llm = cls(**fields)
        llm._answers = list(answers) or ["Fine."]
        return llm

    @property
    def sent(self) -> list[list[ChatMessage]]:
        return self._sent

    @property
    def prompts(self) -> list[str]:
        return self._prompts

    @property
    def options(self) -> list[dict[str, Any]]:
        return self._options

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.context_window,
            num_output=64,
            is_chat_model=self.chat_model,
            is_function_calling_model=self.calls_functions,
            model_name="scripted",
        )

    def _answer(self, request: Any, options: dict[str, Any]) -> ChatMessage:
        self._options.append(options)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return deepcopy(answer) if isinstance(answer, ChatMessage) else ChatMessage(role="assistant", content=answer)

    def _chat(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> ChatMessage:
        self._sent.append(deepcopy(list(messages)))
        return self._answer(messages, options)

    def _complete(self, prompt: str, options: dict[str, Any]) -> str:
        self._prompts.append(prompt)
        return self._answer(prompt, options).content or ""

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        return ChatResponse(message=self._chat(messages, options))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        return ChatResponse(message=self._chat(messages, options))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **options: Any) -> Iterator[ChatResponse]:
        def pieces() -> Iterator[ChatResponse]:
            yield from _pieces(answer)

        answer = self._chat(messages, options)
        return pieces()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **options: Any) -> AsyncIterator[ChatResponse]:
        async def pieces() -> AsyncIterator[ChatResponse]:
            for piece in _pieces(answer):
                yield piece

        answer = self._chat(messages, options)
        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        return CompletionResponse(text=self._complete(prompt, options))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        return CompletionResponse(text=self._complete(prompt, options))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **options: Any) -> Iterator[CompletionResponse]:
        def pieces() -> Iterator[CompletionResponse]:
            for piece in _pieces(ChatMessage(role="assistant", content=text)):
                yield CompletionResponse(text=piece.message.content or "", delta=piece.delta)

        text = self._complete(prompt, options)
        return pieces()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **options: Any
    ) -> AsyncIterator[CompletionResponse]:
        async def pieces() -> AsyncIterator[CompletionResponse]:
            for piece in _pieces(ChatMessage(role="assistant", content=text)):
                yield CompletionResponse(text=piece.message.content or "", delta=piece.delta)

        text = self._complete(prompt, options)
        return pieces()

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": [tool.metadata.name for tool in tools]}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **options: Any
    ) -> list[ToolSelection]:
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError("the model called no tool")
        return [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=dict(call.tool_kwargs))
            for call in calls
        ]


def _pieces(answer: ChatMessage) -> Iterator[ChatResponse]:
    """Stream an answer word by word; its calls come with the last piece."""
    rest = [block for block in answer.blocks if not isinstance(block, TextBlock)]
    words = (answer.content or "").split(" ")
    for count, word in enumerate(words, start=1):
        text = " ".join(words[:count])
        blocks = [TextBlock(text=text), *(rest if count == len(words) else [])]
        delta = word if count == 1 else f" {word}"
        yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), delta=delta)


class Cut(ScriptedLLM):
    """A model whose stream fails after its first piece."""

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **_: Any) -> Iterator[ChatResponse]:
        def pieces() -> Iterator[ChatResponse]:
            yield ChatResponse(message=ChatMessage("One"), delta="One")
            raise ConnectionError("cut off")

        return pieces()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let LlamaIndex's own warnings pass in this folder, where all others are errors."""
    for allowed in _IGNORED_WARNINGS:
        item.add_marker(pytest.mark.filterwarnings(allowed))


@pytest.fixture
def scripted() -> Callable[..., ScriptedLLM]:
    """Make a scripted model: ``scripted("first answer", "second", chat_model=False)``."""
    return ScriptedLLM.of


@pytest.fixture
def tool_call() -> Callable[..., ChatMessage]:
    """Make a model's answer that calls a tool: ``tool_call("search", query="x")``."""

    def make(name: str, /, **arguments: Any) -> ChatMessage:
        call = ToolCallBlock(tool_call_id=f"call-{name}", tool_name=name, tool_kwargs=arguments)
        return ChatMessage(role="assistant", blocks=[TextBlock(text=""), call])

    return make


@pytest.fixture(params=["poml", "rich"])
def prompt_kind(request: pytest.FixtureRequest) -> str:
    """Run the test with POML's prompts and with the reference, LlamaIndex's `RichPromptTemplate`."""
    return str(request.param)


@pytest.fixture
def render_count(prompt_kind: str) -> Callable[[int], int]:
    """Return how many of a number of renders have an event: all with POML's prompts, none with the reference's."""
    return lambda number: number if prompt_kind == "poml" else 0


@pytest.fixture
def prompt_factory(prompt_kind: str) -> Callable[..., PomlPromptTemplate | RichPromptTemplate]:
    """Make a prompt of the kind that the test runs with: ``prompt_factory(markup, jinja)``."""

    def make(markup: str, jinja: str, **options: Any) -> PomlPromptTemplate | RichPromptTemplate:
        if prompt_kind == "poml":
            return PomlPromptTemplate(markup, **options)
        return RichPromptTemplate(jinja, **options)

    return make


TEXTS = (
    "def area(r):\n    if r < 0:\n        raise ValueError\n    return 3.14 * r * r",
    "Step 1:\n\n    heat the oven & wait\n\nStep 2:  bake {40} minutes <gently>",
)


@pytest.fixture
def texts() -> tuple[str, ...]:
    """The texts of the nodes of `index`: indented, with several lines, braces and angle brackets."""
    return TEXTS


@pytest.fixture
def index() -> VectorStoreIndex:
    """A real index over two nodes, with a mock embedding: every query finds both."""
    nodes = [TextNode(id_=f"node-{number}", text=text) for number, text in enumerate(TEXTS, start=1)]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))


@pytest.fixture
def prompt() -> PomlPromptTemplate:
    """A prompt for the answer to a query."""
    return PomlPromptTemplate(QA, name="qa")


@pytest.fixture
def engine(
    index: VectorStoreIndex, scripted: Callable[..., ScriptedLLM], prompt: PomlPromptTemplate
) -> BaseQueryEngine:
    """A query engine with that prompt, whose model answers ``Fine.``."""
    return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt)


@pytest.fixture(autouse=True)
def llama_index_globals(request: pytest.FixtureRequest) -> Iterator[None]:
    """Restore LlamaIndex's settings and the root dispatcher's handlers; no default model is set."""
    if not inspect.iscoroutinefunction(request.function):
        # Else LlamaIndex's asyncio_run (0.14.25) makes a loop in the main thread and never closes it.
        asyncio.set_event_loop(None)
    settings, root = copy(vars(Settings)), get_dispatcher()
    events, spans = list(root.event_handlers), list(root.span_handlers)
    Settings.llm = ScriptedLLM.of(AssertionError("Settings' model was called"))
    Settings.embed_model = MockEmbedding(embed_dim=4)
    yield
    vars(Settings).clear()
    vars(Settings).update(settings)
    root.event_handlers, root.span_handlers = events, spans


class _RenderRecorder(BaseEventHandler):
    events: list[PomlRenderEvent] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, PomlRenderEvent):
            self.events.append(event)


@pytest.fixture
def renders() -> list[PomlRenderEvent]:
    """The event of each render, in order, as any event handler at the root dispatcher receives it."""
    recorder = _RenderRecorder()
    get_dispatcher().add_event_handler(recorder)
    return recorder.events
