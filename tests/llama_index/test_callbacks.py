"""The place where a handler is attached decides what is traced."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core import Settings
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from mlflow.entities import Trace
from tests.llama_index.traces import parent, poml_spans, tree

from pomlflow.exceptions import ConfigurationError
from pomlflow.llama_index import PomlCallbackHandler


@pytest.fixture
def handler() -> Iterator[PomlCallbackHandler]:
    handler = PomlCallbackHandler()
    yield handler
    handler.detach()


@pytest.fixture
def agent(scripted: Any) -> FunctionAgent:
    return FunctionAgent(llm=scripted("Fine."), system_prompt="You are a test.")


def roots(traces: list[Trace]) -> list[str]:
    return [tree(trace).split()[0] for trace in traces]


def run(agent: FunctionAgent) -> str:
    async def answer() -> str:
        return str(await agent.run("Hello"))

    return asyncio.run(answer())


def test_attach_traces_everything_until_detach(traced: Any, handler: Any, engine: Any, agent: Any) -> None:
    assert handler.attach() is handler
    (query,) = traced(lambda: engine.query("What?"))
    (answer,) = traced(lambda: run(agent))
    assert roots([query, answer]) == ["RetrieverQueryEngine.query", "FunctionAgent.run"]
    (span,) = poml_spans(query)
    assert (span.name, span.span_type, parent(query, span)) == ("poml qa", "PROMPT", "ScriptedLLM.predict")
    handler.detach()
    assert traced(lambda: engine.query("What?")) == []


def test_attach_to_a_component_traces_it_alone(
    traced: Any, handler: Any, engine: Any, agent: Any, index: Any, scripted: Any
) -> None:
    other = index.as_query_engine(llm=scripted("Fine."))
    assert handler.attach(engine, agent) is handler
    assert roots(traced(lambda: engine.query("What?"))) == ["RetrieverQueryEngine.query"]
    assert roots(traced(lambda: run(agent))) == ["FunctionAgent.run"]
    assert traced(lambda: other.query("What?")) == []
    handler.detach(engine)
    assert traced(lambda: engine.query("What?")) == []
    assert roots(traced(lambda: run(agent))) == ["FunctionAgent.run"]
    handler.detach()
    assert traced(lambda: run(agent)) == []


def test_attach_to_a_model_traces_its_calls_in_traces_of_their_own(
    traced: Any, handler: Any, index: Any, scripted: Any, prompt: Any
) -> None:
    llm = scripted("Fine.")
    handler.attach(llm)
    engine = index.as_query_engine(llm=llm, text_qa_template=prompt)
    (trace,) = traced(lambda: engine.query("What?"))
    assert tree(trace) == "ScriptedLLM.predict LLM\n  poml qa PROMPT\n  ScriptedLLM.chat CHAT_MODEL"


def test_a_component_is_not_kept_alive_by_the_handler(handler: Any, index: Any, scripted: Any) -> None:
    engine = index.as_query_engine(llm=scripted("Fine."))
    handler.attach(engine)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_attach_refuses_what_llama_index_does_not_trace(handler: Any, index: Any) -> None:
    with pytest.raises(ConfigurationError, match="does not trace a VectorStoreIndex: attach the engine"):
        handler.attach(index)


def test_a_block_is_traced_and_nothing_before_or_after_it(traced: Any, handler: Any, engine: Any) -> None:
    def calls() -> None:
        engine.query("Before?")
        with handler as entered:
            assert entered is handler
            engine.query("Inside?")
        engine.query("After?")

    (trace,) = traced(calls)
    assert trace.data.spans[0].inputs == {"str_or_query_bundle": "Inside?"}


def test_a_block_inside_a_block_of_the_same_handler_changes_nothing(traced: Any, handler: Any, engine: Any) -> None:
    def calls() -> None:
        with handler:
            with handler:
                engine.query("Inner?")
            engine.query("Outer?")
        engine.query("After?")

    assert roots(traced(calls)) == ["RetrieverQueryEngine.query"] * 2


def test_a_block_ends_when_an_error_is_raised(traced: Any, handler: Any, engine: Any) -> None:
    def calls() -> None:
        with pytest.raises(ZeroDivisionError), handler:
            raise ZeroDivisionError
        engine.query("After?")

    assert traced(calls) == []


def test_a_block_in_one_of_several_tasks_traces_that_task(traced: Any, handler: Any, engine: Any) -> None:
    async def one(question: str, *, inside: bool) -> None:
        await asyncio.sleep(0)
        if inside:
            with handler:
                await asyncio.sleep(0)
                await engine.aquery(question)
        else:
            await engine.aquery(question)

    async def tasks() -> None:
        await asyncio.gather(one("a", inside=False), one("b", inside=True), one("c", inside=False))

    (trace,) = traced(lambda: asyncio.run(tasks()))
    assert trace.data.spans[0].inputs == {"str_or_query_bundle": "b"}


def test_blocks_of_one_handler_in_several_tasks_trace_each(traced: Any, handler: Any, engine: Any) -> None:
    async def one(question: str) -> None:
        with handler:
            await asyncio.sleep(0)
            await engine.aquery(question)

    async def tasks() -> None:
        await asyncio.gather(*map(one, "abc"))

    traces = traced(lambda: asyncio.run(tasks()))
    assert sorted(trace.data.spans[0].inputs["str_or_query_bundle"] for trace in traces) == ["a", "b", "c"]
    assert len({tree(trace) for trace in traces}) == 1


def test_a_block_in_a_thread_traces_that_thread(traced: Any, handler: Any, engine: Any) -> None:
    def inside() -> None:
        with handler:
            engine.query("inside")

    def calls() -> None:
        threads = [threading.Thread(target=target) for target in (inside, lambda: engine.query("outside"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    (trace,) = traced(calls)
    assert trace.data.spans[0].inputs == {"str_or_query_bundle": "inside"}


def test_a_run_that_is_begun_in_a_block_is_traced_to_its_end(traced: Any, handler: Any, agent: Any) -> None:
    """The run's span begins only in the task that LlamaIndex starts for it, after the block."""

    async def answer() -> None:
        with handler:
            running = agent.run("Hello")
        await running

    reference = traced(lambda: run(handler.attach(agent) and agent))
    handler.detach()
    (trace,) = traced(lambda: asyncio.run(answer()))
    assert tree(trace) == tree(reference[0])


