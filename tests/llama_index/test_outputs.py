"""Classes made of output schemas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

pytest.importorskip("llama_index.core")

from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program.function_program import get_function_tool

from pomlflow import ConfigurationError
from pomlflow.llama_index import PomlPromptTemplate
from pomlflow.llama_index.structured import Answer, AnswerReader, output_class

SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "weather report",
    "description": "What the sky does.",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
        "days": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        "rain": {"type": ["boolean", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
GIVEN = {"city": "Oslo", "where": {"lat": 59.9}, "days": [{"n": 1}, {"n": 2}], "rain": None}


@pytest.fixture
def report() -> type[Answer]:
    return output_class(SCHEMA)


def test_properties_are_attributes_objects_within_objects_too(report: type[Answer]) -> None:
    answer: Any = report.model_validate(GIVEN)
    assert (answer.city, answer.where.lat, [day.n for day in answer.days], answer.rain) == ("Oslo", 59.9, [1, 2], None)
    assert answer.model_dump() == GIVEN
    assert answer == report(**GIVEN) == report.model_validate_json(answer.model_dump_json())
    assert report(city="Oslo").where is None
    assert report(city="Oslo").model_dump(exclude_unset=True) == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "'city' is a required property"),
        ({"city": "O"}, "'O' is too short"),
        ({"city": "Oslo", "where": {"lat": "north"}}, "'north' is not of type 'number'"),
        ({"city": "Oslo", "wind": 3}, "'wind' was unexpected"),
    ],
)
def test_the_schema_decides_what_is_valid(report: type[Answer], wrong: dict[str, Any], message: str) -> None:
    """Pydantic would accept most of these."""
    with pytest.raises(ValidationError, match=message):
        report.model_validate(wrong)


def test_llama_index_and_clients_receive_the_schema_itself(report: type[Answer]) -> None:
    span_named = {**SCHEMA, "title": "WeatherReport"}
    assert report.model_json_schema() == TypeAdapter(report).json_schema() == span_named
    report.model_json_schema()["properties"].clear()
    assert report.model_json_schema() == span_named
    tool = get_function_tool(report)
    assert (tool.metadata.name, tool.metadata.description) == ("WeatherReport", "What the sky does.")
    assert tool(**GIVEN).raw_output == report(**GIVEN)
    assert PydanticOutputParser(report).parse(f"Here: {report(**GIVEN).model_dump_json()}") == report(**GIVEN)


def test_names_reserved_by_python_or_pydantic_are_kept(report: type[Answer]) -> None:
    names = ["class", "my-key", "_private", "copy", "model_name", "place", "schema", "model_dump", "self"]
    made = output_class({"type": "object", "properties": {name: {"type": "string"} for name in names}})
    given = {name: name.upper() for name in names}
    answer: Any = made.model_validate(given)
    assert {name: answer.model_dump()[name] for name in names} == given
    assert (answer.place, answer.model_name) == ("PLACE", "MODEL_NAME")


def test_equal_schemas_share_one_class(report: type[Answer]) -> None:
    assert output_class(copy.deepcopy(SCHEMA)) is report
    answer = report(**GIVEN)
    assert copy.deepcopy(answer) == answer


def test_a_partial_answer_has_its_properties_so_far(report: type[Answer]) -> None:
    partial = AnswerReader.of(report, SCHEMA, "<inline>").partial('{"city": "O"}')
    assert partial is not None
    assert partial.model_dump() == {
        "city": "O",
        "where": None,
        "days": None,
        "rain": None,
    }


def test_a_prompt_gives_the_class_of_its_schema() -> None:
    """Without variables if the schema has none, and with them if it has."""
    static = '<poml><output-schema>{"type": "object", "title": "a"}</output-schema><p>{{q}}</p></poml>'
    assert PomlPromptTemplate(static).output_cls().__name__ == "A"
    open_ = "<poml><output-schema>z.object({ n: z.number().max(most) })</output-schema><p>{{q}}</p></poml>"
    made = PomlPromptTemplate(open_).output_cls(most=3, q="")
    assert made.model_validate({"n": 3}).model_dump() == {"n": 3}
    with pytest.raises(ValidationError, match="4 is greater than the maximum of 3"):
        made.model_validate({"n": 4})


def test_a_schema_of_no_object_is_an_error() -> None:
    for schema in (None, {"type": "array"}):
        with pytest.raises(ConfigurationError):
            output_class(schema)
