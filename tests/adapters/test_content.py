"""What is stored of a run and of its render, without and with a mask or the size limit."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Trace
from tests.adapters.frameworks import Framework
from tests.registry_prompts import warnings_of
from tests.spans import everything, hide, poml_span

from pomlflow import configure
from pomlflow.exceptions import ConfigurationError, RenderError

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
FRAME = """\
<poml>
  <runtime temperature="0.5"/>
  <system-msg>You greet.</system-msg>
  <human-msg>Greet {{name}}: <img src="../box.png" syntax="multimedia"/></human-msg>
  <ai-msg><tool-request id="c1" name="look" parameters="{{ {at: name} }}"/></ai-msg>
  <tool-response id="c1" name="look">seen</tool-response>
  <tool-definition name="look">{"type": "object", "properties": {}}</tool-definition>
  <output-schema>{"type": "object", "properties": {}}</output-schema>
</poml>
"""
LONG = "all of it " * 100
pytestmark = pytest.mark.usefixtures("sync_export")
Fetch = Callable[[], list[Trace]]


def greeting(framework: Framework, markup: str = "<p>Hello {{name}}</p>") -> Any:
    return framework.prompts.from_template(markup, name="greet", register=False)


def test_a_poml_span_holds_the_render_and_its_times(
    framework: Framework, stored_traces: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages in OpenAI's shape, so that MLflow's page shows a chat, with POML's speakers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box.png").write_bytes((ASSETS / "box.png").read_bytes())
    Path("support").mkdir()
    Path("support/greet.poml").write_text(FRAME, encoding="utf-8")
    style = {"p": {"syntax": "text"}}
    prompt = framework.prompts.from_file("support/greet.poml", stylesheet=style, register=False)
    before = time.time_ns()
    framework.run(prompt, name="Ada")
    after = time.time_ns()

    (trace,) = stored_traces()
    span = poml_span(trace)
    assert span.name == "poml support.greet"
    assert span.inputs == {"prompt": prompt.source, "context": {"name": "Ada"}, "stylesheet": style}
    system, human, ai, answer = span.outputs["messages"]
    assert system == {"role": "system", "speaker": "system", "content": "You greet."}
    text, picture = human.pop("content")
    assert (human, text) == ({"role": "user", "speaker": "human"}, {"type": "text", "text": "Greet Ada: "})
    assert picture["type"] == "image_url"
    assert picture["image_url"]["url"].startswith("mlflow-attachment://")
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "Ada"}'}}
    assert ai == {"role": "assistant", "speaker": "ai", "content": None, "tool_calls": [call]}
    assert answer == {"role": "tool", "speaker": "tool", "tool_call_id": "c1", "name": "look", "content": "seen"}
    assert span.outputs["runtime"] == {"temperature": 0.5}
    assert span.outputs["schema"] == {"type": "object", "properties": {}}
    assert [one["name"] for one in span.outputs["tools"]] == ["look"]
    assert (span.attributes["poml.path"], span.attributes["poml.version"]) == ("support/greet.poml", "0.0.8")
    assert len(span.attributes["poml.digest"]) == 64
    parent = next(one for one in trace.data.spans if one.span_id == span.parent_id)
    assert before <= parent.start_time_ns <= span.start_time_ns < span.end_time_ns <= after
    assert "iVBORw0KGgo" not in everything(trace), "a picture is stored inline, in some span"


def test_a_failed_render_is_an_error_with_its_place(framework: Framework, stored_traces: Fetch) -> None:
    with pytest.raises(RenderError) as failed:
        framework.run(greeting(framework, "<poml>\n  <p>{{name.x.y}}</p>\n</poml>"), name="Ada")
    (trace,) = stored_traces()
    span = poml_span(trace)
    assert (span.status.status_code.value, span.status.description) == ("ERROR", str(failed.value))
    assert span.attributes["poml.error"] == str(failed.value)
    assert (span.attributes["poml.error.line"], span.attributes["poml.error.column"]) == (2, 6)
    assert (span.inputs["context"], span.outputs) == ({"name": "Ada"}, None)
    (event,) = span.events
    assert event.attributes["exception.type"] == "RenderError"
    assert trace.info.state.value == "ERROR"


def test_a_mask_reaches_all_that_is_stored(framework: Framework, stored_traces: Fetch) -> None:
    """Of a run, of a stream, of a failed render, and of a model's error that repeats what was sent."""

    def fail(messages: list[str]) -> str:
        raise ValueError(f"cannot answer {messages[-1]}")

    prompt, handler = greeting(framework, "<p>secret {{name}}</p>"), framework.handler(mask=hide)
    failing = greeting(framework, "<p>{{ (() => { throw new Error('secret ' + name) })() }}</p>")
    assert framework.run(prompt, "A secret.", handler=handler, name="secret") == "A secret."
    assert framework.stream(prompt, "A secret.", handler=handler, name="secret") == "A secret."
    with pytest.raises(RenderError, match="secret"):
        framework.run(failing, handler=handler, name="secret")
    with pytest.raises(ValueError, match="secret"):
        framework.run(prompt, fail, handler=handler, name="secret")
    traces = stored_traces()
    assert len(traces) == 4
    for trace in traces:
        assert "secret" not in everything(trace)
        assert "***" in everything(trace)
    assert poml_span(traces[0]).inputs == {
        "prompt": "<p>*** {{name}}</p>",
        "context": {"name": "***"},
        "stylesheet": None,
    }
    assert poml_span(traces[2]).attributes["poml.error"].startswith("<inline>:1:4: *** ***")
    assert "cannot answer *** ***" in str(traces[3].data.spans[0].status.description)


