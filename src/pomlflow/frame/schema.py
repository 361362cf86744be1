"""``<output-schema>`` as a model's response format, and an answer read by it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pomlflow.exceptions import AnswerError
from pomlflow.frame.validation import problems, without_nulls

__all__ = [
    "checked_answer",
    "json_value",
    "parse_answer",
    "response_format",
    "schema_name",
    "strict_form",
]

# What OpenAI's strict mode refuses (https://platform.openai.com/docs/guides/structured-outputs#supported-schemas).
_NOT_STRICT = frozenset(
    {"allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties"}
    | {
        "propertyNames",
        "unevaluatedProperties",
        "unevaluatedItems",
        "contains",
        "prefixItems",
        "uniqueItems",
        "default",
    }
    | {"minProperties", "maxProperties"}
)
_BY_NAME = ("properties", "$defs", "definitions")
_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
_NAME = 64


def schema_name(schema: Mapping[str, Any]) -> str:
    """The name that a provider hears of a schema: its ``title`` as far as names may be so, else ``answer``.

    Args:
        schema: The output schema.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title") or "")).strip("_")[:_NAME] or "answer"


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give OpenAI's ``response_format``, which LangChain's other clients translate into their own.

    It is strict where strict mode can say all that the schema says, and else asks for the schema as it stands: strict
    mode has no optional properties, and the model would have to make them up.

    Args:
        schema: The output schema.

    Returns:
        ``{"type": "json_schema", "json_schema": {"name", "description"?, "schema", "strict"}}``.

    Example:
        >>> response_format({"type": "object", "properties": {}})["json_schema"]["strict"]
        True
    """
    strict = _says_the_same_strictly(schema)
    described = {"description": schema["description"]} if isinstance(schema.get("description"), str) else {}
    return {
        "type": "json_schema",
        "json_schema": {
            "name": schema_name(schema),
            **described,
            "schema": strict_form(schema) if strict else dict(schema),
            "strict": strict,
        },
    }


def _says_the_same_strictly(schema: Mapping[str, Any]) -> bool:
    if schema.get("type") != "object" or "anyOf" in schema:
        return False
    for inner in _objects(schema):
        if not _NOT_STRICT.isdisjoint(inner):
            return False
        if inner.get("type") == "object" or "properties" in inner:
            if inner.get("additionalProperties") not in (None, False) or "properties" not in inner:
                return False
            if set(inner["properties"]) - set(inner.get("required", ())):
                return False
    return True


def strict_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give the nearest schema that OpenAI's strict mode takes.

    Every object is closed, every property required; what was optional may be null, and `without_nulls` takes the nulls
    out again. Keywords that strict mode refuses are left out: check what comes back by the schema itself.

    Args:
        schema: A schema of an object.

    Returns:
        A new schema.

    Example:
        >>> strict_form({"type": "object", "properties": {"city": {"type": "string"}}})["properties"]
        {'city': {'type': ['string', 'null']}}
    """
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "oneOf":
            made["anyOf"] = [strict_form(inner) for inner in value]
        elif key in _NOT_STRICT or key == "$schema":
            continue
        elif key in _BY_NAME and isinstance(value, Mapping):
            made[key] = {name: _strict(inner) for name, inner in value.items()}
        elif key in ("items", "anyOf"):
            made[key] = _strict(value)
        else:
            made[key] = value
    if made.get("type") == "object" or "properties" in made:
        required = made.get("required", ())
        made["properties"] = {
            name: inner if name in required else _nullable(inner) for name, inner in made.get("properties", {}).items()
        }
        made |= {"required": list(made["properties"]), "additionalProperties": False}
    return made


def _strict(value: Any) -> Any:
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    return strict_form(value) if isinstance(value, Mapping) else value


def _nullable(schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, str) and kind != "null" and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [kind, "null"]}
    if kind == "null" or (isinstance(kind, list) and "null" in kind):
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas within it."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _objects(inner)
    elif isinstance(schema, Mapping):
        yield schema
        for key, value in schema.items():
            if key in _BY_NAME and isinstance(value, Mapping):
                for inner in value.values():
                    yield from _objects(inner)
            elif key in ("items", "anyOf", "additionalProperties"):
                yield from _objects(value)


def json_value(text: str) -> Any:
    """Read the JSON of a model's answer, also where the model has fenced it as Markdown.

    Args:
        text: The answer.

    Returns:
        The value.

    Raises:
        ValueError: There is no JSON.
    """
    fenced = _FENCED.match(text)
    return json.loads(fenced[1] if fenced else text)


def parse_answer(text: str, schema: Mapping[str, Any], place: str = "<inline>") -> Any:
    """Read a model's answer by the output schema that it was asked to keep.

    Args:
        text: The answer.
        schema: The output schema.
        place: The template, for errors.

    Returns:
        The object.

    Raises:
        AnswerError: The answer is no JSON, or not by the schema; it holds the answer.

    Example:
        >>> parse_answer('{"n": 1}', {"type": "object", "properties": {"n": {"type": "integer"}}})
        {'n': 1}
    """
    try:
        value = json_value(text)
    except ValueError as error:
        raise AnswerError(
            f"{place}: the answer is no JSON ({error}); <output-schema> asks for it. The answer: {text!r}", text
        ) from error
    return checked_answer(value, schema, text, place)


def checked_answer(value: Any, schema: Mapping[str, Any], text: str, place: str = "<inline>") -> Any:
    """Check the object that a framework has read from an answer.

    Args:
        value: The object.
        schema: The output schema.
        text: The answer.
        place: The template, for errors.

    Returns:
        The object, without the nulls that strict mode puts in the place of optional properties.

    Raises:
        AnswerError: It is not by the schema; the error holds the answer.
    """
    value = without_nulls(value, schema, place)
    if found := problems(value, schema, place):
        raise AnswerError(
            f"{place}: the answer is not as <output-schema> says: {'; '.join(found)}. The answer: {text!r}", text, found
        )
    return value
