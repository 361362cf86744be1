"""A span that streams lasts as long as its stream, however that ends, and leaves nothing in memory."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core import PromptTemplate
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from packaging.version import Version
from tests.llama_index.conftest import Cut
from tests.llama_index.traces import open_spans, parent, poml_spans, span_named, tree, without_poml
from tests.waiting import until

from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

REFINE = "<p>{{query_str}} {{existing_answer}} {{context_msg}}</p>"


@pytest.fixture
def streaming_engine(index: Any, scripted: Any, prompt: Any) -> Callable[..., Any]:
    """Make a streaming query engine whose model gives these answers."""

    def engine(*answers: Any, **options: Any) -> Any:
        given = {"text_qa_template": prompt, **options}
        return index.as_query_engine(llm=scripted(*(answers or ["Word by word."])), streaming=True, **given)

    return engine


@pytest.fixture(autouse=True)
def no_open_spans() -> Iterator[None]:
    yield
    gc.collect()
    until(lambda: open_spans() == 0)  # a chat's thread may be about to end


def as_sync(text: str) -> str:
    """A tree with the names of LlamaIndex's async methods as those of its sync ones."""
    sync = "query|retrieve|get_query_embedding|synthesize|get_response|stream|stream_chat|complete"
    return re.sub(rf"\.(_?)a({sync}|write_response_to_history) ", r".\1\2 ", text)


async def read(response: Any) -> str:
    return "".join([piece async for piece in response.async_response_gen()])


def test_a_streamed_answer_makes_the_tree_of_autolog_and_the_whole_answer(
    traced: Any, autolog_trees: Any, streaming_engine: Any
) -> None:
    def call() -> None:
        assert "".join(streaming_engine().query("What?").response_gen) == "Word by word."

    (reference,) = autolog_trees(call)
    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert without_poml(tree(trace)) == reference
    assert [parent(trace, span) for span in poml_spans(trace)] == ["ScriptedLLM.stream"]
    assert trace.data.spans[0].outputs == "Word by word."
    assert span_named(trace, "ScriptedLLM.stream").outputs == "Word by word."
    assert span_named(trace, "CompactAndRefine.synthesize").outputs == "Word by word."
    assert span_named(trace, "ScriptedLLM.stream_chat").outputs["message"]["blocks"][0]["text"] == "Word by word."


def test_an_async_stream_makes_the_tree_of_a_sync_one(traced: Any, streaming_engine: Any) -> None:
    async def call() -> None:
        assert await read(await streaming_engine().aquery("What?")) == "Word by word."

    with PomlCallbackHandler():
        (sync,) = traced(lambda: "".join(streaming_engine().query("What?").response_gen))
        (trace,) = traced(lambda: asyncio.run(call()))
    assert as_sync(tree(trace)) == tree(sync)
    assert trace.data.spans[0].outputs == "Word by word."


def test_a_stream_that_is_read_after_the_block_is_traced_whole(traced: Any, streaming_engine: Any) -> None:
    """The model is called only when the first word is read: the render happens after the block."""

    def call() -> None:
        with handler:
            response = streaming_engine().query("What?")
        "".join(response.response_gen)

    handler = PomlCallbackHandler()
    with handler:
        (reference,) = traced(lambda: "".join(streaming_engine().query("What?").response_gen))
    (trace,) = traced(call)
    assert tree(trace) == tree(reference)


def test_a_refined_answer_ends_with_its_last_stream(traced: Any, streaming_engine: Any) -> None:
    refine = PomlPromptTemplate(REFINE, name="refine")

    def call() -> None:
        engine = streaming_engine("First.", "Second.", response_mode="refine", refine_template=refine)
        assert "".join(engine.query("What?").response_gen) == "Second."

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert [span.name for span in poml_spans(trace)] == ["poml qa", "poml refine"]
    assert trace.data.spans[0].outputs == "Second."


def test_a_half_read_answer_that_is_dropped_ends_the_trace(traced: Any, streaming_engine: Any) -> None:
    def call() -> None:
        for _ in streaming_engine().query("What?").response_gen:
            break

    async def acall() -> None:
        response = await streaming_engine().aquery("What?")
        async for _ in response.async_response_gen():
            break

    with PomlCallbackHandler():
        (trace,) = traced(call)
        (atrace,) = traced(lambda: asyncio.run(acall()))
    assert trace.data.spans[0].outputs == atrace.data.spans[0].outputs == "Word"
    assert as_sync(tree(atrace)) == tree(trace)
    assert "ERROR" not in tree(trace)


def test_an_unread_answer_ends_its_trace_when_it_is_dropped(traced: Any, streaming_engine: Any) -> None:
    with PomlCallbackHandler():
        (trace,) = traced(lambda: streaming_engine().query("What?") and None)
    assert tree(trace).startswith("RetrieverQueryEngine.query CHAIN")
    assert trace.data.spans[0].outputs is None


