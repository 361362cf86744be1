"""Convert ``<output-schema>`` to a response format, and check values against JSON Schemas."""

from __future__ import annotations

import copy
import functools
import operator
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from pomlflow.exceptions import SchemaError

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

# What OpenAI's strict mode refuses (https://platform.openai.com/docs/guides/structured-outputs#supported-schemas).
_NOT_STRICT: Final = frozenset(
    "allOf oneOf not if then else dependentRequired dependentSchemas patternProperties propertyNames "
    "unevaluatedProperties unevaluatedItems contains prefixItems uniqueItems default "
    "minProperties maxProperties".split()
)
_BY_NAME: Final = ("properties", "$defs", "definitions")
_LONGEST_NAME: Final = 64


def schema_name(schema: Mapping[str, Any]) -> str:
    """Return a schema's name for a provider: its ``title`` in the characters that are allowed, else ``answer``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title") or "")).strip("_")[:_LONGEST_NAME] or "answer"


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's ``response_format``, which LangChain translates for other providers.

    It is strict if strict mode can express the schema. Otherwise it has the schema unchanged: strict mode has no
    optional properties, so the model would have to invent values for them.
    """
    strict = _fits_strict_mode(schema)
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


def _fits_strict_mode(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "object" and "anyOf" not in schema and all(map(_is_strict, _objects(schema)))


def _is_strict(schema: Mapping[str, Any]) -> bool:
    """Return whether strict mode can express a schema, apart from the schemas within it."""
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if not _NOT_STRICT.isdisjoint(schema) or schema.keys().isdisjoint(("type", "$ref", "anyOf")):
        return False
    if "array" in kinds and not isinstance(schema.get("items"), Mapping):
        return False
    if "object" not in kinds and "properties" not in schema:
        return True
    if schema.get("additionalProperties") not in (None, False) or "properties" not in schema:
        return False
    return set(schema["properties"]) <= set(schema.get("required", ()))


def strict_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nearest schema that OpenAI's strict mode accepts, for the schema of an object.

    Objects allow no other properties, and all properties are required. Optional properties become nullable, and
    `without_nulls` removes the nulls. Keywords that strict mode refuses are left out, so check the answer against the
    original schema.
    """
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "oneOf":
            made["anyOf"] = _strict(value)
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
    """Yield a schema and all schemas within it."""
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


def problems(value: Any, schema: Mapping[str, Any], label: str = "<inline>") -> list[str]:
    """Return the mismatches of a value with a schema, the outermost first; an invalid schema is a `SchemaError`."""
    found = sorted(_errors(value, schema, schema, label), key=lambda error: len(error.absolute_path))
    return [f"{error.json_path}: {error.message}" for error in found]


def _errors(value: Any, schema: Any, root: Mapping[str, Any], label: str) -> list[ValidationError]:
    """Return the errors of a value by `schema`, which is a part of the schema `root`."""
    from jsonschema.exceptions import SchemaError as InvalidSchema
    from referencing.exceptions import Unresolvable

    try:
        return list(_validator(orjson.dumps(root)).evolve(schema=schema).iter_errors(value))
    except Unresolvable as error:
        raise SchemaError(f"{label}: a schema refers to something outside of itself: {error}") from error
    except InvalidSchema as error:
        raise SchemaError(f"{label}: a schema is invalid at {error.json_path}: {error.message}") from error


@functools.lru_cache(maxsize=256)
def _validator(schema: bytes) -> Validator:
    from jsonschema import Draft202012Validator, validators  # imported late: it takes 30 ms

    read = orjson.loads(schema)
    kind = validators.validator_for(read, default=Draft202012Validator)
    kind.check_schema(read)
    return kind(read)


def without_nulls(value: Any, schema: Mapping[str, Any], label: str = "<inline>") -> Any:
    """Remove the nulls of optional properties, as strict mode has them; keep nulls that the schema allows."""
    return _without_nulls(value, _errors(value, schema, schema, label), schema, label)


def _without_nulls(value: Any, errors: list[ValidationError], root: Mapping[str, Any], label: str) -> Any:
    """Return a copy without the properties that are wrong because they are null, also in a branch of anyOf or oneOf."""
    if not errors:
        return value
    made: Any = [copy.deepcopy(value)]  # in a list, so that the value itself can be replaced too
    for error in sorted(errors, key=lambda error: not error.context):  # choices first, which replace whole objects
        way = [0, *list(error.path)]
        name = way.pop()
        holder: Any = functools.reduce(operator.getitem, way, made)
        if error.instance is None and isinstance(holder, dict):
            holder.pop(name, None)
        for index, branch in enumerate(error.validator_value if error.context else ()):
            inner = [found for found in error.context if found.schema_path[0] == index]
            if all(found.instance is None or found.context for found in inner):  # else it is another branch
                chosen = _without_nulls(error.instance, inner, root, label)
                if not _errors(chosen, branch, root, label):
                    holder[name] = chosen
                    break
    return made[0]
