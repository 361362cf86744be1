"""When a caller fails, the spans of a stream that it still holds are ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core import get_response_synthesizer
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, LLMMetadata
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata, ToolOutput
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel
from tests.llama_index.conftest import ScriptedLLM
from tests.llama_index.traces import open_spans, tree
from tests.programs import run_program

from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate


class City(BaseModel):
    name: str


class Held(Event):
    stream: Any


class Failing(Workflow):
    """Makes a stream in one step and fails in the next."""

    @step
    async def make(self, event: StartEvent) -> Held:
        return Held(stream=await event.make())

    @step
    async def fail(self, event: Held) -> StopEvent:
        raise ValueError("broken")


class Slow(Workflow):
    @step
    async def only(self, event: StartEvent) -> StopEvent:
        kept = await event.make()
        await asyncio.sleep(60)
        return StopEvent(result=kept)


class Wrapped(StopEvent):
    stream: Any


class Wrapping(Workflow):
    @step
    async def only(self, event: StartEvent) -> Wrapped:
        return Wrapped(stream=await event.make())


class Listing(Workflow):
    @step
    async def only(self, event: StartEvent) -> StopEvent:
        return StopEvent(result=[await event.make()])


class Engine(CustomQueryEngine):
    make: Any

    def custom_query(self, query_str: str) -> str:
        kept = self.make()
        raise ValueError(f"broken with {type(kept).__name__}")


@pytest.fixture
def streams(index: Any, scripted: Any, tool_call: Any) -> dict[str, Callable[..., Any]]:
    """Make a stream of each kind, unread or half-read."""

    def engine() -> Any:
        return index.as_query_engine(llm=scripted("Word by word."), streaming=True)

    async def query() -> Any:
        return await engine().aquery("What?")

    async def half() -> Any:
        response = await engine().aquery("What?")
        await anext(aiter(response.async_response_gen()))
        return response

    async def sync() -> Any:
        response = engine().query("What?")
        next(iter(response.response_gen))
        return response

    async def chat() -> Any:
        made = index.as_chat_engine(llm=scripted("Word by word."), chat_mode="context")
        return await made.astream_chat("What?")

    async def structured() -> Any:
        model = scripted(tool_call("City", name="Oslo")).as_structured_llm(City)
        stream = await model.astream_chat([ChatMessage("What?")])
        await anext(stream)
        return stream

    async def synthesized() -> Any:
        synthesizer = get_response_synthesizer(llm=scripted("Word by word."), streaming=True)
        return synthesizer.synthesize("What?", [NodeWithScore(node=TextNode(text="a"))])

    return {made.__name__: made for made in (query, half, sync, chat, structured, synthesized)}


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")  # StructuredLLM calls it (0.14.25)
@pytest.mark.parametrize("stream", ["query", "half", "sync", "chat", "structured", "synthesized"])
def test_a_failing_workflow_ends_the_spans_of_its_stream(traced: Any, streams: Any, stream: str) -> None:
    kept: list[Any] = []

    async def make() -> Any:
        kept.append(await streams[stream]())
        return kept[0]

    async def run() -> None:
        with pytest.raises(ValueError, match="broken"):
            await Failing().run(make=make)

    with PomlCallbackHandler():
        (trace,) = traced(lambda: asyncio.run(run()))
        assert open_spans() == 0
    assert tree(trace).splitlines()[0] == "Failing.run CHAIN ERROR"
    assert kept


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_a_stopped_workflow_ends_the_spans_of_its_stream(traced: Any, streams: Any, how: str) -> None:
    """LlamaIndex reports a timeout as an error, and a cancelled run as one without a result."""
    kept: list[Any] = []
    made = asyncio.Event()

    async def make() -> Any:
        kept.append(await streams["half"]())
        made.set()
        return kept[0]

    async def run() -> None:
        running = Slow(timeout=1 if how == "late" else 60).run(make=make)
        if how == "cancelled":
            await made.wait()
            await running.cancel_run()
        with contextlib.suppress(Exception):
            await running

    with PomlCallbackHandler():
        (trace,) = traced(lambda: asyncio.run(run()))
        assert open_spans() == 0
    assert tree(trace).splitlines()[0] == f"Slow.run CHAIN{' ERROR' if how == 'late' else ''}"


@pytest.mark.parametrize("end", ["read", "dropped", "failed"])
@pytest.mark.parametrize("flow", [Wrapping, Listing])
def test_a_stream_within_another_result(traced: Any, streams: Any, flow: Any, end: str) -> None:
    """A span that waits for a stream below it does not keep the result that holds the stream."""

    async def run() -> None:
        result = await flow().run(make=streams["query"])
        stream = result.stream if flow is Wrapping else result[0]
        del result
        if end == "read":
            assert [piece async for piece in stream.async_response_gen()] == ["Word", " by", " word."]
        elif end == "failed":
            await anext(aiter(stream.async_response_gen()))
            raise ValueError("broken")

    def call() -> None:
        with contextlib.suppress(ValueError):
            asyncio.run(run())

    with PomlCallbackHandler():
        (trace,) = traced(call)
        assert open_spans() == 0
    assert tree(trace).splitlines()[0] == f"{flow.__name__}.run CHAIN"
    assert "ERROR" not in tree(trace)


def test_a_failing_engine_or_tool_ends_the_spans_of_its_stream(traced: Any, index: Any, scripted: Any) -> None:
    kept: list[Any] = []

    def make() -> Any:
        kept.append(index.as_query_engine(llm=scripted("Word by word."), streaming=True).query("What?"))
        return kept[-1]

    def fail() -> None:
        kept.append(make())
        raise ValueError("broken")

    def call() -> None:
        with pytest.raises(ValueError, match="broken with StreamingResponse"):
            Engine(make=make).query("What?")
        with pytest.raises(ValueError, match="broken"):
            FunctionTool.from_defaults(fail)()

    with PomlCallbackHandler():
        traces = traced(call)
        assert open_spans() == 0
    assert [tree(trace).splitlines()[0] for trace in traces] == [
        "Engine.query CHAIN ERROR",
        "FunctionTool.__call__ TOOL ERROR",
    ]


def test_a_failing_tool_ends_its_spans_in_an_agent_that_continues(
    traced: Any, index: Any, scripted: Any, tool_call: Any
) -> None:
    kept: list[Any] = []

    async def look() -> str:
        """Look."""
        kept.append(await index.as_query_engine(llm=scripted("Word by word."), streaming=True).aquery("What?"))
        raise ValueError("broken")

    async def run() -> None:
        await FunctionAgent(tools=[look], llm=scripted(tool_call("look"), "Done.")).run("Look!")

    with PomlCallbackHandler():
        (trace,) = traced(lambda: asyncio.run(run()))
        assert open_spans() == 0
    assert trace.info.state == "OK"
    failed = [line.split()[0] for line in tree(trace).splitlines() if line.endswith("ERROR")]
    assert failed == ["FunctionTool.acall"]


SCRIPT = """
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from pomlflow.llama_index import PomlCallbackHandler

