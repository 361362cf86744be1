"""Cancelled and shielded work: one trace; a part is an error only if it failed or was cancelled itself."""

from __future__ import annotations

import asyncio
import gc
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from mlflow.entities import Trace
from tests.langchain.trees import CHAIN, GIVEN, Broken, chain, greeting, tree, tree_of, trees, wait_for_traces
from typing_extensions import TypedDict

from pomlflow.langchain import PomlCallbackHandler

graphs = pytest.importorskip("langgraph.graph")

pytestmark = pytest.mark.usefixtures("sync_export")
Fetch = Callable[[], list[Trace]]


class State(TypedDict, total=False):
    name: str
    answer: str


class Endless(Broken):
    """A model that streams two chunks and then nothing more, and answers nothing without a stream."""

    async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
        await asyncio.Event().wait()
        raise AssertionError

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for text in ("one", "two"):
            chunk = ChatGenerationChunk(message=AIMessageChunk(text))
            if run_manager is not None:
                await run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk
        await asyncio.Event().wait()


@pytest.fixture
def config() -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler(register=False)]}


def endless() -> Runnable[Any, Any]:
    return greeting() | Endless()


def graph(node: Any) -> Any:
    """A graph of one node."""
    made = graphs.StateGraph(State)
    made.add_node("node", node)
    made.add_edge(graphs.START, "node")
    return made.compile()


async def call_endless(state: Any) -> Any:
    return {"answer": await endless().ainvoke(state)}


def nested() -> Any:
    return graph(graph(call_endless))


async def cancel(reading: AsyncIterator[Any]) -> None:
    """Read a stream in a task, and cancel that after the first chunk of the model."""
    first = asyncio.Event()

    async def read() -> None:
        async for chunk in reading:
            if _is_a_chunk(chunk):
                first.set()

    reader = asyncio.ensure_future(read())
    await first.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def leave(reading: AsyncIterator[Any]) -> None:
    """Read a stream up to the first chunk of the model."""
    async for chunk in reading:
        if _is_a_chunk(chunk):
            break
    del reading


def _is_a_chunk(chunk: Any) -> bool:
    return "AIMessageChunk" in repr(chunk)


async def wait_for_other_tasks() -> None:
    """Wait for the other tasks."""
    gc.collect()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 30)


def streams(config: RunnableConfig) -> dict[str, Callable[[], AsyncIterator[Any]]]:
    messages: Any = {"stream_mode": "messages"}
    return {
        "a chain": lambda: endless().astream(GIVEN, config),
        "a graph": lambda: graph(call_endless).astream(GIVEN, config, **messages),
        "a subgraph": lambda: nested().astream(GIVEN, config, subgraphs=True, **messages),
        "events of a chain": lambda: endless().astream_events(GIVEN, config, version="v2"),
        "events of a graph": lambda: nested().astream_events(GIVEN, config, version="v2"),
    }


STREAMS = list(streams({}))


@pytest.mark.parametrize("stream", STREAMS)
async def test_abandoning_a_stream_is_not_an_error(stream: str, config: RunnableConfig, stored_traces: Fetch) -> None:
    await leave(streams(config)[stream]())
    await wait_for_traces(1, stored_traces)
    (trace,) = stored_traces()
    assert "  Endless CHAT_MODEL\n" in tree(trace)
    assert "ERROR" not in tree(trace)
    assert not [event for span in trace.data.spans for event in span.events if event.name == "exception"]
    await chain().ainvoke(GIVEN, config)
    assert len(stored_traces()) == 2


@pytest.mark.parametrize("stream", STREAMS)
def test_a_program_that_ends_after_abandoning_a_stream_gives_no_error(
    stream: str, config: RunnableConfig, stored_traces: Fetch
) -> None:
    """asyncio.run cancels what is left of the stream."""
    asyncio.run(leave(streams(config)[stream]()))
    gc.collect()
    (trace,) = stored_traces()
    assert "ERROR" not in tree(trace)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_program_whose_reader_is_cancelled_makes_errors(
    stream: str, config: RunnableConfig, stored_traces: Fetch
) -> None:
    asyncio.run(cancel(streams(config)[stream]()))
    (trace,) = stored_traces()
    assert trace.info.state.value == "ERROR"


@pytest.mark.parametrize("stream", STREAMS)
async def test_cancelling_a_reader_marks_running_spans_as_errors(
    stream: str, config: RunnableConfig, stored_traces: Fetch
) -> None:
    await cancel(streams(config)[stream]())
    await wait_for_traces(1, stored_traces)
    (trace,) = stored_traces()
    assert trace.info.state.value == "ERROR"
    lines = [line.strip() for line in tree(trace).splitlines()]
    assert [line for line in lines if not line.endswith("ERROR")] == ["greet CHAIN", "poml greet PROMPT"]
    assert {span.status.description for span in trace.data.spans} == {"", "CancelledError"}
    exceptions = [event for span in trace.data.spans for event in span.events if event.name == "exception"]
    assert [event.attributes["exception.type"] for event in exceptions] == ["CancelledError"] * (len(lines) - 2)


