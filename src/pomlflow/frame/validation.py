"""Values checked by the JSON Schemas of a POML file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from pomlflow.exceptions import SchemaError

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

__all__ = ["problems", "without_nulls"]


def problems(value: Any, schema: Mapping[str, Any], place: str = "<inline>") -> list[str]:
    """Say what is wrong with a value by a schema, each with its place in the value.

    Args:
        value: A JSON value.
        schema: A JSON Schema, of the draft that its ``$schema`` names, else of 2020-12.
        place: The template, for errors.

    Returns:
        A line for each, the outermost first; none where it is right.

    Raises:
        SchemaError: The schema itself is wrong; POML takes any.
    """
    found = sorted(_found(value, schema, schema, place), key=lambda error: len(error.absolute_path))
    return [f"{error.json_path}: {error.message}" for error in found]


def _found(value: Any, schema: Any, root: Mapping[str, Any], place: str) -> list[ValidationError]:
    """The errors of a value by a part of a schema."""
    from jsonschema.exceptions import SchemaError as WrongSchema
    from referencing.exceptions import Unresolvable

    try:
        return list(_validator(orjson.dumps(root)).evolve(schema=schema).iter_errors(value))
    except Unresolvable as error:
        raise SchemaError(f"{place}: a schema refers to what is not in it: {error}") from error
    except WrongSchema as error:
        raise SchemaError(f"{place}: a schema is wrong at {error.json_path}: {error.message}") from error


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Validator:
    from jsonschema import Draft202012Validator, validators  # 30 ms, for those who validate

    read = orjson.loads(schema)
    kind = validators.validator_for(read, default=Draft202012Validator)
    kind.check_schema(read)
    return kind(read)


def without_nulls(value: Any, schema: Mapping[str, Any], place: str = "<inline>") -> Any:
    """Take out the nulls that stand for optional properties that were left out.

    Args:
        value: What a model gave by the schema's `strict_form`.
        schema: The schema itself.
        place: The template, for errors.

    Returns:
        The value; a null that the schema allows stays.

    Raises:
        SchemaError: The schema itself is wrong.
    """
    return _without_nulls(value, schema, schema, place)


def _without_nulls(value: Any, schema: Any, root: Mapping[str, Any], place: str) -> Any:
    schema = _followed(schema, root)
    if isinstance(value, list):
        return [_without_nulls(inner, schema.get("items"), root, place) for inner in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, Mapping):
        return value
    required = schema.get("required", ())
    kept = {}
    for name, inner in value.items():
        if (
            inner is None
            and name in properties
            and name not in required
            and _found(None, properties[name], root, place)
        ):
            continue
        kept[name] = _without_nulls(inner, properties.get(name), root, place)
    return kept


def _followed(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference within the schema refers to."""
    seen = 0
    while isinstance(schema, Mapping) and isinstance(way := schema.get("$ref"), str) and way.startswith("#/"):
        schema, seen = root, seen + 1
        for name in way[2:].split("/"):
            schema = schema.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(schema, Mapping) else None
        if seen > len(root):  # it refers to itself
            break
    return schema if isinstance(schema, Mapping) else {}
