"""Values checked by schemas, and the nulls of strict mode."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pomlflow.exceptions import SchemaError
from pomlflow.frame.schema import problems, without_nulls

TEXT = {"type": "string"}
OPTIONAL = {"type": "object", "properties": {"a": TEXT, "b": {"type": "integer"}}, "required": ["a"]}


def test_nulls_of_optional_properties_are_removed() -> None:
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": OPTIONAL}, "maybe": {"type": ["string", "null"]}},
    }
    given = {"rows": [{"a": "x", "b": None}], "maybe": None, "other": None}
    assert without_nulls(given, schema) == {"rows": [{"a": "x"}], "maybe": None, "other": None}


def test_a_schema_is_read_by_its_own_draft() -> None:
    tuple_of_text = {"items": [TEXT]}  # 2020-12 writes prefixItems
    assert problems([1], {"$schema": "http://json-schema.org/draft-07/schema#", **tuple_of_text})


def test_nulls_are_removed_through_references() -> None:
    schema = {
        "type": "object",
        "properties": {"row": {"$ref": "#/$defs/row"}, "maybe": {"$ref": "#/$defs/maybe"}},
        "$defs": {"row": OPTIONAL, "maybe": {"type": ["string", "null"]}},
    }
    assert without_nulls({"row": {"a": "x", "b": None}, "maybe": None}, schema) == {"row": {"a": "x"}, "maybe": None}


def test_nulls_are_removed_through_chains_and_circles_of_references() -> None:
    names = [f"d{number}" for number in range(9)]
    chain = {name: {"$ref": f"#/$defs/{then}"} for name, then in itertools.pairwise(names)}
    node = {"properties": {"text": TEXT, "next": {"$ref": "#"}}}
    assert without_nulls({"text": None}, {"$ref": "#/$defs/d0", "$defs": {**chain, "d8": node}}) == {}
    assert without_nulls({"next": {"next": {"text": None}}}, node) == {"next": {"next": {}}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nope"}, r"is invalid at \$\.type: 'nope' is not valid"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}}, "refers to something outside of itself"),
    ],
)
def test_an_error_names_the_template_of_an_invalid_schema(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=rf"a\.poml: a schema {message}"):
        problems({"a": 1}, schema, "a.poml")


@pytest.mark.parametrize("key", ["anyOf", "oneOf"])
def test_nulls_are_removed_in_the_branch_that_then_matches(key: str) -> None:
    other = {"type": "object", "properties": {"c": TEXT}, "required": ["c"]}
    schema = {
        "properties": {"x": {key: [TEXT, other, {"$ref": "#/$defs/o"}, {"type": "null"}]}},
        "$defs": {"o": OPTIONAL},
    }
    assert without_nulls({"x": {"a": "x", "b": None}}, schema) == {"x": {"a": "x"}}
    for kept in ({"x": None}, {"x": {"c": "x", "b": None}}, {"x": {"a": None, "b": None}}, {"x": "y"}):
        assert without_nulls(kept, schema) == kept


def test_nulls_are_removed_in_nested_branches() -> None:
    kinds = {
        name: {"type": "object", "properties": {"kind": {"const": name}, "of": {"$ref": "#/$defs/any"}, "note": TEXT}}
        for name in "abc"
    }
    schema = {"$ref": "#/$defs/any", "$defs": {"any": {"anyOf": [*kinds.values(), {"type": "null"}]}}}
    given: dict[str, Any] | None = None
    expected: dict[str, Any] | None = None
    for _ in range(3):
        given, expected = {"kind": "c", "of": given, "note": None}, {"kind": "c", "of": expected}
    assert without_nulls(given, schema) == expected