async def test_a_part_that_times_out_is_an_error_and_its_caller_is_none(
    config: RunnableConfig, stored_traces: Fetch
) -> None:
    async def step(given: Any) -> str:
        with suppress(TimeoutError):
            await asyncio.wait_for(endless().ainvoke(given), 0.05)
        return "no answer"

    await RunnableLambda(step).ainvoke(GIVEN, config)
    (shown,) = trees(stored_traces)
    assert shown.startswith("step CHAIN\n  RunnableSequence CHAIN ERROR\n")


@pytest.mark.parametrize("late_start", [False, True], ids=["traced work", "plain work"])
@pytest.mark.parametrize("callbacks", [False, True], ids=["inherited", "its own callbacks"])
async def test_shielded_work_of_a_cancelled_call_has_no_trace_of_its_own(
    late_start: bool, callbacks: bool, config: RunnableConfig, stored_traces: Fetch
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def late(given: Any) -> str:
        started.set()
        await go.wait()
        return await chain().ainvoke(given, config if callbacks else None)

    async def step(given: Any) -> Any:
        work = late(given) if late_start else RunnableLambda(late).ainvoke(given)
        return await asyncio.shield(work)

    call = asyncio.ensure_future(RunnableLambda(step).ainvoke(GIVEN, config))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    await wait_for_other_tasks()
    assert trees(stored_traces) == ["step CHAIN ERROR\n" + ("" if late_start else "  late CHAIN\n")]


@pytest.mark.parametrize("leaves", [leave, cancel])
async def test_shielded_work_of_a_graph_whose_client_disconnects_is_no_error(
    leaves: Any, config: RunnableConfig, stored_traces: Fetch
) -> None:
    go = asyncio.Event()

    async def work(state: State) -> str:
        answer = await chain().ainvoke(state)
        await go.wait()
        return await (greeting() | RunnableLambda(lambda _: answer)).ainvoke(state)

    async def node(state: State) -> State:
        return {"answer": await asyncio.shield(RunnableLambda(work).ainvoke(state))}

    await leaves(graph(node).astream(GIVEN, config, stream_mode="messages"))
    go.set()
    await wait_for_traces(1, stored_traces)
    await wait_for_other_tasks()
    (shown,) = trees(stored_traces)
    assert "work CHAIN\n" in shown
    assert ("ERROR" in shown) == (leaves is cancel)


async def test_work_in_a_thread_goes_on_after_a_cancellation_without_a_trace_of_its_own(
    config: RunnableConfig, stored_traces: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    started, go, done = threading.Event(), threading.Event(), threading.Event()

    def node(state: State) -> State:
        started.set()
        go.wait(30)
        chain().invoke(state)
        done.set()
        return state

    call = asyncio.ensure_future(graph(node).ainvoke(GIVEN, config))
    await asyncio.to_thread(started.wait, 30)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    await asyncio.to_thread(done.wait, 30)
    assert trees(stored_traces) == [tree_of("LangGraph CHAIN ERROR", "node CHAIN ERROR\n")]
    assert caplog.records == []


async def test_siblings_of_a_part_that_failed_are_no_errors(config: RunnableConfig, stored_traces: Fetch) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def fail(given: Any) -> None:
        await started.wait()
        raise ValueError("broken")

    async def go_on(given: Any) -> str:
        started.set()
        await go.wait()
        return "fine"

    with pytest.raises(ValueError, match="broken"):
        await RunnableParallel(fail=RunnableLambda(fail), go_on=RunnableLambda(go_on)).ainvoke(GIVEN, config)
    go.set()
    await wait_for_other_tasks()
    (trace,) = stored_traces()
    assert tree(trace) == tree_of("RunnableParallel<fail,go_on> CHAIN ERROR", "fail CHAIN ERROR\n", "go_on CHAIN\n")


async def test_a_task_that_goes_on_after_its_step_is_traced_whole(config: RunnableConfig, stored_traces: Fetch) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def wait(given: Any) -> Any:
        started.set()
        await go.wait()
        return given

    async def start(given: Any) -> Any:
        task = asyncio.ensure_future((RunnableLambda(wait) | chain()).ainvoke(given))
        await started.wait()
        return task

    async def finish(task: Any) -> Any:
        go.set()
        return await task

    await (RunnableLambda(start) | RunnableLambda(finish)).ainvoke(GIVEN, config)
    work = f"{CHAIN}  wait CHAIN\n"
    assert trees(stored_traces) == [tree_of("RunnableSequence CHAIN", "finish CHAIN\n", tree_of("start CHAIN", work))]


def test_two_calls_with_one_run_id_give_two_traces(config: RunnableConfig, stored_traces: Fetch) -> None:
    shared: RunnableConfig = {**config, "run_id": uuid.uuid4()}
    for _ in chain().stream(GIVEN, shared):
        break
    chain().invoke(GIVEN, shared)
    first, second = trees(stored_traces)
    assert first == second