def test_an_answer_in_a_cycle_is_ended_after_garbage_collection(
    traced: Any, stored_traces: Any, streaming_engine: Any
) -> None:
    """Ending a span during garbage collection could wait for a lock that the same thread holds."""

    def call() -> None:
        response = streaming_engine().query("What?")
        cycle = [response]
        cycle.append(cycle)
        next(iter(response.response_gen))
        del response, cycle
        gc.collect()
        until(lambda: any(trace.info.state == "OK" for trace in stored_traces()))  # in another thread

    with PomlCallbackHandler():
        (trace,) = traced(call, at_least=1)
    assert trace.data.spans[0].outputs == "Word"


def test_a_model_that_fails_in_the_middle_is_an_error_up_to_the_root(traced: Any, streaming_engine: Any) -> None:
    def call() -> None:
        with pytest.raises(ConnectionError):
            list(streaming_engine(ConnectionError("cut off")).query("What?").response_gen)

    with PomlCallbackHandler():
        (trace,) = traced(call)
    failed = [line.split()[0] for line in tree(trace).splitlines() if line.endswith("ERROR")]
    assert failed[0] == "RetrieverQueryEngine.query"
    assert failed[-2:] == ["ScriptedLLM.stream", "ScriptedLLM.stream_chat"]
    assert trace.data.spans[0].status.description == "cut off"


def test_a_model_streams_by_itself(traced: Any, scripted: Any, prompt: Any) -> None:
    async def chat() -> None:
        pieces = [piece async for piece in await scripted("One two.").astream_chat([])]
        assert pieces[-1].message.content == "One two."

    async def predict() -> None:
        stream = await scripted("One two.").astream(prompt, context_str="a", query_str="b")
        assert [piece async for piece in stream] == ["One", " two."]

    with PomlCallbackHandler():
        (trace,) = traced(lambda: asyncio.run(chat()))
        assert tree(trace) == "ScriptedLLM.astream_chat CHAT_MODEL"
        assert trace.data.spans[0].outputs["message"]["blocks"][0]["text"] == "One two."
        (trace,) = traced(lambda: asyncio.run(predict()))
        expected = "ScriptedLLM.astream LLM\n  poml qa PROMPT\n  ScriptedLLM.astream_chat CHAT_MODEL"
        assert tree(trace) == expected
        assert trace.data.spans[0].outputs == "One two."
        (trace,) = traced(lambda: list(scripted("One two.").stream_complete("x")))
        assert trace.data.spans[0].outputs["text"] == "One two."


HELD: dict[str, Callable[[Any, Any], Any]] = {
    "ScriptedLLM.stream": lambda llm, prompt: llm.stream(prompt, context_str="a", query_str="b"),
    "ScriptedLLM.astream": lambda llm, prompt: llm.astream(prompt, context_str="a", query_str="b"),
    "PomlLLM.stream": lambda llm, prompt: prompt.bind_to(llm).stream(context_str="a", query_str="b"),
    "PomlLLM.astream": lambda llm, prompt: prompt.bind_to(llm).astream(context_str="a", query_str="b"),
    "PomlLLM.stream_chat": lambda llm, prompt: prompt.bind_to(llm).stream_chat(context_str="a", query_str="b"),
}


@pytest.mark.parametrize("name", HELD)
def test_a_stream_that_is_held_ends_when_its_last_piece_was_read(
    traced: Any, scripted: Any, prompt: Any, name: str
) -> None:
    """A notebook's variable holds its generator for as long as the notebook runs."""
    held = []

    async def read_all(result: Any) -> None:
        held.append(await result)
        async for _ in held[0]:
            pass

    def call() -> None:
        result = HELD[name](scripted("One two."), prompt)
        if ".a" in name:
            asyncio.run(read_all(result))
        else:
            held.append(result)
            list(result)
        assert open_spans() == 0

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert trace.info.state == "OK"
    assert trace.data.spans[0].name == name
    assert trace.data.spans[0].outputs == "One two."


def test_a_stream_that_is_held_ends_when_it_fails(traced: Any, prompt: Any) -> None:
    held = []

    def call() -> None:
        held.append(Cut().stream(prompt, context_str="a", query_str="b"))
        with pytest.raises(ConnectionError):
            list(held[0])

    with PomlCallbackHandler():
        (trace,) = traced(lambda: (call(), gc.collect()))
    assert tree(trace) == "Cut.stream LLM ERROR\n  poml qa PROMPT\n  Cut.stream_chat CHAT_MODEL ERROR"
    assert trace.data.spans[0].status.description == "cut off"


