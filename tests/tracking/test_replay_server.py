"""Replays of plain renders and of both frameworks from a real ``mlflow server``, which serves the artifacts too."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import MlflowServer
from tests.templates import write
from tests.tracking.test_replay import PICTURE

import pomlflow
from pomlflow.template import Template
from pomlflow.tracking.spans import log_render

pytestmark = [
    pytest.mark.server,
    # LlamaIndex 0.14: building an engine reads pydantic's deprecated `__fields__`.
    pytest.mark.filterwarnings("ignore:The `__(fields|fields_set)__` attribute is deprecated"),
]
MARKUP = (
    '<poml><system-msg><include src="tone.poml"/></system-msg>'
    '<human-msg><img base64="{{picture}}"/><p>{{query_str}}</p><p>{{context_str}}</p></human-msg></poml>'
)
GIVEN = {"query_str": "Why?", "context_str": "It is\n\tgrey.", "picture": base64.b64encode(PICTURE).decode()}


def plain() -> str:
    with mlflow.start_span("chain") as span:
        log_render(Template(path="p/a.poml").render(GIVEN), parent=span, register=False)
    return str(span.trace_id)


def langchain() -> str:
    pytest.importorskip("langchain_core")
    from langchain_core.runnables import RunnableLambda

    from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

    chain = PomlPromptTemplate.from_file("p/a.poml", register=False) | RunnableLambda(lambda value: len(str(value)))
    chain.invoke(GIVEN, {"callbacks": [PomlCallbackHandler()]})
    return str(mlflow.get_last_active_trace_id())


def llama_index() -> str:
    pytest.importorskip("llama_index.core")
    from llama_index.core.llms import MockLLM
    from llama_index.core.response_synthesizers import get_response_synthesizer
    from llama_index.core.schema import NodeWithScore, TextNode

    from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

    prompt = PomlPromptTemplate.from_file("p/a.poml", register=False).partial_format(picture=GIVEN["picture"])
    synthesizer = get_response_synthesizer(llm=MockLLM(), text_qa_template=prompt)
    with PomlCallbackHandler():
        synthesizer.synthesize(GIVEN["query_str"], [NodeWithScore(node=TextNode(text=GIVEN["context_str"]))])
    return str(mlflow.get_last_active_trace_id())


@pytest.mark.parametrize("run", [plain, langchain, llama_index])
def test_a_trace_on_a_server_is_replayed(
    run: Callable[[], str],
    mlflow_server: MlflowServer,
    use_server: Callable[[MlflowServer], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its pictures, from the server's artifacts."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p" / "tone.poml", "<p>Be kind.</p>")
    write(tmp_path / "p" / "a.poml", MARKUP)
    use_server(mlflow_server)
    trace_id = run()
    replayed = pomlflow.replay(trace_id)
    assert [str(render) for render in replayed.renders] == [f"{replayed.renders[0].title} (p/a.poml): identical"]
    kept = "It is\n\tgrey." if run is llama_index else "It is grey."
    assert kept in str(replayed.renders[0].record.result()["messages"]).replace("\\n", "\n").replace("\\t", "\t")
    (stored,) = [span for span in mlflow.get_trace(trace_id).data.spans if "poml.digest" in span.attributes]
    assert stored.inputs["context"]["picture"].startswith("mlflow-attachment://")

    write(tmp_path / "p" / "tone.poml", "<p>Be brief.</p>")
    (render,) = pomlflow.replay(trace_id).renders
    assert [str(difference) for difference in render.differences] == ["messages[0].content\n- Be kind.\n+ Be brief."]
    assert render.reasons[0].startswith("p/tone.poml has changed: ")
