"""Make a pydantic class for an ``<output-schema>``, describe it to a model, and read the answer."""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.llms.utils import parse_partial_json
from llama_index.core.output_parsers import PydanticOutputParser
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema
from typing_extensions import override

from pomlflow.exceptions import ConfigurationError
from pomlflow.frame.answers import parse_answer
from pomlflow.frame.schema import schema_name
from pomlflow.frame.tools import ToolSpec


class Answer(BaseModel):
    """An answer that matches an ``<output-schema>``. Properties are attributes; ``model_dump()`` returns a dict."""

    # Properties whose names are not identifiers, or are pydantic's own, are extras; `model_dump()` includes them.
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    poml_schema: ClassVar[Mapping[str, Any] | None] = None  # None for the class of an inner object
    poml_label: ClassVar[str] = "<inline>"

    @model_validator(mode="before")
    @classmethod
    def _validated_by_schema(cls, given: Any) -> Any:
        if cls.poml_schema is None or not isinstance(given, Mapping):
            return given
        return parse_answer(json.dumps(given, default=str), cls.poml_schema, cls.poml_label)

    @classmethod
    @override
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the schema itself: LlamaIndex's programs and OpenAI's client read it here."""
        if cls.poml_schema is None:
            return handler(core_schema)
        read: dict[str, Any] = json.loads(json.dumps(cls.poml_schema))  # a copy, since both change it
        return {**read, "title": cls.__name__}  # the name of the function that the model calls


def output_class(schema: Mapping[str, Any] | None, label: str = "<inline>") -> type[Answer]:
    """Return the subclass of `Answer` for an output schema; the same class for the same schema."""
    if schema is None:
        raise ConfigurationError(f"{label} has no <output-schema>: add one, or give a pydantic class")
    if schema.get("type", "object") != "object":
        raise ConfigurationError(
            f"{label}: <output-schema> describes {schema['type']!r}, but models answer with objects only: make it a "
            "property of an object"
        )
    return _class_for(json.dumps(schema), label)


@lru_cache(maxsize=256)
def _class_for(text: str, label: str) -> type[Answer]:
    schema = json.loads(text)
    made = _class(schema, _capitalised(schema_name(schema)))
    made.poml_schema, made.poml_label = schema, label
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
    """Return a class for an object or a list of objects; other values are validated by the schema alone."""
    if not isinstance(schema, Mapping):
        return Any
    if schema.get("type") == "object" and schema.get("properties"):
        return _class(schema, name)
    items = schema.get("items")
    if schema.get("type") == "array" and isinstance(items, Mapping) and items.get("properties"):
        return list[_class(items, name)]  # type: ignore[misc]  # made at run time
    return Any


def _capitalised(name: str) -> str:
    words = "".join(char if char.isalnum() else " " for char in name).split()
    return "".join(word[0].upper() + word[1:] for word in words) or "Answer"


class AnswerReader(NamedTuple):
    """Reads a structured answer."""

    kind: type[BaseModel]
    schema: Mapping[str, Any]
    label: str

    @classmethod
    def of(cls, kind: type[BaseModel] | None, schema: Mapping[str, Any] | None, label: str) -> AnswerReader:
        """Return a reader. A missing class is made from the schema, and a missing schema is that of the class."""
        kind = kind or output_class(schema, label)
        return cls(kind, schema or kind.model_json_schema(), label)

    def tool(self) -> ToolSpec:
        """Return the tool whose arguments are the answer."""
        return ToolSpec(self.kind.__name__, self.schema.get("description") or "Returns the answer.", self.schema)

    def read(self, text: str) -> BaseModel:
        """Return the answer as an instance, or raise `AnswerError`."""
        return self.kind.model_validate(parse_answer(text, self.schema, self.label))

    def partial(self, text: str) -> BaseModel | None:
        """Return the streamed answer so far as an unchecked instance, or None if it has no values yet."""
        with suppress(ValueError, TypeError):  # a property may have the name of a parameter of `model_construct`
            found = parse_partial_json(text)
            if isinstance(found, dict) and any(value is not None for value in found.values()):
                return self.kind.model_construct(set(found), **{**dict.fromkeys(self.kind.model_fields), **found})
        return None


@lru_cache(maxsize=256)  # pydantic takes 0.1 ms for a schema
def instructions(kind: type[BaseModel]) -> str:
    """Return LlamaIndex's own instructions to answer with JSON that matches a class."""
    return PydanticOutputParser(kind).get_format_string(escape_json=False).strip()


def with_instructions(messages: list[ChatMessage], text: str) -> list[ChatMessage]:
    """Append a text to the last message if that is the user's, else add a user message with it."""
    if not text:
        return list(messages)
    if not messages or messages[-1].role != MessageRole.USER:
        return [*messages, ChatMessage(role=MessageRole.USER, content=text)]
    *before, last = messages
    blocks = [*last.blocks, TextBlock(text=text)]
    if len(last.blocks) == 1 and isinstance(last.blocks[0], TextBlock):  # many clients take a single text only
        blocks = [TextBlock(text=f"{last.blocks[0].text}\n\n{text}")]
    return [*before, last.model_copy(update={"blocks": blocks})]