def test_a_run_is_traced_to_its_end_after_detach(
    traced: Any, handler: Any, index: Any, scripted: Any, prompt: Any
) -> None:
    def detach(_: Any) -> str:
        handler.detach()
        return "Fine."

    handler.attach()
    reference = index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt)
    engine = index.as_query_engine(llm=scripted(detach), text_qa_template=prompt)
    (whole,) = traced(lambda: reference.query("What?"))
    (trace,) = traced(lambda: engine.query("What?"))
    assert tree(trace) == tree(whole)


def test_a_handler_in_the_settings_callback_manager_traces_everything_until_it_is_removed(
    traced: Any, handler: Any, engine: Any, agent: Any
) -> None:
    Settings.callback_manager = CallbackManager([handler])
    assert roots(traced(lambda: engine.query("What?"))) == ["RetrieverQueryEngine.query"]
    assert roots(traced(lambda: run(agent))) == ["FunctionAgent.run"]
    Settings.callback_manager.remove_handler(handler)
    assert traced(lambda: engine.query("What?")) == []


def test_a_handler_in_an_engines_callback_manager_traces_that_engine(
    traced: Any, handler: Any, index: Any, scripted: Any, prompt: Any
) -> None:
    def make(manager: CallbackManager) -> Any:
        llm = scripted("Fine.")
        return RetrieverQueryEngine.from_args(
            index.as_retriever(), llm=llm, text_qa_template=prompt, callback_manager=manager
        )

    listed, other = make(CallbackManager([handler])), make(CallbackManager())
    (trace,) = traced(lambda: listed.query("What?"))
    assert len(poml_spans(trace)) == 1
    assert traced(lambda: other.query("What?")) == []


def test_a_handler_in_a_models_callback_manager_traces_components_with_that_model(
    traced: Any, handler: Any, scripted: Any, prompt: Any
) -> None:
    """The first run of an agent is one trace too: the handler is attached before the first callback."""
    llm = scripted("Fine.", callback_manager=CallbackManager([handler]))
    (answer,) = traced(lambda: run(FunctionAgent(llm=llm)))
    assert roots([answer]) == ["FunctionAgent.run"]
    (trace,) = traced(lambda: llm.predict(prompt, context_str="a", query_str="b"))
    assert tree(trace) == "ScriptedLLM.predict LLM\n  poml qa PROMPT\n  ScriptedLLM.chat CHAT_MODEL"


