"""LlamaIndex's queries and agents linked to prompt versions; what both frameworks do is in tests/adapters."""

from __future__ import annotations

import asyncio
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
from tests.llama_index.traces import QA, poml_spans, span_named

from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate


@pytest.fixture
def unique() -> str:
    """A name that no other test uses: all tests share one registry."""
    return f"qa-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def prompt(unique: str) -> PomlPromptTemplate:
    return PomlPromptTemplate(QA, name=unique)


@pytest.fixture
def query_engine(index: Any, scripted: Any, prompt: Any) -> Callable[..., Any]:
    def engine(**options: Any) -> Any:
        return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt, **options)

    return engine


def versions(name: str) -> int:
    client = mlflow.MlflowClient()
    return len(list(client.search_prompt_versions(name))) if client.get_prompt(name) else 0


SYSTEM = "<p>You are a patient teacher of {{subject}}, and you never give the answer away.</p>"


def test_an_agents_prompt_is_linked_to_each_run(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    """It is rendered before there is a handler, and its model holds the record of the render."""
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
            (mark,) = span_named(trace, "ScriptedLLM.astream_chat").attributes["poml.prompts"]
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


def test_a_prompt_of_an_engine_is_linked_to_each_query_and_to_no_models_span(
    traced: Any, linked: Any, query_engine: Any, unique: str
) -> None:
    """Its own span is in the trace already."""
    with PomlCallbackHandler():
        (trace,) = traced(lambda: query_engine().query("What?"))
        (streamed,) = traced(lambda: "".join(query_engine(streaming=True).query("What?").response_gen))
    assert [linked(trace), linked(streamed)] == [[f"{unique}/1"]] * 2
    assert versions(unique) == 1
    assert "poml.prompts" not in span_named(trace, "ScriptedLLM.chat").attributes


def test_an_agents_prompt_is_linked_to_autologs_trace(traced: Any, linked: Any, scripted: Any, unique: str) -> None:
    llm = PomlPromptTemplate(SYSTEM, name=unique).agent_kwargs(scripted("x"), subject="algebra")["llm"]
    mlflow.llama_index.autolog()
    try:
        with PomlCallbackHandler():
            (trace,) = traced(lambda: llm.complete("Hello"))
    finally:
        mlflow.llama_index.autolog(disable=True)
    assert linked(trace) == [f"{unique}/1"]
