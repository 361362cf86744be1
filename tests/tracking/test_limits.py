"""`max_content` on a stored span: texts are cut, media left out, and a replay is incomplete."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from mlflow.entities import Trace
from tests.templates import HELLO

import pomlflow
from pomlflow.template import Template
from pomlflow.tracking.spans import log_render

LONG = "all of it " * 180
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(2000)
SMALL = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(2).randbytes(900)


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit between SMALL and PICTURE."""
    pomlflow.configure(max_content=1500)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")


@pytest.fixture
def stored(stored_traces: Callable[[], list[Trace]]) -> Iterator[Callable[..., Any]]:
    """Render, and return the span as it was stored."""

    def store(markup: str, variables: dict[str, Any], **options: Any) -> Any:
        log_render(Template(markup).render(variables), parent=None, register=False, **options)
        return stored_traces()[-1].data.spans[0]

    yield store
    mlflow.tracing.reset()


def test_a_cut_text_counts_what_is_missing(stored: Callable[..., Any]) -> None:
    """In markup, variables and messages, at any depth; shorter texts are stored whole."""
    exact = "x y" + "z" * 1497
    span = stored(f"<p>{{{{rows[0].text}}}}</p><!-- {LONG} -->", {"rows": [{"text": LONG, "n": 1}], "exact": exact})
    cut = LONG[:1500] + "… [300 more characters: max_content]"
    assert span.inputs["context"] == {"rows": [{"text": cut, "n": 1}], "exact": exact}
    assert span.inputs["prompt"].endswith("more characters: max_content]")
    assert span.outputs["messages"][0]["content"].startswith(LONG[:1400])
    assert LONG.strip() not in json.dumps(dict(span.attributes), default=str)
    assert span.attributes["poml.replay"]["cut"] == ["inputs", "outputs"]


def test_media_are_left_out_whole_and_smaller_ones_are_attachments(stored: Callable[..., Any]) -> None:
    """Media are never cut, only omitted."""
    given = {"large": PICTURE, "small": SMALL, "address": f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"}
    span = stored("<p>{{large.length}}</p>", {**given, "bare": _base64(PICTURE)})
    context = span.inputs["context"]
    size = len("data:image/png;base64,") + len(_base64(PICTURE))
    assert context["bare"] == f"[image/png of {size} characters left out: max_content]"
    assert context["address"].startswith("[image/png of ")
    everything = json.dumps(dict(span.attributes), default=str)
    assert _base64(PICTURE)[:200] not in everything
    assert everything.count("mlflow-attachment://") == 1  # the small one
    assert everything.count("left out: max_content]") == 3


def test_without_a_limit_all_is_stored(stored: Callable[..., Any]) -> None:
    pomlflow.configure(max_content=0)
    span = stored("<p>{{text}}</p>", {"text": LONG})
    assert span.inputs["context"] == {"text": LONG}
    assert "cut" not in span.attributes["poml.replay"]


def test_a_mask_receives_whole_texts_and_its_result_is_cut(stored: Callable[..., Any]) -> None:
    seen: list[Any] = []

    def mask(content: dict[str, Any]) -> dict[str, Any]:
        seen.append(content["inputs"]["context"]["text"])
        return {"inputs": LONG, "outputs": "short"}

    span = stored("<p>{{text}}</p>", {"text": LONG}, mask=mask)
    assert seen == [LONG]
    assert span.inputs == LONG[:1500] + "… [300 more characters: max_content]"
    assert span.outputs == "short"


def test_the_error_of_a_failed_render_is_cut(stored: Callable[..., Any]) -> None:
    span = stored("<p>{{ (() => { throw new Error(text) })() }}</p>", {"text": "secret " + LONG})
    assert span.status.status_code.value == "ERROR"
    assert "secret" in span.attributes["poml.error"]
    [event] = span.events
    assert span.status.description == span.attributes["poml.error"]
    for text in (span.status.description, span.attributes["poml.error"], *event.attributes.values()):
        assert len(text) < 1600


def test_a_replay_lists_what_was_cut(stored: Callable[..., Any]) -> None:
    """Cut inputs prevent the replay, a cut result only the comparison."""
    span = stored("<p>{{text}}</p>", {"text": LONG})
    [render] = pomlflow.replay(span.trace_id).renders
    assert (render.outcome, render.record) == ("incomplete", None)
    assert render.reasons == ("a mask or max_content changed the markup or the variables before they were stored",)
    span = stored("<p>{{ word.repeat(1200) }}</p>", {"word": "a b"})
    [render] = pomlflow.replay(span.trace_id).renders
    assert render.outcome == "incomplete"
    assert render.reasons == ("a mask or max_content changed the result before it was stored",)
    span = stored(HELLO, {"name": "Ada"})
    assert [render.outcome for render in pomlflow.replay(span.trace_id).renders] == ["identical"]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
