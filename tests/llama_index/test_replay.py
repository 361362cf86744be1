"""LlamaIndex's traces rendered once more from what they hold, out of a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

import mlflow
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from tests.llama_index.traces import FOREIGN_WARNINGS
from tests.templates import write

import pomlflow
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

pytestmark = FOREIGN_WARNINGS

MARKUP = """\
<poml>
  <system-msg><include src="tone.poml"/></system-msg>
  <human-msg><p>{{context_str}}</p><p>{{query_str}}</p></human-msg>
</poml>
"""


@pytest.fixture(autouse=True)
def folder(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the prompt."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p" / "tone.poml", "<p>Be kind.</p>")
    write(tmp_path / "p" / "a.poml", MARKUP)
    return tmp_path


def last_trace() -> str:
    trace_id = mlflow.get_last_active_trace_id()
    assert trace_id is not None
    return trace_id


def test_a_query_is_replayed_with_the_whitespace_of_its_nodes(index: Any, scripted: Any, folder: Path) -> None:
    prompt = PomlPromptTemplate.from_file("p/a.poml", register=False)
    llm = scripted("Fine.")
    with PomlCallbackHandler():
        index.as_query_engine(llm=llm, text_qa_template=prompt).query("def f():\n\treturn  1")
    trace_id = last_trace()
    replayed = pomlflow.replay(trace_id)
    assert [str(render) for render in replayed.renders] == ["poml p.a (p/a.poml): identical"]
    (render,) = replayed.renders
    assert render.record is not None
    assert "def f():\n\treturn  1" in render.record.result()["messages"][1]["content"]

    write(folder / "p" / "tone.poml", "<p>Be brief.</p>")
    (render,) = pomlflow.replay(trace_id).renders
    assert [str(difference) for difference in render.differences] == ["messages[0].content\n- Be kind.\n+ Be brief."]
    assert render.reasons[0].startswith("p/tone.poml has changed: ")


def test_a_native_history_is_replayed(scripted: Any) -> None:
    """Blocks of tools that POML's own messages cannot hold."""
    call = ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"at": "sea"})
    history = [
        ChatMessage(role="user", content="Look."),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="grey", additional_kwargs={"tool_call_id": "c1", "name": "look"}),
    ]
    prompt = PomlPromptTemplate('<poml><conversation messages="{{h}}"/><human-msg>{{q}}</human-msg></poml>')
    with PomlCallbackHandler():
        scripted("Fine.").predict(prompt, h=history, q="Why?")
    (render,) = pomlflow.replay(last_trace()).renders
    assert (render.outcome, render.differences) == ("identical", ())
    assert render.record is not None
    assert [message["speaker"] for message in render.record.result()["messages"]] == ["human", "ai", "tool", "human"]
