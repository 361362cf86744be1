"""The traces of calls of a bound model."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core.callbacks import CallbackManager
from tests.llama_index.traces import poml_spans, span_named, tree

from pomlflow.exceptions import MissingVariableError
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

MARKUP = """<poml><runtime temperature="0.2"/>
<tool-definition name="weather" description="Tells the weather.">{"type": "object", "properties": {}}</tool-definition>
<p>{{q}}</p></poml>"""


@pytest.fixture
def prompt() -> PomlPromptTemplate:
    return PomlPromptTemplate(MARKUP, name="ask")


def _drain(bound: Any) -> None:
    async def run() -> None:
        [piece async for piece in await bound.astream_chat(q="Why?")]
        [piece async for piece in await bound.astream(q="Why?")]
        await bound.apredict(q="Why?")

    list(bound.stream_chat(q="Why?"))
    list(bound.stream(q="Why?"))
    asyncio.run(run())


def _tree(verb: str, inner: str, *, tools: bool = True) -> str:
    """As for any call with tools: LlamaIndex has a span for the conversion of tools."""
    prepared = "  ScriptedLLM._prepare_chat_with_tools LLM\n" if tools else ""
    return f"PomlLLM.{verb} CHAIN\n  poml ask PROMPT\n{prepared}  ScriptedLLM.{inner} CHAT_MODEL"


TREES = [
    _tree("stream_chat", "stream_chat"),
    _tree("stream", "stream_chat"),
    _tree("astream_chat", "astream_chat"),
    _tree("astream", "astream_chat"),
    _tree("apredict", "achat"),
]


def test_a_call_is_one_trace_with_the_settings_on_the_models_span(traced: Any, scripted: Any, prompt: Any) -> None:
    with PomlCallbackHandler():
        (trace,) = traced(lambda: prompt.bind_to(scripted("So."), seed=7).chat(q="Why?"))
    assert tree(trace) == _tree("chat", "chat")
    model = span_named(trace, "ScriptedLLM.chat")
    assert model.inputs["kwargs"] == {"temperature": 0.2, "seed": 7, "tools": ["weather"]}
    assert poml_spans(trace)[0].outputs["runtime"] == {"temperature": 0.2}
    assert trace.data.spans[0].inputs["variables"] == {"q": "Why?"}
    assert trace.data.spans[0].outputs["message"]["blocks"][0]["text"] == "So."


def test_streams_and_async_calls_are_traced_completely(traced: Any, scripted: Any, prompt: Any) -> None:
    with PomlCallbackHandler():
        traces = traced(lambda: _drain(prompt.bind_to(scripted("So it is."))))
    assert [tree(trace) for trace in traces] == TREES
    for trace in traces:
        assert trace.info.state == "OK"
        assert "So it is." in str(trace.data.spans[0].outputs)


def test_a_structured_stream_is_traced_completely(traced: Any, scripted: Any) -> None:
    schema = '<output-schema>{"type": "object", "properties": {"a": {"type": "string"}}}</output-schema>'
    prompt = PomlPromptTemplate(f"<poml>{schema}<p>{{{{q}}}}</p></poml>", name="ask")
    bound = prompt.bind_to(scripted('{"a": "b c d"}', calls_functions=False))
    with PomlCallbackHandler():
        (trace,) = traced(lambda: list(bound.stream_structured_predict(q="Why?")))
    assert tree(trace) == _tree("stream_structured_predict", "stream_chat", tools=False)


def test_autolog_alone_gives_the_same_trees(traced: Any, scripted: Any, prompt: Any) -> None:
    mlflow.llama_index.autolog()
    try:
        (trace,) = traced(lambda: prompt.bind_to(scripted("So.")).predict(q="Why?"))
    finally:
        mlflow.llama_index.autolog(disable=True)
    assert tree(trace) == _tree("predict", "chat")


def test_a_failed_render_is_the_calls_error(traced: Any, scripted: Any, prompt: Any) -> None:
    def call() -> None:
        with pytest.raises(MissingVariableError):
            prompt.bind_to(scripted()).chat()

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert tree(trace) == "PomlLLM.chat CHAIN ERROR\n  poml ask PROMPT ERROR"


@pytest.mark.parametrize("to", ["bound", "model", "manager"])
def test_a_handler_of_the_model_traces_the_whole_call(traced: Any, scripted: Any, prompt: Any, to: str) -> None:
    handler = PomlCallbackHandler()
    llm = scripted("So.", **({"callback_manager": CallbackManager([handler])} if to == "manager" else {}))
    bound = prompt.bind_to(llm)
    if to != "manager":
        handler.attach(bound if to == "bound" else llm)
    (trace,) = traced(lambda: bound.chat(q="Why?"))
    assert tree(trace) == _tree("chat", "chat")
    assert traced(lambda: prompt.bind_to(scripted("So.")).chat(q="Why?")) == []
    handler.detach()


def test_the_trace_is_linked_to_the_prompts_version(traced: Any, linked: Any, scripted: Any) -> None:
    name = f"ask-{uuid.uuid4().hex[:8]}"
    bound = PomlPromptTemplate(MARKUP, name=name).bind_to(scripted("So."))
    with PomlCallbackHandler():
        (trace,) = traced(lambda: bound.chat(q="Why?"))
    assert linked(trace) == [f"{name}/1"]