index = VectorStoreIndex([TextNode(text="a")], embed_model=MockEmbedding(embed_dim=4))
handler = PomlCallbackHandler().attach()
response = index.as_query_engine(llm=MockLLM(), streaming=True).query("What?")
next(iter(response.response_gen))
raise ValueError("broken")
"""


def test_a_failing_program_stores_the_trace_of_its_stream(
    mlflow_store: str, stored_traces: Any, tmp_path: Path
) -> None:
    """A stream that a module holds is dropped only when MLflow stores nothing any more."""
    store = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_ID": mlflow_store}
    environment = {**os.environ, **store, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "true"}
    done = run_program(SCRIPT, folder=tmp_path, environment=environment)
    assert "ValueError: broken" in done.stderr
    (trace,) = stored_traces()
    assert tree(trace).splitlines()[0] == "RetrieverQueryEngine.query CHAIN"


class Unknown(ScriptedLLM):
    """A model without metadata, as LlamaIndex's OpenAI is for the name of a model that it does not know."""

    @property
    def metadata(self) -> LLMMetadata:
        raise ValueError("Unknown model 'gpt-99'")


def test_a_model_or_tool_without_metadata_keeps_its_span(traced: Any) -> None:
    class Nameless(BaseTool):
        @property
        def metadata(self) -> ToolMetadata:
            raise ValueError("no metadata")

        @get_dispatcher().span
        def __call__(self, input: Any) -> ToolOutput:  # noqa: A002 - LlamaIndex's name
            return ToolOutput(content="Found.", tool_name="look", raw_input={}, raw_output=None)

    prompt = PomlPromptTemplate("<p>{{topic}}</p>")

    def call() -> None:
        with pytest.raises(ValueError, match="gpt-99"):
            Unknown().predict(prompt, topic="POML")
        Nameless()("x")

    with PomlCallbackHandler():
        failed, tool = traced(call)
    assert tree(failed) == "Unknown.predict LLM ERROR"
    assert failed.data.spans[0].status.description == "Unknown model 'gpt-99'"
    assert tree(tool) == "Nameless.__call__ TOOL"
    assert tool.data.spans[0].inputs == {"input": "x"}


class Unreadable(StartEvent):
    def to_dict(self) -> dict[str, Any]:
        raise ValueError("no dict")


class Plain(Workflow):
    @step
    async def only(self, event: Unreadable) -> StopEvent:
        return StopEvent(result="done")


def test_a_start_event_that_cannot_be_read_leaves_no_span_active(traced: Any, scripted: Any) -> None:
    """Later calls of the thread have traces of their own."""

    async def run() -> None:
        assert await Plain().run(start_event=Unreadable()) == "done"
        scripted("Fine.").complete("Hi")

    with PomlCallbackHandler():
        traces = traced(lambda: asyncio.run(run()))
    assert "ScriptedLLM.complete LLM" in [tree(trace) for trace in traces]
