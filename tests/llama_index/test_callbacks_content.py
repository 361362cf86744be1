"""The stored content of LlamaIndex's components, without and with a mask; see also tests/adapters."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import AudioBlock, ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from mlflow.llama_index import tracer as mlflow_tracer
from tests.llama_index.traces import open_spans, poml_spans, span_named, tree
from tests.spans import everything, hide

from pomlflow.exceptions import RenderError
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.settings import configure

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def test_the_stored_content_is_that_of_autolog(traced: Any, index: Any, scripted: Any, prompt: Any) -> None:
    """Inputs, outputs and attributes of every span, but for ids and times."""

    def stored() -> list[Any]:
        engine = index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt)
        (trace,) = traced(lambda: engine.query("What?"))
        spans = [span for span in trace.data.spans if not span.name.startswith("poml")]
        assert len(spans) > 10
        return [
            (span.name, span.inputs, _without_ids(span.outputs), _without_ids(dict(span.attributes))) for span in spans
        ]

    mlflow.llama_index.autolog()
    try:
        reference = stored()
    finally:
        mlflow.llama_index.autolog(disable=True)
    with PomlCallbackHandler():
        assert stored() == reference


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        volatile = {"mlflow.traceRequestId", "mlflow.spanInputs", "mlflow.spanOutputs"}
        return {key: _without_ids(item) for key, item in value.items() if key not in volatile}
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    return value


def test_tools_and_token_counts_are_stored(traced: Any, scripted: Any, tool_call: Any) -> None:
    def counted(_: Any) -> ChatMessage:
        return tool_call("add", a=1, b=2)

    async def call() -> None:
        await FunctionAgent(tools=[add], llm=scripted(counted, "Three.")).run("1 + 2?")

    with PomlCallbackHandler():
        (trace,) = traced(lambda: asyncio.run(call()))
    tool = span_named(trace, "FunctionTool.acall")
    assert (tool.attributes["name"], tool.outputs["raw_output"]) == ("add", 3)
    assert trace.data.spans[0].attributes["mlflow.spanType"] == "AGENT"

    response = ChatResponse(
        message=ChatMessage("Hi"), raw={"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    )
    model = scripted()
    with PomlCallbackHandler():
        (trace,) = traced(lambda: _chat_with(model, response))
    assert trace.data.spans[0].attributes["mlflow.chat.tokenUsage"] == {
        "input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": 7,
    }


def _chat_with(model: Any, response: ChatResponse) -> None:
    from llama_index.core.llms.callbacks import llm_chat_callback

    kind = type("Counting", (type(model),), {"chat": llm_chat_callback()(lambda self, messages, **_: response)})
    kind().chat([ChatMessage("Hello")])


@pytest.mark.parametrize(("mask", "limit"), [(None, 0), (None, 100_000), (lambda content: content, 0)])
def test_media_are_attachments_and_not_inline(
    traced: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch, mask: Any, limit: int
) -> None:
    configure(max_content=limit)
    picture, sound = (ASSETS / "box.png").read_bytes(), (ASSETS / "tone.wav").read_bytes()
    prompt = PomlPromptTemplate(f'<p>See <img src="{(ASSETS / "box.png").as_posix()}" syntax="multimedia"/></p>')
    blocks = [TextBlock(text="See and hear"), ImageBlock(image=picture), AudioBlock(audio=sound, format="wav")]
    answer = ChatMessage(role="assistant", blocks=[TextBlock(text="Here."), ImageBlock(image=picture)])

    def call() -> None:
        scripted(answer).chat([ChatMessage(role="user", blocks=blocks)])
        scripted("Fine.").predict(prompt)

    with PomlCallbackHandler(mask=mask):
        chat, predict = traced(call)
    shown = chat.data.spans[0].inputs["messages"][0]["blocks"]
    assert shown[0]["text"] == "See and hear"
    assert shown[1]["image"].startswith("mlflow-attachment://")
    assert shown[2]["audio"].startswith("mlflow-attachment://")
    assert "content_type=audio%2Fwav" in shown[2]["audio"]
    assert chat.data.spans[0].outputs["message"]["blocks"][1]["image"].startswith("mlflow-attachment://")
    for trace in (chat, predict):
        assert "iVBORw0KGgo" not in everything(trace)
        assert "UklGR" not in everything(trace)
    (part,) = [part for part in poml_spans(predict)[0].outputs["messages"][0]["content"] if part["type"] != "text"]
    assert part["image_url"]["url"].startswith("mlflow-attachment://")


def test_a_mask_applies_to_all_stored_content(traced: Any, index: Any, scripted: Any) -> None:
    """Also attributes, streams, prompts and their variables, and the error of a render without a run."""
    prompt = PomlPromptTemplate("<p>secret {{context_str}} {{query_str}}</p>", name="qa")

    def call() -> None:
        engine = index.as_query_engine(llm=scripted("A secret answer."), text_qa_template=prompt)
        engine.query("What secret?")
        streaming = index.as_query_engine(llm=scripted("A secret answer."), text_qa_template=prompt, streaming=True)
        "".join(streaming.query("What secret?").response_gen)
        scripted("A secret answer.").complete("The secret prompt", formatted=True)
        with pytest.raises(RenderError):
            PomlPromptTemplate("<p>{{ (() => { throw new Error('secret ' + a) })() }}</p>").format(a="secret")

    with PomlCallbackHandler(mask=hide):
        traces = traced(call)
    assert len(traces) == 4
    for trace in traces:
        assert "secret" not in everything(trace)
        assert "***" in everything(trace)
    query, stream, complete, render = traces
    assert query.data.spans[0].outputs["response"] == "A *** answer."
    assert stream.data.spans[0].outputs == "A *** answer."
    assert complete.data.spans[0].attributes["mlflow.llm.model"] == "scripted"
    assert tree(render) == "poml PROMPT ERROR"


def test_a_handler_that_fails_warns_once_and_affects_no_call(
    traced: Any, scripted: Any, caplog: Any, monkeypatch: Any
) -> None:
    """LlamaIndex silently ignores exceptions of its handlers."""

    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("broken")

    monkeypatch.setattr(mlflow, "start_span_no_context", fail)
    with PomlCallbackHandler(), caplog.at_level(logging.WARNING, "pomlflow"):
        assert traced(lambda: [scripted("Fine.").complete("x") for _ in range(2)]) == []
    assert [record.getMessage() for record in caplog.records] == [
        "A LlamaIndex span could not be traced: LookupError('broken') (further warnings suppressed)"
    ]


def _span_handler() -> Any:
    handler = PomlCallbackHandler()
    (ours,) = [one for one in get_dispatcher().span_handlers if one.class_name() == "PomlSpanHandler"]
    del handler
    return ours


def test_an_unknown_version_of_mlflows_tracer_loses_span_types_only(
    traced: Any, scripted: Any, prompt: Any, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.delattr(mlflow_tracer.MlflowSpanHandler, "_get_span_type")
    monkeypatch.setattr(_span_handler(), "mlflow", None)
    with caplog.at_level(logging.WARNING, "pomlflow"):
        get_dispatcher().span_handlers = []
        PomlCallbackHandler().attach().detach()
        PomlCallbackHandler().attach().detach()
    (record,) = caplog.records
    assert (
        "MLflow's own tracer differs ('MlflowSpanHandler' object has no attribute '_get_span_type')" in record.message
    )
    with PomlCallbackHandler():
        (trace,) = traced(lambda: scripted("Fine.").predict(prompt, context_str="a", query_str="b"))
    assert tree(trace) == "ScriptedLLM.predict UNKNOWN\n  poml qa PROMPT\n  ScriptedLLM.chat UNKNOWN"


def test_the_dispatchers_shutdown_ends_open_spans(traced: Any, scripted: Any) -> None:
    def end(_: Any) -> str:
        get_dispatcher().shutdown()
        return "Fine."

    with PomlCallbackHandler():
        (trace,) = traced(lambda: scripted(end).complete("x"))
    assert tree(trace) == "ScriptedLLM.complete LLM ERROR"
    assert open_spans() == 0


def test_other_handlers_receive_the_same_events(traced: Any, scripted: Any, prompt: Any) -> None:
    seen: list[str] = []

    class Other(BaseSpanHandler[Any]):
        def new_span(self, id_: str, **_: Any) -> None:
            seen.append(id_.partition("-")[0])

        def prepare_to_exit_span(self, **_: Any) -> None: ...

        def prepare_to_drop_span(self, **_: Any) -> None: ...

    get_dispatcher().add_span_handler(Other())
    with PomlCallbackHandler():
        traced(lambda: scripted("Fine.").predict(prompt, context_str="a", query_str="b"))
    assert seen == ["ScriptedLLM.predict", "ScriptedLLM.chat"]
