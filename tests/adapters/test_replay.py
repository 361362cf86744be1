"""`pomlflow.replay` of both frameworks' traces."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from tests.adapters.frameworks import Framework
from tests.templates import write

import pomlflow
from pomlflow import MissingVariableError

MARKUP = """\
<poml>
  <system-msg>You are {{role}}. <include src="tone.poml"/></system-msg>
  <conversation messages="{{history}}" selectedMessages="-4:"/>
  <human-msg><img src="box.png" syntax="multimedia"/>{{question}}</human-msg>
</poml>
"""
PICTURE = Path(__file__).parents[1] / "corpus" / "assets" / "box.png"


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


def test_a_prompt_is_replayed_with_its_native_history(framework: Framework, folder: Path) -> None:
    """Tool calls, ids and names of messages that POML's own messages cannot hold, a picture and an include."""
    prompt = framework.prompts.from_file("p/a.poml", register=False)
    history = framework.history()
    framework.run(prompt, role="a mate", history=[history[0], *history], question="Why?")
    trace_id = last_trace()
    replayed = pomlflow.replay(trace_id)
    assert [str(render) for render in replayed.renders] == ["poml p.a (p/a.poml): identical"]
    (render,) = replayed.renders
    assert render.record is not None
    speakers = [message["speaker"] for message in render.record.result()["messages"]]
    assert speakers == ["system", "human", "ai", "tool", "ai", "human"]

    write(folder / "p" / "tone.poml", "<p>Be brief.</p>")
    (render,) = pomlflow.replay(trace_id).renders
    assert [str(difference) for difference in render.differences] == ["messages[0].content\n- Be kind.\n+ Be brief."]
    assert render.reasons[0].startswith("p/tone.poml has changed: ")


def test_all_renders_of_a_trace_and_a_failed_one_are_replayed(framework: Framework) -> None:
    prompt = framework.prompts.from_file("p/a.poml", register=False)
    with mlflow.start_span("several") as span:
        framework.run(prompt, role="a", question="1")
        framework.run(prompt, role="b", question="2")
        with pytest.raises(MissingVariableError):
            framework.run(prompt, role="c")
    replayed = pomlflow.replay(span.trace_id)
    assert replayed.identical
    assert [render.record.error is None for render in replayed.renders if render.record] == [True, True, False]


def test_a_run_under_mlflows_autolog_is_replayed(framework: Framework) -> None:
    """All of its spans but POML's are MLflow's; its values have no form in JSON."""
    prompt = framework.prompts.from_template("<p>{{n}} {{data.toString()}}</p>")
    framework.mlflow_autolog()
    try:
        framework.run(prompt, handler=False, n=float("nan"), data=b"bytes")
    finally:
        framework.mlflow_autolog(disable=True)
    (render,) = pomlflow.replay(last_trace()).renders
    assert render.outcome == "identical"
    assert render.record is not None
    assert render.record.result()["messages"][0]["content"] == "NaN bytes"
