"""LangChain and LlamaIndex with the same face, so that one test holds what both must do."""

from __future__ import annotations

import asyncio
import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

Answer = str | Callable[[list[str]], str]  # what a model answers: a text, or a function of its messages' texts


class Framework(ABC):
    """A framework's prompts and handler, and how its users run them.

    Attributes:
        prompts: Its `PomlPromptTemplate`.
        handler: Its `PomlCallbackHandler`.
    """

    prompts: Any
    handler: Any

    @abstractmethod
    def messages(self, prompt: Any, **variables: Any) -> list[str]:
        """Render; gives the text of each message."""

    @abstractmethod
    async def amessages(self, prompt: Any, **variables: Any) -> list[str]:
        """Render on an event loop."""

    @abstractmethod
    def run(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Give the prompt to a model as its users do; gives the model's answer.

        A handler of its own traces it; the one that is given, or none where that is False.
        """

    @abstractmethod
    async def arun(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Do that on an event loop."""

    @abstractmethod
    def stream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        """Do that with a stream, to its end."""

    @abstractmethod
    def client(self, name: str, url: str) -> Any:
        """Make the real client of a provider, for a server at `url`; skip the test where it is not installed."""

    @abstractmethod
    def send(self, prompt: Any, client: Any, *, bound: bool = False, **variables: Any) -> str:
        """Send the prompt to a real client, in a chain or bound; gives the answer."""

    @abstractmethod
    def streams(self, prompt: Any, client: Any, **variables: Any) -> list[str]:
        """Send it for a stream, and for one on an event loop; gives both answers."""

    @abstractmethod
    def call_of_tool(self, prompt: Any, client: Any, **variables: Any) -> Any:
        """Send it; gives the model's message, which calls a tool."""

    @abstractmethod
    def tool_result(self, text: str, call_id: str) -> Any:
        """Make the message of a tool's result."""

    @abstractmethod
    def send_messages(self, client: Any, question: str, *messages: Any) -> None:
        """Send a question and messages to the client, without a prompt."""

    @abstractmethod
    def autolog(self, **options: Any) -> None:
        """Switch pomlflow's autolog of this framework alone."""

    @abstractmethod
    def mlflow_autolog(self, *, disable: bool = False) -> None:
        """Switch MLflow's autolog of this framework."""

    @abstractmethod
    def hooked(self) -> list[Any]:
        """What is registered with the framework in the whole process."""

    @abstractmethod
    def partial(self, prompt: Any, **variables: Any) -> Any:
        """Give some of the variables."""

    @abstractmethod
    def variables(self, prompt: Any) -> list[str]:
        """The variables that the framework sees."""

    @abstractmethod
    def copies(self, prompt: Any) -> list[Any]:
        """Copy a prompt in every way that leaves it equal."""

    @abstractmethod
    def history(self) -> list[Any]:
        """Messages with a tool's call and result, which POML's own messages cannot hold."""

    def text(self, prompt: Any, **variables: Any) -> str:
        """Render to one text."""
        return "\n".join(self.messages(prompt, **variables))


class LangChain(Framework):
    """Chains of a prompt and a model; the handler is in the config."""

    def __init__(self) -> None:
        from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

        self.prompts, self.handler = PomlPromptTemplate, PomlCallbackHandler

    def messages(self, prompt: Any, **variables: Any) -> list[str]:
        return _texts(prompt.invoke(variables).to_messages())

    async def amessages(self, prompt: Any, **variables: Any) -> list[str]:
        return _texts((await prompt.ainvoke(variables)).to_messages())

    def run(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        return str(self._chain(prompt, answer).invoke(variables, self._config(handler)))

    async def arun(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        return str(await self._chain(prompt, answer).ainvoke(variables, self._config(handler)))

    def stream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        return "".join(self._chain(prompt, answer).stream(variables, self._config(handler)))

    def partial(self, prompt: Any, **variables: Any) -> Any:
        return prompt.partial(**variables)

    def variables(self, prompt: Any) -> list[str]:
        return list(prompt.input_variables)

    def copies(self, prompt: Any) -> list[Any]:
        return [copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt)), prompt.model_copy()]

    def history(self) -> list[Any]:
        from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

        call = {"id": "c1", "name": "look", "args": {"at": "sea", "deep": [1, None]}}
        return [
            HumanMessage("Look."),
            AIMessage("", tool_calls=[call]),
            ToolMessage("grey", tool_call_id="c1", name="look"),
            AIMessage([{"type": "text", "text": "Grey."}], id="a1", name="mate"),
        ]

    def client(self, name: str, url: str) -> Any:
        if name == "openai":
            module = pytest.importorskip("langchain_openai")
            return module.ChatOpenAI(model="gpt-4o", base_url=f"{url}/v1", api_key="none", max_retries=0)
        module = pytest.importorskip("langchain_anthropic")
        return module.ChatAnthropic(model="claude-test", base_url=url, api_key="none", max_retries=0)

    def send(self, prompt: Any, client: Any, *, bound: bool = False, **variables: Any) -> str:
        chain = prompt.bind_to(client) if bound else prompt | client
        return str(chain.invoke(variables).text)

    def streams(self, prompt: Any, client: Any, **variables: Any) -> list[str]:
        async def stream() -> str:
            return "".join([chunk.text async for chunk in (prompt | client).astream(variables)])

        return ["".join(chunk.text for chunk in (prompt | client).stream(variables)), asyncio.run(stream())]

    def call_of_tool(self, prompt: Any, client: Any, **variables: Any) -> Any:
        return (prompt | client).invoke(variables)

    def tool_result(self, text: str, call_id: str) -> Any:
        from langchain_core.messages import ToolMessage

        return ToolMessage(text, tool_call_id=call_id)

    def send_messages(self, client: Any, question: str, *messages: Any) -> None:
        client.invoke([("human", question), *messages])

    def autolog(self, **options: Any) -> None:
        import pomlflow.langchain

        pomlflow.langchain.autolog(**options)

    def mlflow_autolog(self, *, disable: bool = False) -> None:
        import mlflow

        mlflow.langchain.autolog(disable=disable, silent=True)

    def hooked(self) -> list[Any]:
        from langchain_core.tracers import context

        return list(context._configure_hooks)

    def _config(self, handler: Any) -> Any:
        return {} if handler is False else {"callbacks": [handler or self.handler()]}

    @staticmethod
    def _chain(prompt: Any, answer: Answer) -> Any:
        from langchain_core.language_models.chat_models import SimpleChatModel
        from langchain_core.output_parsers import StrOutputParser

        class Scripted(SimpleChatModel):
            @property
            def _llm_type(self) -> str:
                return "scripted"

            def _call(self, messages: Any, *_: Any, **__: Any) -> str:
                return _answered(answer, messages)

        return prompt | Scripted() | StrOutputParser()


class LlamaIndex(Framework):
    """`LLM.predict` within the handler."""

    def __init__(self) -> None:
        from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

        self.prompts, self.handler = PomlPromptTemplate, PomlCallbackHandler

    def messages(self, prompt: Any, **variables: Any) -> list[str]:
        return _texts(prompt.format_messages(**variables))

    async def amessages(self, prompt: Any, **variables: Any) -> list[str]:
        return _texts(await prompt.aformat_messages(**variables))

    def run(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        with self._handler(handler):
            return str(self._model(answer).predict(prompt, **variables))

    async def arun(self, prompt: Any, answer: Answer = "the answer", *, handler: Any = None, **variables: Any) -> str:
        with self._handler(handler):
            return str(await self._model(answer).apredict(prompt, **variables))

    def stream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        with self._handler(handler):
            return "".join(self._model(answer).stream(prompt, **variables))

    def partial(self, prompt: Any, **variables: Any) -> Any:
        return prompt.partial_format(**variables)

    def variables(self, prompt: Any) -> list[str]:
        return list(prompt.template_vars)

    def copies(self, prompt: Any) -> list[Any]:
        return [copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt)), prompt.model_copy()]

    def history(self) -> list[Any]:
        from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock

        call = ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"at": "sea", "deep": [1, None]})
        return [
            ChatMessage(role="user", content="Look."),
            ChatMessage(role="assistant", blocks=[call]),
            ChatMessage(role="tool", content="grey", additional_kwargs={"tool_call_id": "c1", "name": "look"}),
            ChatMessage(role="assistant", content="Grey."),
        ]

    def client(self, name: str, url: str) -> Any:
        if name == "anthropic":
            module = pytest.importorskip("llama_index.llms.anthropic")
            return module.Anthropic(model="claude-sonnet-4-5", base_url=url, api_key="none", max_retries=0)
        options: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
        if name == "openai":
            return pytest.importorskip("llama_index.llms.openai").OpenAI(model="gpt-4o", **options)
        options |= {"is_chat_model": True, "is_function_calling_model": True}
        return pytest.importorskip("llama_index.llms.openai_like").OpenAILike(model="own", **options)

    def send(self, prompt: Any, client: Any, *, bound: bool = False, **variables: Any) -> str:
        if bound:
            return str(prompt.bind_to(client).predict(**variables))
        return str(client.predict(prompt, **variables))

    def streams(self, prompt: Any, client: Any, **variables: Any) -> list[str]:
        bound = prompt.bind_to(client)

        async def stream() -> str:
            return "".join([str(piece.delta) async for piece in await bound.astream_chat(**variables)])

        return ["".join(str(piece.delta) for piece in bound.stream_chat(**variables)), asyncio.run(stream())]

    def call_of_tool(self, prompt: Any, client: Any, **variables: Any) -> Any:
        return prompt.bind_to(client).chat(**variables).message

    def tool_result(self, text: str, call_id: str) -> Any:
        from llama_index.core.base.llms.types import ChatMessage

        return ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": call_id})

    def send_messages(self, client: Any, question: str, *messages: Any) -> None:
        from llama_index.core.base.llms.types import ChatMessage

        client.chat([ChatMessage(question), *messages])

    def autolog(self, **options: Any) -> None:
        import pomlflow.llama_index

        pomlflow.llama_index.autolog(**options)

    def mlflow_autolog(self, *, disable: bool = False) -> None:
        import mlflow

        mlflow.llama_index.autolog(disable=disable, silent=True)

    def hooked(self) -> list[Any]:
        from llama_index.core.instrumentation import get_dispatcher

        root = get_dispatcher()
        return [*root.event_handlers, *root.span_handlers]

    def _handler(self, handler: Any) -> Any:
        return nullcontext() if handler is False else handler or self.handler()

    @staticmethod
    def _model(answer: Answer) -> Any:
        from tests.llama_index.conftest import ScriptedLLM

        return ScriptedLLM.of(lambda messages: _answered(answer, messages))


def _texts(messages: Sequence[Any]) -> list[str]:
    return [str(message.content) for message in messages]


def _answered(answer: Answer, messages: Sequence[Any]) -> str:
    return answer if isinstance(answer, str) else answer(_texts(messages))