@pytest.mark.parametrize("mode", ["simple", "context", "condense_question", "condense_plus_context"])
def test_chat_engines_stream(traced: Any, autolog_trees: Any, index: Any, scripted: Any, mode: str) -> None:
    """The history is written in a thread or task that reads the model's stream: that is part of the trace."""

    def engine() -> Any:
        return index.as_chat_engine(llm=scripted("Word by word."), chat_mode=mode)

    def call() -> None:
        assert "".join(engine().stream_chat("Hello").response_gen) == "Word by word."

    async def acall() -> None:
        assert await read(await engine().astream_chat("Hello")) == "Word by word."

    with PomlCallbackHandler():
        (trace,) = traced(call, at_least=1)
        (atrace,) = traced(lambda: asyncio.run(acall()))
    assert sorted(as_sync(tree(atrace)).splitlines()) == sorted(tree(trace).splitlines())
    assert trace.data.spans[0].outputs == atrace.data.spans[0].outputs == "Word by word."
    if Version(mlflow.__version__) < Version("3.17"):
        pytest.skip("MLflow's own tracer never ends some of these")
    (reference,) = autolog_trees(call, at_least=1)
    assert sorted(tree(trace).splitlines()) == sorted(reference.splitlines())


class Streaming(Workflow):
    llm: Any = None
    prompt: Any = None

    @step
    async def only(self, event: StartEvent) -> StopEvent:
        return StopEvent(result=await self.llm.astream(self.prompt, context_str="a", query_str="b"))


def test_a_workflow_returns_a_stream_that_is_read_after_the_run(traced: Any, scripted: Any, prompt: Any) -> None:
    async def call() -> None:
        flow = Streaming()
        flow.llm, flow.prompt = scripted("Word by word."), prompt
        with PomlCallbackHandler():
            running = flow.run()
        assert [piece async for piece in await running] == ["Word", " by", " word."]

    (trace,) = traced(lambda: asyncio.run(call()))
    assert tree(trace).splitlines() == [
        "Streaming.run CHAIN",
        "  Streaming.only CHAIN",
        "    ScriptedLLM.astream LLM",
        "      poml qa PROMPT",
        "      ScriptedLLM.astream_chat CHAT_MODEL",
    ]
    assert trace.data.spans[0].outputs == "Word by word."


class Lazy(CustomQueryEngine):
    """Calls its model twice while its stream is read."""

    llm: Any

    def custom_query(self, query_str: str) -> StreamingResponse:
        def pieces() -> Iterator[str]:
            yield self.llm.complete("one").text
            with mlflow.start_span("between"):
                yield self.llm.complete("two").text

        return StreamingResponse(pieces())


def test_work_of_a_lazy_stream_is_part_of_the_trace(traced: Any, scripted: Any) -> None:
    def call() -> None:
        with PomlCallbackHandler():
            response = Lazy(llm=scripted("1", "2")).query("What?")
        with mlflow.start_span("reader"):
            assert "".join(response.response_gen) == "12"

    (query, reader) = traced(call)
    assert tree(reader) == "reader UNKNOWN"
    assert tree(query).splitlines() == [
        "Lazy.query CHAIN",
        "  Lazy.custom_query CHAIN",
        "    ScriptedLLM.complete LLM",
        "    between UNKNOWN",
        "      ScriptedLLM.complete LLM",
    ]


def test_many_streams_leave_nothing_in_memory(mlflow_store: str, streaming_engine: Any, scripted: Any) -> None:
    """A thousand, read and unread: no span, generator or wrapper stays in memory. MLflow itself stores nothing here."""
    streams: weakref.WeakSet[Any] = weakref.WeakSet()
    llm, engine, plain = scripted("One two."), streaming_engine("One two."), PromptTemplate("{query_str}")
    mlflow.tracing.disable()
    try:
        with PomlCallbackHandler():
            for number in range(1_000):
                stream = llm.stream(plain, query_str="What?")
                streams.add(stream)
                if number % 2:
                    next(stream)
                else:
                    "".join(stream)
            for number in range(50):
                response = engine.query("What?")
                streams.add(response.response_gen)
                if number % 2:
                    next(response.response_gen)
            del stream, response
    finally:
        mlflow.tracing.enable()
    gc.collect()
    assert len(streams) == 0
    assert open_spans() == 0


class Gathering(CustomQueryEngine):
    """Calls its model twice at once while its stream is read."""

    llm: Any

    def custom_query(self, query_str: str) -> str:
        return query_str

    async def acustom_query(self, query_str: str) -> AsyncStreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            for answer in await asyncio.gather(self.llm.acomplete("one"), self.llm.acomplete("two")):
                yield answer.text

        return AsyncStreamingResponse(pieces())


def test_tasks_of_a_lazy_stream_are_part_of_the_trace_of_an_attached_engine(traced: Any, scripted: Any) -> None:
    """The handler knows by LlamaIndex's spans alone what is part of its engine."""
    handler, engine = PomlCallbackHandler(), Gathering(llm=scripted("1", "2"))
    handler.attach(engine)

    async def call() -> None:
        response = await engine.aquery("What?")
        assert "".join([piece async for piece in response.async_response_gen()]) == "12"

    (query,) = traced(lambda: asyncio.run(call()))
    calls = [span for span in query.data.spans if span.name == "ScriptedLLM.acomplete"]
    assert [parent(query, span) for span in calls] == ["Gathering.aquery"] * 2
    handler.detach(engine)