def test_a_mask_gets_plain_data_of_each_span_once(framework: Framework, stored_traces: Fetch) -> None:
    seen: list[dict[str, Any]] = []

    def look(content: dict[str, Any]) -> dict[str, Any]:
        seen.append(json.loads(json.dumps(content)))  # raises if it is not plain data
        return {"inputs": "kept"}

    framework.run(greeting(framework), handler=framework.handler(mask=look), name="Ada")
    (trace,) = stored_traces()
    assert len(seen) == len(trace.data.spans) > 2
    assert all(set(content) == {"inputs", "outputs"} for content in seen)
    assert {span.inputs for span in trace.data.spans} == {"kept"}
    assert {span.outputs for span in trace.data.spans} == {None}


def test_a_mask_that_fails_stores_nothing_and_logs_one_warning(
    framework: Framework, stored_traces: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: dict[str, Any]) -> dict[str, Any]:
        raise LookupError("secret")

    for _ in range(2):
        framework.run(greeting(framework), "secret", handler=framework.handler(mask=fail), name="secret")
    assert len(stored_traces()) == 2
    assert all("secret" not in everything(trace) for trace in stored_traces())
    assert warnings_of(caplog) == [
        "The mask raised LookupError: spans are stored without inputs and outputs (further warnings suppressed)"
    ]


@pytest.mark.parametrize("mask", [None, lambda content: content])
def test_no_stored_text_is_longer_than_the_limit(framework: Framework, stored_traces: Fetch, mask: Any) -> None:
    """The model receives and returns all of it."""
    configure(max_content=300)
    handler = framework.handler(mask=mask)
    sent: list[str] = []

    def answer(messages: list[str]) -> str:
        sent.extend(messages)
        return LONG

    def fail(_: list[str]) -> str:
        raise ValueError(LONG)

    prompt = greeting(framework, "<p>{{text}}</p>")
    assert framework.run(prompt, answer, handler=handler, text=LONG) == LONG
    assert framework.stream(prompt, LONG, handler=handler, text=LONG) == LONG
    with pytest.raises(ValueError, match="all of it"):
        framework.run(prompt, fail, handler=handler, text=LONG)
    assert [text.strip() for text in sent] == [LONG.strip()]
    traces = stored_traces()
    assert len(traces) == 3
    cut = LONG[:300] + "… [700 more characters: max_content]"
    for trace in traces:
        assert "all of it " * 31 not in everything(trace)
        assert poml_span(trace).inputs["context"] == {"text": cut}
    assert cut in str(traces[0].data.spans[0].outputs)
    assert cut in str(traces[2].data.spans[0].status.description)


@pytest.mark.parametrize("mask", [None, lambda content: content])
def test_media_beyond_the_limit_are_stored_in_no_span(framework: Framework, stored_traces: Fetch, mask: Any) -> None:
    """Neither inline nor as attachments, be they variables or messages."""
    configure(max_content=300)
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(2000)).decode()
    history = [{"speaker": "human", "content": ["See", {"type": "image/png", "base64": picture}]}]
    prompt = greeting(framework, '<conversation messages="{{history}}"/>')
    framework.run(prompt, handler=framework.handler(mask=mask), history=history)
    (trace,) = stored_traces()
    assert picture[:100] not in everything(trace)
    assert "mlflow-attachment://" not in everything(trace)
    assert "left out: max_content]" in everything(trace)


@pytest.mark.parametrize("mask", [None, lambda content: {**content, "inputs": "\udc00"}], ids=["plain", "masked"])
def test_a_lone_surrogate_does_not_lose_the_trace(framework: Framework, stored_traces: Fetch, mask: Any) -> None:
    """In values, answers, streams and errors; no store takes one, and MLflow would lose the trace."""
    handler, given = framework.handler(mask=mask), {"name": "\ud83d and \ud83d\ude00"}

    def fail(messages: list[str]) -> str:
        raise ValueError(f"cannot answer {messages[-1]} \ud83d")

    assert framework.run(greeting(framework), "so \ud83d", handler=handler, **given) == "so \ud83d"
    assert framework.stream(greeting(framework), "so \ud83d", handler=handler, **given) == "so \ud83d"
    with pytest.raises(ValueError, match="cannot answer"):
        framework.run(greeting(framework), fail, handler=handler, **given)
    traces = stored_traces()
    assert [trace.info.state.value for trace in traces] == ["OK", "OK", "ERROR"]
    for trace in traces:
        assert all(span.end_time_ns for span in trace.data.spans)
    inputs = poml_span(traces[0]).inputs
    assert inputs == "\ufffd" if mask else inputs["context"] == {"name": "\ufffd and 😀"}
    assert "so \\ufffd" in everything(traces[0])


def test_arrays_and_data_frames_are_values(framework: Framework) -> None:
    rows = pd.DataFrame({"item": ["tea"], "sold": [3]})
    table = framework.prompts.from_template('<table records="{{rows}}" syntax="csv"/>')
    assert table.format(rows=rows).split()[-2:] == ["item,sold", "tea,3"]
    loop = framework.prompts.from_template("<p>{{numbers.join(' and ')}}</p>")
    assert loop.format(numbers=np.array([1, 2])).endswith("1 and 2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": Path("p.poml")}, r"a template is a text, not of the type PosixPath; for a file use .*from_file"),
        ({"template": 3}, "a template is a text, not of the type int; for a file use .*from_file"),
        (
            {"template": "<p/>", "stylesheet": "list { }"},
            r'a stylesheet is a mapping .*"list": .*, not of the type str',
        ),
    ],
)
def test_templates_and_stylesheets_of_another_type_are_refused(
    framework: Framework, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message.replace("PosixPath", type(Path()).__name__)):
        framework.prompts.from_template(**arguments)
