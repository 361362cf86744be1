"""The record of a render."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from poml.api import PomlFrame

from pomlflow.exceptions import PomlError
from pomlflow.record import RenderRecord
from pomlflow.template import Template

MARKUP = (
    '<poml><p>Hi {{x}}</p><runtime temperature="0.5"/>'
    '<output-schema parser="json">{"type": "object", "properties": {}}</output-schema></poml>'
)


def record(**changes: Any) -> RenderRecord:
    known: dict[str, Any] = {"source": "<p/>", "digest": "d", "context": b"{}", "start_ns": 1, "end_ns": 2}
    return RenderRecord(**{**known, **changes})


def test_the_variables_are_parsed_at_their_first_use() -> None:
    read = record(context=b'{"a": [1, null], "b": "\xc3\xa9"}')
    assert read.variables == {"a": [1, None], "b": "é"}
    assert read.variables is read.variables
    with pytest.raises(ValueError, match="invalid literal"):
        _ = record(context=b"not json").variables


def test_later_changes_of_the_variables_do_not_affect_the_record() -> None:
    mine = {"x": ["a"]}
    made = Template("<p>{{x[0]}}</p>").render(mine)
    mine["x"].append("b")
    assert made.variables == {"x": ["a"]}


def test_a_record_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().digest = "other"  # type: ignore[misc]


def test_the_result_of_a_failed_render_is_its_error() -> None:
    error = PomlError("no")
    failed = record(error=error)
    with pytest.raises(PomlError) as caught:
        failed.result()
    assert caught.value is error
    with pytest.raises(PomlError) as caught:
        _ = failed.frame
    assert caught.value is error
    with pytest.raises(PomlError, match="neither output nor error"):
        record().result()


def test_the_frame_is_a_poml_frame() -> None:
    made = Template(MARKUP).render({"x": 1})
    assert isinstance(made.frame, PomlFrame)
    assert made.frame.model_dump(exclude_none=True) == {
        "messages": [{"speaker": "human", "content": "Hi 1"}],
        "output_schema": {"type": "object", "properties": {}},
        "runtime": {"temperature": 0.5},
    }
    assert made.frame is made.frame


def test_the_frame_of_a_text_is_one_human_message() -> None:
    picture = {"type": "image/png", "base64": "AAAA"}
    for messages in ("text", ["a ", picture]):
        (message,) = record(output={"messages": messages}, chat=False).frame.messages
        assert message.model_dump(exclude_none=True) == {"speaker": "human", "content": messages}
    assert record(output={"messages": []}).frame.messages == []


def test_copies_and_pickles_are_equal() -> None:
    made = Template(MARKUP, name="n", stylesheet={"p": {"syntax": "json"}}).render({"x": 1})
    assert pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) == made
    assert dataclasses.replace(made, name="other").variables == made.variables
