"""Convert ``<output-schema>`` to a response format, find refusals, parse answers, and check values by JSON Schemas."""

from __future__ import annotations

import copy
import functools
import json
import operator
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from pomlflow.exceptions import AnswerError, SchemaError

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
_FENCED: Final = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
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

    Objects allow no other properties, and every property is required. An optional property may be null instead, and
    `without_nulls` removes these nulls. Keywords that strict mode refuses are left out, so check the answer by the
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


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def parse_answer(text: str, schema: Mapping[str, Any], label: str = "<inline>") -> Any:
    """Parse a model's answer, which may be in a Markdown fence, and check it; raise an `AnswerError` if it is wrong."""
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise AnswerError(
            f"{label}: the answer is not the JSON that <output-schema> requires ({error}). The answer: {text!r}", text
        ) from error
    return checked_answer(value, schema, text, label)


def checked_answer(value: Any, schema: Mapping[str, Any], text: str, label: str = "<inline>") -> Any:
    """Return the value that a framework has parsed from an answer, checked and without the nulls of strict mode."""
    value = without_nulls(value, schema, label)
    if found := problems(value, schema, label):
        raise AnswerError(
            f"{label}: the answer violates <output-schema>: {'; '.join(found)}. The answer: {text!r}", text, found
        )
    return value


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


# Google's finish reasons of answers that it withholds.
WITHHELD: Final = frozenset({"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "IMAGE_SAFETY", "RECITATION"})


def reason_name(value: Any) -> str:
    """Return the name of a finish or block reason, which is a text or a member of an enum."""
    return str(getattr(value, "name", value) or "").rsplit(".", 1)[-1]


def refusal_in(raw: Any, before: str | None = None) -> str | None:
    """Return the text of the refusal in a provider's response or stream event, which is an object of its SDK or a dict.

    `before` is the refusal in earlier pieces. A refusal without a text is empty; None means that there is no refusal.
    """
    for choice in _items(raw, "choices"):  # OpenAI's chat completions
        message = _get(choice, "message") or _get(choice, "delta")
        if piece := _get(message, "refusal"):
            before = (before or "") + str(piece)
        elif _get(choice, "finish_reason") == "content_filter":
            before = before or ""
    found = next(_whole(raw), None)
    return before if found is None else found or before or ""


def _whole(raw: Any) -> Iterator[str]:
    """Yield the complete texts of refusals."""
    if isinstance(text := _get(raw, "refusal"), str) and text:  # also the last refusal event of OpenAI's Responses API
        yield text
    response = _get(raw, "response") or raw  # the last event of a stream has it
    for part in (part for item in _items(response, "output") for part in _items(item, "content")):
        if _get(part, "type") == "refusal":
            yield str(_get(part, "refusal") or "")
    if _get(_get(response, "incomplete_details"), "reason") == "content_filter":
        yield ""
    for part in (raw, _get(raw, "delta")):  # Anthropic
        if _get(part, "stop_reason") == "refusal":
            yield str(_get(_get(part, "stop_details"), "explanation") or "")
    finish = reason_name(_get(raw, "finish_reason"))  # Google
    blocked = reason_name(_get(raw, "block_reason") or _get(_get(raw, "prompt_feedback"), "block_reason"))
    if finish in WITHHELD or blocked not in ("", "0", "BLOCKED_REASON_UNSPECIFIED"):
        yield str(_get(raw, "finish_message") or "") or (finish if finish in WITHHELD else blocked)


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _items(value: Any, name: str) -> list[Any]:
    found = _get(value, name)
    return found if isinstance(found, list) else []
