"""What ends a run without being an error, what is cancelled, and what goes on after its trace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from mlflow.entities import Trace
from tests.langchain.prompts import Model
from tests.langchain.trees import CHAIN, GIVEN, QUIET, chain, greeting, tree, trees, under
from typing_extensions import TypedDict

from pomlflow.langchain import PomlCallbackHandler

graphs = pytest.importorskip("langgraph.graph")
types = pytest.importorskip("langgraph.types")
memory = pytest.importorskip("langgraph.checkpoint.memory")
agents = pytest.importorskip("langchain.agents")

pytestmark = QUIET
Fetch = Callable[[], list[Trace]]


class State(TypedDict, total=False):
    name: str
    answer: str


@pytest.fixture(autouse=True)
def _stored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")


@pytest.fixture
def config() -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler(register=False)], "configurable": {"thread_id": "1"}}


def graph(**nodes: Any) -> Any:
    made = graphs.StateGraph(State)
    before = graphs.START
    for name, node in nodes.items():
        made.add_node(name, node)
        made.add_edge(before, name)
        before = name
    return made


def errors(fetch: Fetch) -> list[str]:
    """The names of all spans that are errors, and of all that hold an exception."""
    spans = [span for trace in fetch() for span in trace.data.spans]
    return [span.name for span in spans if span.status.status_code.value != "OK" or span.events]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_an_interrupt_and_its_resume_are_no_errors(
    mode: str, config: RunnableConfig, stored_traces: Fetch
) -> None:
    def ask(state: State) -> State:
        greeting().invoke({"name": state["name"]})
        return {"answer": types.interrupt("Sure?")}

    made = graph(ask=ask).compile(checkpointer=memory.InMemorySaver())
    for value in (GIVEN, types.Command(resume="yes")):
        given: Any = value
        state = await made.ainvoke(given, config) if mode == "async" else made.invoke(given, config)
    assert state["answer"] == "yes"
    ask_span = under("ask CHAIN", "greet CHAIN\n  poml greet PROMPT\n")
    assert trees(stored_traces) == [under("LangGraph CHAIN", ask_span)] * 2
    assert errors(stored_traces) == []


def test_a_tool_that_waits_for_a_person_is_no_error(config: RunnableConfig, stored_traces: Fetch) -> None:
    @tool
    def pay(amount: int) -> str:
        """Pay."""
        return str(types.interrupt(f"Pay {amount}?"))

    call = AIMessage("", tool_calls=[{"id": "1", "name": "pay", "args": {"amount": 5}}])
    agent = agents.create_agent(Model(answers=[call, "Done."]), [pay], checkpointer=memory.InMemorySaver())
    agent.invoke({"messages": [("user", "Pay 5")]}, config)
    assert errors(stored_traces) == []


def test_a_command_to_the_parent_graph_is_no_error(config: RunnableConfig, stored_traces: Fetch) -> None:
    def hand_over(state: State) -> Any:
        return types.Command(graph=types.Command.PARENT, goto="other", update={"answer": "handed over"})

    outer = graphs.StateGraph(State)
    outer.add_node("inner", graph(hand_over=hand_over).compile(), destinations=("other",))
    outer.add_node("other", lambda state: {"answer": state["answer"] + "!"})
    outer.add_edge(graphs.START, "inner")
    assert outer.compile().invoke(GIVEN, config)["answer"] == "handed over!"
    assert errors(stored_traces) == []


def test_an_anonymous_edge_has_a_name_and_gives_no_warning(
    config: RunnableConfig, stored_traces: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    made = graphs.StateGraph(State)
    made.add_node("greet", lambda state: {"answer": state["name"]})
    made.add_conditional_edges(graphs.START, lambda state: [types.Send("greet", state)], ["greet"])
    with caplog.at_level(logging.WARNING):
        made.compile().invoke(GIVEN, config)
    assert [record.getMessage() for record in caplog.records] == []
    (trace,) = stored_traces()
    assert all(span.name and span.name != "None" for span in trace.data.spans)


async def test_shielded_work_of_a_cancelled_call_is_in_its_trace_or_nowhere(
    config: RunnableConfig, stored_traces: Fetch
) -> None:
    started, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def late(given: Any) -> str:
        started.set()
        await go.wait()
        answer = await chain().ainvoke(given)
        done.set()
        return answer

    async def step(given: Any) -> Any:
        return await asyncio.shield((RunnableLambda(late) | StrOutputParser()).ainvoke(given))

    call = asyncio.ensure_future(RunnableLambda(step).ainvoke(GIVEN, config))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    await asyncio.wait_for(done.wait(), 30)
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - the shielded work's own tasks
        await asyncio.sleep(0)
    (trace,) = stored_traces()
    assert tree(trace) == under("step CHAIN ERROR", under("RunnableSequence CHAIN", "late CHAIN\n"))


async def test_siblings_of_a_part_that_failed_are_no_errors(config: RunnableConfig, stored_traces: Fetch) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def fail(given: Any) -> None:
        raise ValueError("broken")

    async def go_on(given: Any) -> str:
        await go.wait()
        done.set()
        return "fine"

    from langchain_core.runnables import RunnableParallel

    with pytest.raises(ValueError, match="broken"):
        await RunnableParallel(fail=RunnableLambda(fail), go_on=RunnableLambda(go_on)).ainvoke(GIVEN, config)
    go.set()
    await done.wait()
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - LangChain's own task around it
        await asyncio.sleep(0)
    (trace,) = stored_traces()
    assert tree(trace) == under("RunnableParallel<fail,go_on> CHAIN ERROR", "fail CHAIN ERROR\n", "go_on CHAIN\n")


async def test_a_model_that_is_cancelled_with_its_chain_is_an_error(
    config: RunnableConfig, stored_traces: Fetch
) -> None:
    called = asyncio.Event()

    class Stuck(FakeListChatModel):
        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            called.set()
            await asyncio.Event().wait()
            raise AssertionError

    call = asyncio.ensure_future((greeting() | Stuck(responses=["Hi"])).ainvoke(GIVEN, config))
    await called.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (trace,) = stored_traces()
    head = CHAIN.replace("RunnableSequence CHAIN", "RunnableSequence CHAIN ERROR")
    expected = head.replace("FakeListChatModel CHAT_MODEL", "Stuck CHAT_MODEL ERROR")
    assert tree(trace) == expected.replace("  StrOutputParser CHAIN\n", "")
