"""Each prompt content is one version, linked to the traces of its renders, and of the runs that its text reaches."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from mlflow.genai import load_prompt
from tests.llama_index.traces import FOREIGN_WARNINGS, linked, named, poml_spans, traced
from tests.mlflow_server import until
from tests.pending import forget_pending

from pomlflow.exceptions import PomlError
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.tracking.publish import PromptRegistry, flush

pytestmark = FOREIGN_WARNINGS
__all__ = ["linked", "traced"]
AT_IMPORT = PomlPromptTemplate("<p>Hello {{name}}</p>", name=f"at-import-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def unique() -> str:
    """A name that no other test has: the registry is the whole run's."""
    return f"qa-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def prompt(unique: str) -> PomlPromptTemplate:
    return PomlPromptTemplate('<p whiteSpace="pre">{{context_str}}</p><p>{{query_str}}</p>', name=unique)


@pytest.fixture
def make(index: Any, scripted: Any, prompt: Any) -> Callable[..., Any]:
    def engine(**options: Any) -> Any:
        return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt, **options)

    return engine


def versions(name: str) -> int:
    client = mlflow.MlflowClient()
    return len(list(client.search_prompt_versions(name))) if client.get_prompt(name) else 0


def test_queries_make_one_version_and_are_each_linked(traced: Any, linked: Any, make: Any, unique: str) -> None:
    async def several() -> None:
        engine = make()
        await asyncio.gather(*(engine.aquery(f"What {number}?") for number in range(5)))

    with PomlCallbackHandler():
        traces = traced(lambda: asyncio.run(several()))
        traces += traced(lambda: "".join(make(streaming=True).query("What?").response_gen))
    assert len(traces) == 6
    assert [linked(trace) for trace in traces] == [[f"{unique}/1"]] * 6
    assert versions(unique) == 1
    assert load_prompt(f"prompts:/{unique}/1").template == poml_spans(traces[0])[0].inputs["prompt"]


def test_a_prompt_made_at_import_is_linked_to_every_later_trace(traced: Any, linked: Any, scripted: Any) -> None:
    """MLflow itself links a prompt only to the trace that it was loaded in."""
    with PomlCallbackHandler():
        traces = traced(lambda: [scripted("x").predict(AT_IMPORT, name="Ada") for _ in range(2)])
    assert [linked(trace) for trace in traces] == [[f"{AT_IMPORT.name}/1"]] * 2


def test_the_span_tells_its_version_and_the_prompt_finds_its_traces(
    traced: Any, linked: Any, mlflow_store: str, make: Any, unique: str
) -> None:
    engine = make()
    with PomlCallbackHandler():
        traced(lambda: engine.query("First?"))
        assert flush(30)
        (trace,) = traced(lambda: engine.query("Second?"))
    assert poml_spans(trace)[0].attributes["poml.prompt"] == f"prompts:/{unique}/1"
    assert linked(trace) == [f"{unique}/1"]

    def searched() -> int:
        return len(mlflow.search_traces(locations=[mlflow_store], filter_string=f"prompt = '{unique}/1'"))

    until(lambda: searched() == 2)


