"""With ``mlflow.llama_index.autolog()`` on as well, no span comes twice and none is lost."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core import Settings
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from mlflow.llama_index import tracer as mlflow_tracer
from tests.llama_index.traces import FOREIGN_WARNINGS, by_autolog, parent, poml_spans, traced, tree, without_poml
from tests.mlflow_server import until

from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.llama_index import handler as module
from pomlflow.llama_index import mlflow_tracer as tracer
from pomlflow.llama_index.mlflow_tracer import autolog_handler

pytestmark = FOREIGN_WARNINGS
__all__ = ["by_autolog", "traced"]
QA = '<p whiteSpace="pre">{{context_str}}</p><p>{{query_str}}</p>'
QUESTION = PomlPromptTemplate("<p>Say {{topic}}</p>", name="say")


@pytest.fixture
def prompt() -> PomlPromptTemplate:
    return PomlPromptTemplate(QA, name="qa")


@pytest.fixture
def engine(index: Any, scripted: Any, prompt: Any) -> Any:
    return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt)


@pytest.fixture(autouse=True)
def autolog_off() -> Iterator[None]:
    yield
    mlflow.llama_index.autolog(disable=True)


@pytest.fixture
def expected(traced: Any, engine: Any) -> str:
    """The tree of a query, with the handler alone."""
    with PomlCallbackHandler():
        (trace,) = traced(lambda: engine.query("What?"))
    return tree(trace)


def on() -> None:
    mlflow.llama_index.autolog()


def off() -> None:
    mlflow.llama_index.autolog(disable=True)


def switched(*steps: Callable[[], Any]) -> None:
    for one in steps:
        one()


def test_in_every_order_there_is_one_trace_of_all(traced: Any, engine: Any, expected: str) -> None:
    """Autolog before the handler and after it, off and on again; the trace is whole as long as one of them is there."""
    handler = PomlCallbackHandler()
    attach, detach = handler.attach, handler.detach
    for steps in ([on, attach], [off], [on], [detach], [attach], [off, on], [off, detach, attach], [on, on], [attach]):
        switched(*steps)
        traces = [tree(trace) for trace in traced(lambda: engine.query("What?"))]
        assert traces == [expected], steps
    switched(off, detach)
    assert traced(lambda: engine.query("What?")) == []


def test_a_handler_that_is_not_attached_never_stands_in_autologs_way(traced: Any, engine: Any, expected: str) -> None:
    """MLflow looks for a handler of its own kind in the dispatcher, and sets itself up where it finds none."""
    handler = PomlCallbackHandler()
    on()
    assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [expected]
    off()
    assert traced(lambda: engine.query("What?")) == []
    assert handler not in get_dispatcher().span_handlers


def test_autolog_switched_off_in_the_middle_of_a_query(
    traced: Any, index: Any, scripted: Any, prompt: Any, expected: str
) -> None:
    """MLflow forgets what its handler has open then; the trace would never be stored."""

    def switch(_: Any) -> str:
        off()
        return "Fine."

    on()
    engine = index.as_query_engine(llm=scripted(switch), text_qa_template=prompt)
    with PomlCallbackHandler():
        assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [expected]


def test_autolog_switched_on_in_the_middle_of_a_query(
    traced: Any, index: Any, scripted: Any, prompt: Any, expected: str
) -> None:
    def switch(_: Any) -> str:
        on()
        return "Fine."

    engine = index.as_query_engine(llm=scripted(switch), text_qa_template=prompt)
    with PomlCallbackHandler():
        assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [expected]


async def work(topic: str) -> str:
    """Work on a topic."""
    with mlflow.start_span("work"):
        return QUESTION.format(topic=topic)


@pytest.mark.parametrize("attached", [False, True], ids=["autolog alone", "with the handler"])
def test_the_poml_span_is_in_autologs_trace(
    traced: Any, index: Any, scripted: Any, tool_call: Any, prompt: Any, attached: bool
) -> None:
    on()
    handler = PomlCallbackHandler().attach() if attached else None

    def engine(**options: Any) -> Any:
        return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt, **options)

    async def agent() -> None:
        await FunctionAgent(tools=[work], llm=scripted(tool_call("work", topic="POML"), "Done.")).run("Work!")

    calls = {
        "ScriptedLLM.predict": lambda: engine().query("What?"),
        "ScriptedLLM.apredict": lambda: asyncio.run(engine().aquery("What?")),
        "ScriptedLLM.stream": lambda: "".join(engine(streaming=True).query("What?").response_gen),
        "work": lambda: asyncio.run(agent()),
    }
    try:
        for around, call in calls.items():
            (trace,) = traced(call)
            assert [parent(trace, span) for span in poml_spans(trace)] == [around]
        (trace,) = traced(lambda: QUESTION.format(topic="POML"))
        assert tree(trace) == "poml PROMPT"
    finally:
        if handler:
            handler.detach()


def test_the_handlers_settings_hold_for_the_poml_span_in_autologs_trace(
    traced: Any, scripted: Any, prompt: Any
) -> None:
    """Of the handler that is attached to the model, not of one that is attached elsewhere."""
    llm, other = scripted("Fine."), scripted("Fine.")
    handler = PomlCallbackHandler(mask=lambda _: {"inputs": "hidden"}).attach(llm)
    on()
    (trace,) = traced(lambda: llm.predict(prompt, context_str="a", query_str="b"))
    assert [span.inputs for span in poml_spans(trace)] == ["hidden"]
    (trace,) = traced(lambda: other.predict(prompt, context_str="a", query_str="b"))
    assert [span.inputs["context"]["query_str"] for span in poml_spans(trace)] == ["b"]
    handler.detach()


async def read(response: Any) -> str:
    return "".join([piece async for piece in response.async_response_gen()])


class Streams(Workflow):
    """A workflow whose result is a stream."""

    @step
    async def answer(self, start: StartEvent) -> StopEvent:
        return StopEvent(result=await start.engine.aquery("What?"))


STREAMS: dict[str, Callable[[Any], Any]] = {
    "sync": lambda index: "".join(index.as_query_engine(streaming=True).query("What?").response_gen),
    "async": lambda index: _aread(lambda: index.as_query_engine(streaming=True).aquery("What?")),
    "chat": lambda index: "".join(_chat(index).stream_chat("What?").response_gen),
    "async chat": lambda index: _aread(lambda: _chat(index).astream_chat("What?")),
    "closed": lambda index: _begun(index).response_gen.close(),
    "dropped": lambda index: _begun(index) and None,
    "never begun": lambda index: index.as_query_engine(streaming=True).query("What?") and None,
    "async, never begun": lambda index: asyncio.run(index.as_query_engine(streaming=True).aquery("What?")) and None,
    "a workflow's": lambda index: _aread(lambda: Streams().run(engine=index.as_query_engine(streaming=True))),
}


def _chat(index: Any) -> Any:
    return index.as_chat_engine(chat_mode="context")


def _begun(index: Any) -> Any:
    response = index.as_query_engine(streaming=True).query("What?")
    next(iter(response.response_gen))
    return response


def _aread(call: Callable[[], Any]) -> None:
    async def run() -> None:
        assert await read(await call())

    asyncio.run(run())


@pytest.mark.parametrize("model", ["chat", "completion"])
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_beside_autolog_is_traced_to_its_end(
    traced: Any, index: Any, scripted: Any, stream: Callable[[Any], Any], model: str
) -> None:
    Settings.llm = scripted("Word by word.", chat_model=model == "chat")
    with PomlCallbackHandler():
        (alone,) = traced(lambda: stream(index), at_least=1)
        on()
        (trace,) = traced(lambda: stream(index), at_least=1)
    assert tree(trace) == tree(alone)
    assert trace.data.spans[0].outputs == alone.data.spans[0].outputs
    left = autolog_handler()
    until(lambda: (left.open_spans, left._pending_spans, module._spans.alive) == ({}, {}, {}))


def test_a_stream_is_read_after_the_block_or_after_autolog_was_switched_off(
    traced: Any, index: Any, scripted: Any, prompt: Any
) -> None:
    """The model is called, and the prompt rendered, only when the first word is read."""

    def call(between: Callable[[], None]) -> None:
        engine = index.as_query_engine(llm=scripted("Word by word."), text_qa_template=prompt, streaming=True)
        with PomlCallbackHandler():
            response = engine.query("What?")
        between()
        assert "".join(response.response_gen) == "Word by word."

    (alone,) = traced(lambda: call(lambda: None))
    for between in (lambda: None, off):
        on()
        (trace,) = traced(partial(call, between))
        assert tree(trace) == tree(alone)
        assert trace.data.spans[0].outputs == "Word by word."
    assert module._spans.alive == {}


def test_a_stream_that_fails_beside_autolog_is_an_error_up_to_the_root(traced: Any, index: Any, scripted: Any) -> None:
    def call() -> None:
        llm = scripted(ConnectionError("cut off"))
        with pytest.raises(ConnectionError):
            list(index.as_query_engine(llm=llm, streaming=True).query("What?").response_gen)

    with PomlCallbackHandler():
        (alone,) = traced(call)
        on()
        (trace,) = traced(call)
    assert tree(trace) == tree(alone)
    (event,) = trace.data.spans[0].events
    assert event.attributes["exception.message"] == "cut off"


@pytest.mark.parametrize("part", ["_pending_spans", "_span_id_to_token", "get_span_for_event"])
def test_another_version_of_autologs_handler_costs_a_warning(
    traced: Any, engine: Any, expected: str, index: Any, scripted: Any, caplog: Any, monkeypatch: Any, part: str
) -> None:
    """MLflow with a private part renamed: what it traces is as it was, and its streams are its own to end."""
    other = ModuleType(mlflow_tracer.__name__)
    exec(inspect.getsource(mlflow_tracer).replace(part, "_renamed"), vars(other))
    monkeypatch.setitem(sys.modules, other.__name__, other)
    monkeypatch.setattr(tracer, "_SPANS", other.MlflowSpanHandler)
    monkeypatch.setattr(tracer, "_EVENTS", other.MlflowEventHandler)
    on()
    with PomlCallbackHandler(), caplog.at_level(logging.WARNING, "pomlflow"):
        assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [expected]
        for _ in range(2):
            streaming = index.as_query_engine(llm=scripted("Word by word."), streaming=True)
            assert "".join(streaming.query("What?").response_gen) == "Word by word."
    (record,) = caplog.records
    assert f"no LlamaIndex tracer that is known (['MlflowSpanHandler.{part}'])" in record.getMessage()
    assert module._spans.alive == {}


def test_mlflows_own_tracer_still_never_ends_a_completions_stream(traced: Any, index: Any, scripted: Any) -> None:
    """When this fails, MLflow ends such a stream by itself: see whether `left_span.py` is still needed."""
    engine = index.as_query_engine(llm=scripted("Fine.", chat_model=False), streaming=True)
    on()
    (trace,) = traced(lambda: "".join(engine.query("What?").response_gen))
    assert trace.info.state.value == "IN_PROGRESS"


def test_mlflows_own_tracer_still_nests_beside_the_users_span(traced: Any, by_autolog: Any, scripted: Any) -> None:
    """When this fails, MLflow nests in the user's own spans by itself, and the third reason in `spans.py` is gone."""

    def think(_: Any) -> str:
        with mlflow.start_span("thought"):
            scripted("Inner.").complete("inner")
        return "Fine."

    (reference,) = by_autolog(lambda: scripted(think).complete("Hello"))
    assert reference.splitlines()[1:] == ["  thought UNKNOWN", "  ScriptedLLM.complete LLM"]
    with PomlCallbackHandler():
        (trace,) = traced(lambda: scripted(think).complete("Hello"))
    assert without_poml(tree(trace)).splitlines()[1:] == ["  thought UNKNOWN", "    ScriptedLLM.complete LLM"]


def test_mlflows_own_tracer_still_loses_what_outlives_its_trace(by_autolog: Any, scripted: Any) -> None:
    """When this fails, MLflow begins a new trace by itself, and the fourth reason in `spans.py` is gone."""
    llm = scripted("Fine.")
    later: list[asyncio.Task[Any]] = []

    async def calls() -> None:
        def begin(_: Any) -> str:
            later.append(asyncio.ensure_future(llm.acomplete("Later")))
            return "Fine."

        await scripted(begin).acomplete("First")
        await later[0]

    assert by_autolog(lambda: asyncio.run(calls())) == ["ScriptedLLM.acomplete LLM"]
