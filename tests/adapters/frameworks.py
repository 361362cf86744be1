"""One interface for LangChain and LlamaIndex, so that one test can run with both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from tests.adapters.framework import Answer, Framework

__all__ = ["Framework", "LangChain", "LlamaIndex"]


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

    async def astream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        stream = self._chain(prompt, answer).astream(variables, self._config(handler))
        return "".join([chunk async for chunk in stream])

    def batch(self, prompt: Any, count: int, *, handler: Any = None, **variables: Any) -> list[str]:
        return list(self._chain(prompt, "the answer").batch([variables] * count, self._config(handler)))

    async def abatch(self, prompt: Any, count: int, *, handler: Any = None, **variables: Any) -> list[str]:
        return list(await self._chain(prompt, "the answer").abatch([variables] * count, self._config(handler)))

    def run_attached(self, prompt: Any, handler: Any, *, everywhere: bool, **variables: Any) -> str:
        if everywhere:
            chain = self._chain(prompt, "the answer").with_config(callbacks=[handler])
        else:
            chain = self._chain(prompt, "the answer", callbacks=[handler])
        return str(chain.invoke(variables))

    def run_step(self, step: Callable[[str], str], handler: Any) -> list[list[str]]:
        from langchain_core.runnables import RunnableLambda

        runnable, config = RunnableLambda(step, name="step"), self._config(handler)
        runnable.invoke("Ada", config)
        runnable.batch(["Ada", "Bob"], config)
        return [["step CHAIN"]] * 3

    async def arun_step(self, step: Callable[[str], Awaitable[str]], handler: Any) -> list[list[str]]:
        from langchain_core.runnables import RunnableLambda

        runnable, config = RunnableLambda(step, name="step"), self._config(handler)
        await runnable.ainvoke("Ada", config)
        await runnable.abatch(["Ada", "Bob"], config)
        return [["step CHAIN"]] * 3

    def run_agent(self, tool: Callable[[str], str]) -> list[str]:
        agents = pytest.importorskip("langchain.agents")
        from langchain_core.messages import AIMessage
        from tests.langchain.prompts import Model

        call = {"name": tool.__name__, "args": {"name": "Ada"}, "id": "1"}
        model = Model(answers=[AIMessage("", tool_calls=[call]), AIMessage("Done.")])
        agents.create_agent(model, [tool]).invoke({"messages": [("user", "Greet Ada")]})
        return ["LangGraph CHAIN", "tools CHAIN", f"{tool.__name__} TOOL"]

    def partial(self, prompt: Any, **variables: Any) -> Any:
        return prompt.partial(**variables)

    def variables(self, prompt: Any) -> list[str]:
        return list(prompt.input_variables)

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

    def mlflow_autolog(self, *, disable: bool = False) -> None:
        import mlflow

        mlflow.langchain.autolog(disable=disable, silent=True)

    def render(self, prompt: Any, **variables: Any) -> Any:
        return prompt.invoke(variables)

    def hooked(self) -> list[Any]:
        from langchain_core.callbacks import CallbackManager

        return CallbackManager.configure().handlers

    def _config(self, handler: Any) -> Any:
        return {} if handler is False else {"callbacks": [handler or self.handler()]}

    @staticmethod
    def _chain(prompt: Any, answer: Answer, **options: Any) -> Any:
        from langchain_core.language_models.chat_models import SimpleChatModel
        from langchain_core.output_parsers import StrOutputParser

        class Scripted(SimpleChatModel):
            @property
            def _llm_type(self) -> str:
                return "scripted"

            def _call(self, messages: Any, *_: Any, **__: Any) -> str:
                return _answered(answer, messages)

        return prompt | Scripted(**options) | StrOutputParser()


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

    async def astream(self, prompt: Any, answer: str = "the answer", *, handler: Any = None, **variables: Any) -> str:
        with self._handler(handler):
            return "".join([text async for text in await self._model(answer).astream(prompt, **variables)])

    def run_attached(self, prompt: Any, handler: Any, *, everywhere: bool, **variables: Any) -> str:
        model = self._model("the answer")
        handler.attach(*([] if everywhere else [model]))
        try:
            return str(model.predict(prompt, **variables))
        finally:
            handler.detach()

    def run_step(self, step: Callable[[str], str], handler: Any) -> list[list[str]]:
        from llama_index.core.query_engine import CustomQueryEngine

        class Engine(CustomQueryEngine):
            def custom_query(self, query_str: str) -> str:
                return step(query_str)

        with self._handler(handler):
            Engine().query("Ada")
        return [["Engine.query CHAIN", "Engine.custom_query CHAIN"]]

    async def arun_step(self, step: Callable[[str], Awaitable[str]], handler: Any) -> list[list[str]]:
        from llama_index.core.query_engine import CustomQueryEngine

        class Engine(CustomQueryEngine):
            def custom_query(self, query_str: str) -> str:
                raise NotImplementedError

            async def acustom_query(self, query_str: str) -> str:
                return await step(query_str)

        with self._handler(handler):
            await Engine().aquery("Ada")
        return [["Engine.aquery CHAIN"]]

    def run_agent(self, tool: Callable[[str], str]) -> list[str]:
        from llama_index.core.agent.workflow import FunctionAgent
        from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
        from tests.llama_index.conftest import ScriptedLLM

        call = ToolCallBlock(tool_call_id="1", tool_name=tool.__name__, tool_kwargs={"name": "Ada"})
        llm = ScriptedLLM.of(ChatMessage(role="assistant", blocks=[call]), "Done.")

        async def run() -> None:
            await FunctionAgent(tools=[tool], llm=llm).run("Greet Ada")

        asyncio.run(run())
        return ["FunctionTool.acall TOOL"]

    def partial(self, prompt: Any, **variables: Any) -> Any:
        return prompt.partial_format(**variables)

    def variables(self, prompt: Any) -> list[str]:
        return list(prompt.template_vars)

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

    def mlflow_autolog(self, *, disable: bool = False) -> None:
        import mlflow

        mlflow.llama_index.autolog(disable=disable, silent=True)

    def render(self, prompt: Any, **variables: Any) -> Any:
        return prompt.render(variables)

    def hooked(self) -> list[Any]:
        from llama_index.core.instrumentation import get_dispatcher

        root = get_dispatcher()
        hooks = [*root.event_handlers, *root.span_handlers]
        return [hook for hook in hooks if not hook.class_name().startswith("Poml")]  # ours stay, once added

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
