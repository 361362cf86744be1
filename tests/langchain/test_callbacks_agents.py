"""LangGraph's graphs and LangChain's agents with tools, traced whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from mlflow.entities import Trace
from tests.langchain.prompts import Model
from tests.langchain.trees import CHAIN, GIVEN, atraced, chain, greeting, traced, tree_of, trees
from typing_extensions import TypedDict

from pomlflow.langchain import PomlCallbackHandler

graphs = pytest.importorskip("langgraph.graph")
agents = pytest.importorskip("langchain.agents")

Fetch = Callable[[], list[Trace]]

AGENT = """\
LangGraph CHAIN
  model CHAIN
    Model CHAT_MODEL
  model CHAIN
    Model CHAT_MODEL
  tools CHAIN
    greet TOOL
      poml greet PROMPT
      traced UNKNOWN
"""
GRAPH = tree_of(
    "LangGraph CHAIN", tree_of("first CHAIN", CHAIN), "second CHAIN\n  poml greet PROMPT\n  traced UNKNOWN\n"
)
QUESTION = {"messages": [("user", "Greet Ada")]}


@tool
def greet(name: str) -> str:
    """Greet somebody."""
    traced(name)
    return str(greeting().format_messages(name=name)[0].content)


@tool("greet")
async def agreet(name: str) -> str:
    """Greet somebody."""
    await atraced(name)
    return str((await greeting().aformat_messages(name=name))[0].content)


class State(TypedDict):
    name: str


def first(state: State, config: RunnableConfig) -> None:
    chain().invoke(state, config)


def second(state: State) -> None:
    traced(greeting().format_messages(**state))


async def afirst(state: State, config: RunnableConfig) -> None:
    await chain().ainvoke(state, config)


async def asecond(state: State) -> None:
    await atraced(await greeting().aformat_messages(**state))


@pytest.fixture(autouse=True, params=[False, True], ids=["handler alone", "with autolog"])
def autolog(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.langchain.autolog(disable=not request.param, silent=True)
    yield
    mlflow.langchain.autolog(disable=True, silent=True)


@pytest.fixture
def config() -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler(register=False)]}


def agent(tool: Any) -> Any:
    call = AIMessage("", tool_calls=[{"id": "1", "name": "greet", "args": {"name": "Ada"}}])
    return agents.create_agent(Model(answers=[call, "Done."]), [tool])


def graph(one: Any, two: Any) -> Any:
    made = graphs.StateGraph(State)
    made.add_node("first", one)
    made.add_node("second", two)
    made.add_edge(graphs.START, "first")
    made.add_edge("first", "second")
    made.add_edge("second", graphs.END)
    return made.compile()


def test_an_agent_is_traced_whole_and_so_is_the_next_chain(config: RunnableConfig, stored_traces: Fetch) -> None:
    assert agent(greet).invoke(QUESTION, config)["messages"][-1].content == "Done."
    chain().invoke(GIVEN, config)
    assert trees(stored_traces) == [AGENT, CHAIN]


async def test_an_async_agent_is_traced_whole_and_so_is_the_next_chain(
    config: RunnableConfig, stored_traces: Fetch
) -> None:
    await agent(agreet).ainvoke(QUESTION, config)
    await chain().ainvoke(GIVEN, config)
    assert trees(stored_traces) == [AGENT, CHAIN]


def test_the_reader_of_an_agents_stream_is_no_part_of_its_trace(config: RunnableConfig, stored_traces: Fetch) -> None:
    for chunk in agent(greet).stream(QUESTION, config):
        traced(chunk)
    assert trees(stored_traces) == [AGENT, *["traced UNKNOWN\n"] * 3]


async def test_agents_at_once_have_a_trace_each(config: RunnableConfig, stored_traces: Fetch) -> None:
    await asyncio.gather(*(agent(agreet).ainvoke(QUESTION, config) for _ in range(3)))
    assert trees(stored_traces) == [AGENT] * 3


async def test_events_of_an_agent_leave_one_trace(config: RunnableConfig, stored_traces: Fetch) -> None:
    [_ async for _ in agent(agreet).astream_events(QUESTION, config, version="v2")]
    assert trees(stored_traces) == [AGENT]


def test_a_graph_is_traced_whole_also_in_a_batch(config: RunnableConfig, stored_traces: Fetch) -> None:
    graph(first, second).invoke(GIVEN, config)
    graph(first, second).batch([GIVEN] * 2, config)
    assert trees(stored_traces) == [GRAPH] * 3


async def test_an_async_graph_is_traced_whole(config: RunnableConfig, stored_traces: Fetch) -> None:
    await graph(afirst, asecond).ainvoke(GIVEN, config)
    [_ async for _ in graph(afirst, asecond).astream(GIVEN, config)]
    assert trees(stored_traces) == [GRAPH] * 2


def test_a_handler_set_on_the_compiled_graph_traces_each_call(config: RunnableConfig, stored_traces: Fetch) -> None:
    bound = graph(first, second).with_config(config)
    bound.invoke(GIVEN)
    bound.invoke(GIVEN)
    assert trees(stored_traces) == [GRAPH] * 2


def test_the_thread_of_a_graph_is_the_session_of_its_trace(config: RunnableConfig, stored_traces: Fetch) -> None:
    graph(first, second).invoke(GIVEN, {**config, "configurable": {"thread_id": "thread-7"}})
    (trace,) = stored_traces()
    assert trace.info.trace_metadata["mlflow.trace.session"] == "thread-7"
