"""With ``mlflow.llama_index.autolog()`` on as well, no span is stored twice and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.instrumentation import get_dispatcher
from tests.llama_index.traces import parent, poml_spans, tree

from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

QUESTION = PomlPromptTemplate("<p>Say {{topic}}</p>", name="say")


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


def test_in_every_order_there_is_one_complete_trace(traced: Any, engine: Any, expected: str) -> None:
    """Autolog before the handler and after it, off and on again; the trace is complete while one of them is on."""
    handler = PomlCallbackHandler()
    attach, detach = handler.attach, handler.detach
    for steps in ([on, attach], [off], [on], [detach], [attach], [off, on], [off, detach, attach], [on, on], [attach]):
        switched(*steps)
        traces = [tree(trace) for trace in traced(lambda: engine.query("What?"))]
        assert traces == [expected], steps
    switched(off, detach)
    assert traced(lambda: engine.query("What?")) == []


def test_a_handler_that_is_not_attached_does_not_affect_autolog(traced: Any, engine: Any, expected: str) -> None:
    """MLflow adds its handler only if the dispatcher has none of its class."""
    handler = PomlCallbackHandler()
    on()
    assert [tree(trace) for trace in traced(lambda: engine.query("What?"))] == [expected]
    off()
    assert traced(lambda: engine.query("What?")) == []
    assert handler not in get_dispatcher().span_handlers


def test_autolog_may_be_switched_on_in_the_middle_of_a_query(
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
    """The settings of the handler that is attached to the model, not of another one."""
    llm, other = scripted("Fine."), scripted("Fine.")
    handler = PomlCallbackHandler(mask=lambda _: {"inputs": "hidden"}).attach(llm)
    on()
    (trace,) = traced(lambda: llm.predict(prompt, context_str="a", query_str="b"))
    assert [span.inputs for span in poml_spans(trace)] == ["hidden"]
    (trace,) = traced(lambda: other.predict(prompt, context_str="a", query_str="b"))
    assert [span.inputs["context"]["query_str"] for span in poml_spans(trace)] == ["b"]
    handler.detach()


def test_mlflows_own_tracer_still_loses_tasks_that_outlive_their_trace(autolog_trees: Any, scripted: Any) -> None:
    """When this fails, MLflow begins a new trace by itself, and its workaround can go."""
    llm = scripted("Fine.")
    later: list[asyncio.Task[Any]] = []

    async def calls() -> None:
        def begin(_: Any) -> str:
            later.append(asyncio.ensure_future(llm.acomplete("Later")))
            return "Fine."

        await scripted(begin).acomplete("First")
        await later[0]

    assert autolog_trees(lambda: asyncio.run(calls())) == ["ScriptedLLM.acomplete LLM"]