def test_another_content_is_another_version(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    with PomlCallbackHandler():
        first, second = (
            traced(lambda markup=markup: scripted("x").predict(PomlPromptTemplate(markup, name=unique)))[0]
            for markup in ("<p>One</p>", "<p>Two</p>")
        )
    assert linked(first) + linked(second) == [f"{unique}/1", f"{unique}/2"]


@pytest.mark.parametrize(
    ("template", "handler", "expected"),
    [(None, True, 1), (None, False, 0), (False, True, 0), (True, False, 1)],
)
def test_the_template_decides_before_the_handler(
    traced: Any, linked: Any, scripted: Any, unique: str, template: bool | None, handler: bool, expected: int
) -> None:
    prompt = PomlPromptTemplate("<p>Hello</p>", name=unique, register=template)
    with PomlCallbackHandler(register=handler):
        (trace,) = traced(lambda: scripted("x").predict(prompt))
    assert len(linked(trace)) == expected
    assert versions(unique) == expected


def test_inline_markup_without_a_name_is_not_registered(traced: Any, linked: Any, scripted: Any) -> None:
    with PomlCallbackHandler():
        (trace,) = traced(lambda: scripted("x").predict(PomlPromptTemplate("<p>Hello</p>")))
    assert linked(trace) == []


def test_a_failed_render_makes_no_version(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    def call() -> None:
        with pytest.raises(PomlError):
            scripted("x").predict(PomlPromptTemplate("<p>{{a.b.c}}</p>", name=unique), a=1)

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert linked(trace) == []
    assert versions(unique) == 0


SYSTEM = "<p>You are a patient teacher of {{subject}}, and you never give the answer away.</p>"


def test_an_agents_prompt_is_linked_to_each_run(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    """It is rendered before there is a handler, and its model knows the render."""
    system = PomlPromptTemplate(SYSTEM, name=unique)
    agents = [
        FunctionAgent(**system.agent_kwargs(scripted("Fine."), subject="algebra")),
        ReActAgent(**system.agent_kwargs(scripted("Thought: I can answer.\nAnswer: Fine."), subject="logic")),
    ]

    async def run(agent: Any) -> None:
        await agent.run("Hello")

    handler = PomlCallbackHandler().attach(*agents)
    for agent in agents:
        for _ in range(2):
            (trace,) = traced(lambda agent=agent: asyncio.run(run(agent)))
            assert linked(trace) == [f"{unique}/1"]
            (mark,) = named(trace, "ScriptedLLM.astream_chat").attributes["poml.prompts"]
            assert mark["name"] == unique
            assert poml_spans(trace) == []
    assert mark["uri"] == f"prompts:/{unique}/1"
    assert versions(unique) == 1
    handler.detach()


def test_an_agents_model_is_linked_in_its_other_calls(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    llm = PomlPromptTemplate(SYSTEM, name=unique).agent_kwargs(scripted("Fine."), subject="geometry")["llm"]
    with PomlCallbackHandler():
        traces = [
            *traced(lambda: SimpleChatEngine.from_defaults(llm=llm).chat("Hello")),
            *traced(lambda: llm.predict(PromptTemplate("Hello"))),
            *traced(lambda: list(llm.stream_complete("Hello"))),
        ]
        (other,) = traced(lambda: scripted("x").complete("Something else"))
    assert [linked(trace) for trace in traces] == [[f"{unique}/1"]] * 3
    assert linked(other) == []
    assert "poml.prompts" not in other.data.spans[0].attributes


def test_what_was_rendered_in_a_trace_marks_no_model(traced: Any, make: Any) -> None:
    """Its own span is in the trace already."""
    with PomlCallbackHandler():
        (trace,) = traced(lambda: make().query("What?"))
    assert "poml.prompts" not in named(trace, "ScriptedLLM.chat").attributes


def test_an_agents_prompt_is_linked_to_autologs_trace(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    llm = PomlPromptTemplate(SYSTEM, name=unique).agent_kwargs(scripted("x"), subject="algebra")["llm"]
    mlflow.llama_index.autolog()
    try:
        with PomlCallbackHandler():
            (trace,) = traced(lambda: llm.complete("Hello"))
    finally:
        mlflow.llama_index.autolog(disable=True)
    assert linked(trace) == [f"{unique}/1"]


def test_a_server_that_is_away_costs_no_answer_and_one_warning(
    mlflow_store: str, make: Any, caplog: Any, monkeypatch: Any
) -> None:
    """Registry and store refuse; the query goes on, and the outage is told once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_registry_uri()
    mlflow.set_registry_uri("http://127.0.0.1:9")
    try:
        with PomlCallbackHandler(), caplog.at_level(logging.WARNING, "pomlflow"):
            for _ in range(3):
                assert str(make().query("What?")) == "Fine."
            flush(1)
        told = [record for record in caplog.records if record.name == "pomlflow"]
        assert len(told) == 1
    finally:
        mlflow.set_registry_uri(before)
        forget_pending(PromptRegistry.shared())
