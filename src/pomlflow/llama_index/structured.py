"""A class for what ``<output-schema>`` asks for, without anybody having written one.

LlamaIndex's structured prediction is in terms of pydantic classes: they are what it asks models for, what it gives
back, and what agents take as `output_cls`. So the schema of a POML file becomes one. What an instance may hold is
decided by the schema itself, not by pydantic, which knows less.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema
from typing_extensions import override

from pomlflow.exceptions import ConfigurationError
from pomlflow.frame import parse_answer, schema_name

__all__ = ["Answer", "output_class", "partial_answer"]


class Answer(BaseModel):
    """An answer as an ``<output-schema>`` says: its properties are attributes, and ``model_dump()`` gives a dict."""

    # Properties whose names are no identifiers, or are pydantic's own, are extras; `model_dump()` gives them too.
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    _poml_schema: ClassVar[Mapping[str, Any] | None] = None  # of an object within another, None
    _poml_place: ClassVar[str] = "<inline>"

    @model_validator(mode="before")
    @classmethod
    def _by_the_schema(cls, given: Any) -> Any:
        if cls._poml_schema is None or not isinstance(given, Mapping):
            return given
        return parse_answer(json.dumps(given, default=str), cls._poml_schema, cls._poml_place)

    @classmethod
    @override
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Give the schema itself; LlamaIndex's programs and OpenAI's client ask for it here."""
        if cls._poml_schema is None:
            return handler(core_schema)
        read: dict[str, Any] = json.loads(json.dumps(cls._poml_schema))  # they write into what they get
        return {**read, "title": cls.__name__}  # the name of the function that a model is to call

    @override
    def __reduce__(self) -> Any:
        if self._poml_schema is None:
            return super().__reduce__()
        return _again, (self._poml_schema, self._poml_place, self.model_dump(exclude_unset=True))


def _again(schema: Mapping[str, Any], place: str, values: Mapping[str, Any]) -> Answer:
    return output_class(schema, place).model_validate(values)


def output_class(schema: Mapping[str, Any] | None, place: str = "<inline>") -> type[Answer]:
    """Make a class of an output schema; the same class for the same schema.

    Args:
        schema: The JSON Schema of an object; None where the template has none.
        place: The template, for errors.

    Returns:
        A subclass of `Answer`, whose validation is that of the schema.

    Raises:
        ConfigurationError: There is none, or it is no object's, which no provider's structured output takes.

    Example:
        >>> city = output_class({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
        >>> city.model_validate({"name": "Oslo"}).name
        'Oslo'
    """
    if schema is None:
        raise ConfigurationError(f"{place} has no <output-schema> to answer by: add one, or give a pydantic class")
    if schema.get("type", "object") != "object":
        raise ConfigurationError(
            f"{place}: <output-schema> describes {schema['type']!r}, and models answer with objects only: make it a "
            "property of one"
        )
    return _made(json.dumps(schema), place)


@lru_cache(maxsize=256)
def _made(text: str, place: str) -> type[Answer]:
    schema = json.loads(text)
    made = _class(schema, _capitalised(schema_name(schema)))
    made._poml_schema, made._poml_place = schema, place
    return made


def _class(schema: Mapping[str, Any], name: str) -> type[Answer]:
    fields: dict[str, Any] = {}
    required = schema.get("required", ())
    for key, inner in schema.get("properties", {}).items():
        if key.isidentifier() and not keyword.iskeyword(key) and key[0] != "_" and not hasattr(Answer, key):
            kind = _type(inner, name + _capitalised(key))
            fields[key] = (kind, ...) if key in required else (kind | None if isinstance(kind, type) else kind, None)
    return create_model(name, __base__=Answer, __doc__=schema.get("description"), **fields)


def _type(schema: Any, name: str) -> Any:
    """Objects become classes, also in lists; of the rest the schema alone decides."""
    if not isinstance(schema, Mapping):
        return Any
    if schema.get("type") == "object" and schema.get("properties"):
        return _class(schema, name)
    items = schema.get("items")
    if schema.get("type") == "array" and isinstance(items, Mapping) and items.get("properties"):
        return list[_class(items, name)]  # type: ignore[misc]  # made here and now
    return Any


def _capitalised(name: str) -> str:
    words = "".join(char if char.isalnum() else " " for char in name).split()
    return "".join(word[0].upper() + word[1:] for word in words) or "Answer"


def partial_answer(kind: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    """Make an instance of what has come of an answer so far, unchecked.

    Args:
        kind: The class.
        given: The properties that are there.

    Returns:
        The instance; what has not come is None.
    """
    missing = {name: None for name in kind.model_fields if name not in given}
    return kind.model_construct(set(given), **missing, **given)
