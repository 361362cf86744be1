"""Control flow of LangGraph is no error: interrupts, resumes, commands to a parent graph, handoffs, pauses."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import InjectedToolCallId, tool
from mlflow.entities import Trace
from tests.langchain.prompts import Agent
from tests.langchain.trees import GIVEN, greeting, tree_of, trees
from typing_extensions import TypedDict

from pomlflow.langchain import PomlCallbackHandler

graphs = pytest.importorskip("langgraph.graph")
types = pytest.importorskip("langgraph.types")
func = pytest.importorskip("langgraph.func")
memory = pytest.importorskip("langgraph.checkpoint.memory")
agents = pytest.importorskip("langchain.agents")
middleware = pytest.importorskip("langchain.agents.middleware")

pytestmark = pytest.mark.usefixtures("sync_export")
Fetch = Callable[[], list[Trace]]
Pausing = tuple[Any, Any]  # a graph that pauses for a person, and its input


class State(TypedDict, total=False):
    name: str
    answer: str


@pytest.fixture
def config() -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler(register=False)], "configurable": {"thread_id": "1"}}


def graph(**nodes: Any) -> Any:
    """A graph of one node after the other."""
    made = graphs.StateGraph(State)
    before = graphs.START
    for name, node in nodes.items():
        made.add_node(name, node)
        made.add_edge(before, name)
        before = name
    return made


def ask(state: State) -> State:
    return {"answer": types.interrupt("Sure?")}


def unchanged(state: State) -> State:
    return state


def errors(fetch: Fetch) -> list[str]:
    """The names of all spans that are errors, that have not ended, or that hold an exception."""
    spans = [span for trace in fetch() for span in trace.data.spans]
    return [
        span.name
        for span in spans
        if span.status.status_code.value != "OK" or any(event.name == "exception" for event in span.events)
    ]


def in_a_node() -> Pausing:
    return graph(ask=ask).compile(checkpointer=memory.InMemorySaver()), GIVEN


def in_a_subgraph_of_a_subgraph() -> Pausing:
    inner = graph(middle=graph(ask=ask).compile(), after=unchanged).compile()
    return graph(before=unchanged, inner=inner).compile(checkpointer=memory.InMemorySaver()), GIVEN


def in_a_graph_that_a_node_calls() -> Pausing:
    inner = graph(ask=ask).compile()

    def call(state: State) -> Any:
        return inner.invoke(state)

    return graph(call=call).compile(checkpointer=memory.InMemorySaver()), GIVEN


def in_a_chain_that_a_node_calls() -> Pausing:
    chain = RunnableLambda(ask) | RunnableLambda(unchanged)

    def call(state: State) -> Any:
        return chain.invoke(state)

    return graph(call=call).compile(checkpointer=memory.InMemorySaver()), GIVEN


def in_two_nodes_at_once() -> Pausing:
    made = graphs.StateGraph(State)
    for key in ("name", "answer"):
        made.add_node(f"ask {key}", lambda state, key=key: {key: types.interrupt("Sure?")})
        made.add_edge(graphs.START, f"ask {key}")
    return made.compile(checkpointer=memory.InMemorySaver()), GIVEN


def in_a_node_that_is_retried() -> Pausing:
    made = graphs.StateGraph(State)
    made.add_node("ask", ask, retry_policy=types.RetryPolicy())
    made.add_edge(graphs.START, "ask")
    return made.compile(checkpointer=memory.InMemorySaver()), GIVEN


def before_a_node() -> Pausing:
    made = graph(one=unchanged, two=unchanged)
    return made.compile(checkpointer=memory.InMemorySaver(), interrupt_before=["two"]), GIVEN


def in_a_task_of_the_functional_interface() -> Pausing:
    step = func.task(lambda given: types.interrupt("Sure?"), name="step")
    flow = func.entrypoint(checkpointer=memory.InMemorySaver())(lambda given: step(given).result())
    return flow, "Ada"


def in_a_tool_of_an_agent() -> Pausing:
    @tool
    def pay(amount: int) -> str:
        """Pay."""
        return str(types.interrupt(f"Pay {amount}?"))

    return _agent(pay), {"messages": [("user", "Pay 5")]}


def by_middleware() -> Pausing:
    @tool
    def pay(amount: int) -> str:
        """Pay."""
        return f"Paid {amount}"

    person = middleware.HumanInTheLoopMiddleware(interrupt_on={"pay": True})
    return _agent(pay, middleware=[person]), {"messages": [("user", "Pay 5")]}


def _agent(pay: Any, **options: Any) -> Any:
    call = AIMessage("", tool_calls=[{"id": "1", "name": "pay", "args": {"amount": 5}}])
    return agents.create_agent(Agent(answers=[call, "Done."]), [pay], checkpointer=memory.InMemorySaver(), **options)


PAUSES = [
    in_a_node,
    in_a_subgraph_of_a_subgraph,
    in_a_graph_that_a_node_calls,
    in_a_chain_that_a_node_calls,
    in_two_nodes_at_once,
    in_a_node_that_is_retried,
    before_a_node,
    in_a_task_of_the_functional_interface,
    in_a_tool_of_an_agent,
    by_middleware,
]


def resume_input(made: Any, config: Any) -> Any:
    """The input that resumes a paused graph."""
    interrupts = made.get_state(config).interrupts
    if not interrupts:  # of `interrupt_before`
        return None
    value = {"decisions": [{"type": "approve"}]} if isinstance(interrupts[0].value, dict) else "yes"
    return types.Command(resume={one.id: value for one in interrupts})


@pytest.mark.parametrize("pause", PAUSES)
def test_an_interrupt_and_its_resume_are_no_errors(
    pause: Callable[[], Pausing], config: RunnableConfig, stored_traces: Fetch
) -> None:
    made, given = pause()
    made.invoke(given, config)
    list(made.stream(resume_input(made, config), config))
    assert not made.get_state(config).next
    assert len(stored_traces()) == 2
    assert errors(stored_traces) == []


@pytest.mark.parametrize("pause", [in_a_node, in_a_subgraph_of_a_subgraph, in_a_tool_of_an_agent, by_middleware])
async def test_an_interrupt_of_an_async_graph_is_no_error(
    pause: Callable[[], Pausing], config: RunnableConfig, stored_traces: Fetch
) -> None:
    made, given = pause()
    [_ async for _ in made.astream(given, config, subgraphs=True, stream_mode="messages")]
    [_ async for _ in made.astream_events(resume_input(made, config), config, version="v2")]
    assert not made.get_state(config).next
    assert len(stored_traces()) == 2
    assert errors(stored_traces) == []


def test_what_runs_before_an_interrupt_is_in_its_trace(config: RunnableConfig, stored_traces: Fetch) -> None:
    def greet_and_ask(state: State) -> State:
        greeting().invoke({"name": state["name"]})
        return ask(state)

    made = graph(ask=greet_and_ask).compile(checkpointer=memory.InMemorySaver())
    made.invoke(GIVEN, config)
    assert made.invoke(types.Command(resume="yes"), config)["answer"] == "yes"
    step = tree_of("greet_and_ask CHAIN", "greet CHAIN\n  poml greet PROMPT\n").replace("greet_and_ask", "ask")
    assert trees(stored_traces) == [tree_of("LangGraph CHAIN", step)] * 2


def test_a_node_that_fails_after_its_resume_is_an_error(config: RunnableConfig, stored_traces: Fetch) -> None:
    def fail(state: State) -> State:
        raise ValueError(types.interrupt("Sure?"))

    made = graph(fail=fail).compile(checkpointer=memory.InMemorySaver())
    made.invoke(GIVEN, config)
    with pytest.raises(ValueError, match="yes"):
        made.invoke(types.Command(resume="yes"), config)
    assert errors(stored_traces) == ["LangGraph", "fail"]


def test_a_command_to_the_parent_graph_is_no_error(config: RunnableConfig, stored_traces: Fetch) -> None:
    def hand_over(state: State) -> Any:
        return types.Command(graph=types.Command.PARENT, goto="other", update={"answer": "handed over"})

    outer = graphs.StateGraph(State)
    outer.add_node("inner", graph(hand_over=hand_over).compile(), destinations=("other",))
    outer.add_node("other", lambda state: {"answer": state["answer"] + "!"})
    outer.add_edge(graphs.START, "inner")
    assert outer.compile().invoke(GIVEN, config)["answer"] == "handed over!"
    assert len(stored_traces()) == 1
    assert errors(stored_traces) == []


@pytest.fixture(params=["swarm", "supervisor"])
def crew(request: pytest.FixtureRequest) -> Any:
    """Two agents, of which the first hands over to the second by a tool; a supervisor continues afterwards."""

    @tool
    def hand_over(tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Hand over."""
        message = ToolMessage("handed over", tool_call_id=tool_call_id)
        return types.Command(goto="second", graph=types.Command.PARENT, update={"messages": [message]})

    call = AIMessage("", tool_calls=[{"id": "1", "name": "hand_over", "args": {}}])
    made = graphs.StateGraph(graphs.MessagesState)
    first = agents.create_agent(Agent(answers=[call, "All done."]), [hand_over], name="first")
    made.add_node("first", first, destinations=("second",))
    made.add_node("second", agents.create_agent(Agent(answers=["Done."]), [], name="second"))
    made.add_edge(graphs.START, "first")
    if request.param == "supervisor":
        made.add_edge("second", "first")
    return made.compile()