def test_searching_for_callback_managers_calls_no_code_of_the_component(traced: Any, handler: Any) -> None:
    """A property may load a model, or construct one that needs a key."""

    class Careful(CustomQueryEngine):
        @property
        def llm(self) -> Any:
            raise AssertionError("the model was read")

        def custom_query(self, query_str: str) -> str:
            return "Fine."

    assert traced(lambda: Careful().query("What?")) == []
    Settings.callback_manager = CallbackManager([handler])
    assert roots(traced(lambda: Careful().query("What?"))) == ["Careful.query"]


def test_two_handlers_make_one_trace(traced: Any, handler: Any, engine: Any) -> None:
    (reference,) = traced(lambda: handler.attach() and engine.query("What?"))
    second = PomlCallbackHandler(register=False).attach()
    try:
        assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [tree(reference)]
        handler.detach()
        handler.attach(engine)
        assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [tree(reference)]
    finally:
        second.detach()


def test_one_handler_attached_in_all_ways_makes_one_trace(traced: Any, handler: Any, engine: Any) -> None:
    (reference,) = traced(lambda: handler.attach() and engine.query("What?"))
    Settings.callback_manager = CallbackManager([handler])
    handler.attach().attach(engine).attach(engine)

    def call() -> None:
        with handler, handler:
            engine.query("What?")

    assert [tree(trace) for trace in traced(call)] == [tree(reference)]


def test_the_closest_handler_owns_the_trace(traced: Any, handler: Any, engine: Any) -> None:
    """The stored content shows whose trace it is: that handler's mask was called."""
    hiding = PomlCallbackHandler(mask=lambda _: None)
    handler.attach()
    hiding.attach(engine)
    (trace,) = traced(lambda: engine.query("What?"))
    assert {span.inputs is None for span in trace.data.spans} == {True}
    with handler:
        (trace,) = traced(lambda: engine.query("What?"))
    assert trace.data.spans[0].inputs == {"str_or_query_bundle": "What?"}


def test_the_users_own_spans_are_parents_and_children(traced: Any, handler: Any, scripted: Any, prompt: Any) -> None:
    """A tool starts a span: LlamaIndex's work in it belongs under that span."""
    inner = scripted("Inner.")

    def think(_: Any) -> str:
        with mlflow.start_span("thought"):
            inner.predict(prompt, context_str="a", query_str="b")
        return "Fine."

    def call() -> None:
        with mlflow.start_span("request"), handler:
            scripted(think).complete("Hello")

    (trace,) = traced(call)
    assert tree(trace).splitlines() == [
        "request UNKNOWN",
        "  ScriptedLLM.complete LLM",
        "    thought UNKNOWN",
        "      ScriptedLLM.predict LLM",
        "        poml qa PROMPT",
        "        ScriptedLLM.chat CHAT_MODEL",
    ]


def test_a_task_that_continues_after_its_trace_starts_a_trace(traced: Any, handler: Any, scripted: Any) -> None:
    """MLflow's own tracer uses the ended span as the parent, and loses later spans."""
    llm = scripted("Fine.")
    later: list[asyncio.Task[Any]] = []

    async def afterwards(ended: asyncio.Event) -> None:
        await ended.wait()
        await llm.acomplete("Later")

    async def calls() -> None:
        ended = asyncio.Event()

        def begin(_: Any) -> str:
            later.append(asyncio.ensure_future(afterwards(ended)))
            return "Fine."

        await scripted(begin).acomplete("First")
        ended.set()
        await later[0]

    handler.attach()
    traces = traced(lambda: asyncio.run(calls()))
    assert [trace.data.spans[0].inputs["args"] for trace in traces] == [["First"], ["Later"]]


def test_copied_components_keep_their_handler(handler: Any, scripted: Any) -> None:
    llm = scripted("Fine.", callback_manager=CallbackManager([handler]))
    assert copy.deepcopy(llm).callback_manager.handlers == [handler]


def test_a_pickled_handler_keeps_its_options() -> None:
    assert pickle.loads(pickle.dumps(PomlCallbackHandler(register=False))).register is False
