"""Output schemas as response formats, and answers parsed by them."""

from __future__ import annotations

from typing import Any

import pytest

from pomlflow.exceptions import AnswerError
from pomlflow.frame.answers import parse_answer
from pomlflow.frame.schema import response_format, strict_form

TEXT = {"type": "string"}
CLOSED = {"type": "object", "properties": {"a": TEXT}, "required": ["a"], "additionalProperties": False}
OPTIONAL = {"type": "object", "properties": {"a": TEXT, "b": {"type": "integer"}}, "required": ["a"]}


def test_the_format_has_title_and_description() -> None:
    made = response_format({**CLOSED, "title": "Trip plan!", "description": "A plan."})["json_schema"]
    assert (made["name"], made["description"], made["strict"]) == ("Trip_plan", "A plan.", True)
    assert response_format(CLOSED)["json_schema"]["name"] == "answer"


def test_a_schema_without_additional_properties_is_closed_and_strict() -> None:
    made = response_format({key: value for key, value in CLOSED.items() if key != "additionalProperties"})
    assert made["json_schema"] == {"name": "answer", "schema": CLOSED, "strict": True}


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "array", "items": TEXT},
        {"type": ["array", "null"], "items": CLOSED},
        {"anyOf": [TEXT, CLOSED]},
        {"$ref": "#"},
        {**CLOSED, "type": ["object", "null"]},
    ],
)
def test_arrays_references_and_nullable_objects_are_strict(inner: dict[str, Any]) -> None:
    schema = {**CLOSED, "properties": {"a": inner}}
    assert response_format(schema)["json_schema"] == {"name": "answer", "schema": schema, "strict": True}


@pytest.mark.parametrize(
    "schema",
    [
        OPTIONAL,
        {**CLOSED, "additionalProperties": True},
        {**CLOSED, "properties": {"a": {"type": "object"}}},
        {**CLOSED, "properties": {"a": {"type": "array", "items": OPTIONAL}}},
        {**CLOSED, "properties": {"a": {"$ref": "#/$defs/o"}}, "$defs": {"o": OPTIONAL}},
        {**CLOSED, "properties": {"a": {"oneOf": [TEXT]}}},
        {**CLOSED, "properties": {"a": {"type": "string", "default": "x"}}},
        {**CLOSED, "properties": {"a": {"type": "array"}}},
        {**CLOSED, "properties": {"a": {}}},
        {**CLOSED, "properties": {"a": {"enum": ["x", 1]}}},
        {**CLOSED, "properties": {"a": {"type": ["object", "null"]}}},
        {"type": "array", "items": TEXT},
        {"anyOf": [CLOSED], "type": "object"},
    ],
)
def test_a_schema_beyond_strict_mode_is_unchanged(schema: dict[str, Any]) -> None:
    made = response_format(schema)["json_schema"]
    assert made["strict"] is False
    assert made["schema"] == schema


def test_the_strict_form_closes_objects_and_makes_optional_properties_nullable() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "a": TEXT,
            "kind": {"enum": ["x", "y"]},
            "inner": {"type": "array", "items": OPTIONAL},
            "either": {"oneOf": [TEXT, OPTIONAL], "default": "z"},
            "open": {"type": "object"},
            "maybe": {"type": ["string", "null"]},
        },
        "required": ["a", "inner", "either", "open"],
    }
    inner = {
        "type": "object",
        "properties": {"a": TEXT, "b": {"type": ["integer", "null"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert strict_form(schema) == {
        "type": "object",
        "properties": {
            "a": TEXT,
            "kind": {"anyOf": [{"enum": ["x", "y"]}, {"type": "null"}]},
            "inner": {"type": "array", "items": inner},
            "either": {"anyOf": [TEXT, inner]},
            "open": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
            "maybe": {"type": ["string", "null"]},
        },
        "required": ["a", "kind", "inner", "either", "open", "maybe"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("text", ['{"a": "x"}', '```json\n{"a": "x"}\n```', ' ```\n{"a": "x"}```\n'])
def test_an_answer_may_be_in_a_markdown_fence(text: str) -> None:
    assert parse_answer(text, CLOSED) == {"a": "x"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_an_answer_with_a_number_that_json_lacks_is_an_error(number: str) -> None:
    with pytest.raises(AnswerError, match=rf"not the JSON that .*\({number} is not JSON\)"):
        parse_answer(f'{{"a": {number}}}', {"properties": {"a": {"type": "number"}}})


def test_an_answer_that_is_not_json_is_an_error_with_the_answer() -> None:
    with pytest.raises(AnswerError, match=r"a\.poml: the answer is not the JSON that .*'Sorry\.'") as caught:
        parse_answer("Sorry.", CLOSED, "a.poml")
    assert caught.value.answer == "Sorry."
    assert caught.value.problems == ()


def test_an_answer_that_violates_the_schema_is_an_error_with_places() -> None:
    text = '{"a": 1, "c": 2}'
    with pytest.raises(AnswerError, match=r"\$\.a: 1 is not of type 'string'") as caught:
        parse_answer(text, CLOSED)
    assert (caught.value.answer, len(caught.value.problems)) == (text, 2)