def test_a_handoff_is_no_error(crew: Any, config: RunnableConfig, stored_traces: Fetch) -> None:
    assert crew.invoke({"messages": [("user", "Go")]}, config)["messages"][-1].content in ("Done.", "All done.")
    assert len(stored_traces()) == 1
    assert errors(stored_traces) == []


async def test_a_handoff_of_async_agents_is_no_error(crew: Any, config: RunnableConfig, stored_traces: Fetch) -> None:
    [_ async for _ in crew.astream_events({"messages": [("user", "Go")]}, config, version="v2")]
    assert len(stored_traces()) == 1
    assert errors(stored_traces) == []


class Ending:
    """A callable without a name of its own."""

    def __call__(self, state: State) -> str:
        return str(graphs.END)


@pytest.mark.parametrize(
    "edge",
    [
        lambda state: [types.Send("greet", state)],
        functools.partial(lambda state, to: to, to="greet"),
        RunnableLambda(lambda state: "greet", name=""),
        Ending(),
    ],
    ids=["lambda", "partial", "runnable", "object"],
)
def test_an_anonymous_edge_has_a_name_and_gives_no_warning(
    edge: Any, config: RunnableConfig, stored_traces: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    made = graphs.StateGraph(State)
    made.add_node("before", lambda state: state)
    made.add_node("greet", functools.partial(lambda state, answer: {"answer": answer}, answer="Hi"))
    made.add_edge(graphs.START, "before")
    made.add_conditional_edges("before", edge, ["greet", graphs.END])
    with caplog.at_level(logging.WARNING):
        made.compile().invoke(GIVEN, config)
    assert [record.getMessage() for record in caplog.records] == []
    (trace,) = stored_traces()
    assert all(span.name and span.name != "None" for span in trace.data.spans)
