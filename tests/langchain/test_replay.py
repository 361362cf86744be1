"""LangChain's traces rendered once more from what they hold, out of a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from tests.langchain.prompts import Model
from tests.langchain.trees import QUIET
from tests.templates import write

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

pytestmark = QUIET

MARKUP = """\
<poml>
  <system-msg>You are {{role}}. <include src="tone.poml"/></system-msg>
  <conversation messages="{{history}}" selectedMessages="-4:"/>
  <human-msg><img src="box.png" syntax="multimedia"/>{{question}}</human-msg>
</poml>
"""
PICTURE = Path(__file__).parents[1] / "corpus" / "assets" / "box.png"
HISTORY: list[BaseMessage] = [
    HumanMessage("left out"),
    HumanMessage("Look."),
    AIMessage("", tool_calls=[{"id": "c1", "name": "look", "args": {"at": "sea", "deep": [1, None]}}]),
    ToolMessage("grey", tool_call_id="c1", name="look"),
    AIMessage([{"type": "text", "text": "Grey."}], id="a1", name="mate"),
]


@pytest.fixture(autouse=True)
def folder(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the prompt."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p" / "tone.poml", "<p>Be kind.</p>")
    write(tmp_path / "p" / "a.poml", MARKUP)
    (tmp_path / "p" / "box.png").write_bytes(PICTURE.read_bytes())
    return tmp_path


def last_trace() -> str:
    trace_id = mlflow.get_last_active_trace_id()
    assert trace_id is not None
    return trace_id


@pytest.fixture
def chain() -> Any:
    return PomlPromptTemplate.from_file("p/a.poml", register=False) | Model() | StrOutputParser()


def test_a_chain_is_replayed_with_its_native_history(chain: Any, folder: Path) -> None:
    """Tool calls, ids and names of messages that POML's own messages cannot hold, a picture and an include."""
    given = {"role": "a mate", "history": HISTORY, "question": "Why?"}
    chain.invoke(given, {"callbacks": [PomlCallbackHandler()]})
    trace_id = last_trace()
    replayed = pomlflow.replay(trace_id)
    assert [str(render) for render in replayed.renders] == ["poml p.a (p/a.poml): identical"]
    (render,) = replayed.renders
    assert render.record is not None
    assert [message["speaker"] for message in render.record.result()["messages"]] == [
        "system", "human", "ai", "tool", "ai", "human"
    ]  # fmt: skip

    write(folder / "p" / "tone.poml", "<p>Be brief.</p>")
    (render,) = pomlflow.replay(trace_id).renders
    assert [str(difference) for difference in render.differences] == ["messages[0].content\n- Be kind.\n+ Be brief."]
    assert render.reasons[0].startswith("p/tone.poml has changed: ")


def test_each_render_of_a_batch_and_a_failed_one_are_replayed(chain: Any) -> None:
    given = [{"role": "a", "question": "1"}, {"role": "b", "question": "2"}, {"role": "c"}]
    with mlflow.start_span("batch") as span:
        chain.batch(given, {"callbacks": [PomlCallbackHandler()], "max_concurrency": 1}, return_exceptions=True)
    replayed = pomlflow.replay(span.trace_id)
    assert replayed.identical
    assert [render.record.error is None for render in replayed.renders if render.record] == [True, True, False]


async def test_a_chain_under_mlflows_autolog_is_replayed() -> None:
    """Its spans are MLflow's own, but for POML's."""
    mlflow.langchain.autolog()
    try:
        await (PomlPromptTemplate.from_template("<p>{{n}} {{data.toString()}}</p>") | Model()).ainvoke(
            {"n": float("nan"), "data": b"bytes"}
        )
    finally:
        mlflow.langchain.autolog(disable=True)
    (render,) = pomlflow.replay(last_trace()).renders
    assert render.outcome == "identical"
    assert render.record is not None
    assert render.record.result()["messages"][0]["content"] == "NaN bytes"
