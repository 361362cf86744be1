"""Convert LlamaIndex's prompts to POML markup."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.prompts.base import BasePromptTemplate

from pomlflow.exceptions import ConversionError
from pomlflow.template.writing import Item, Markup, message, picture, variable, write

_SPEAKERS: Final = {"system": "system", "user": "human", "assistant": "ai"}
_FIELD: Final = re.compile(r"\{([a-zA-Z_]\w*)\}", re.ASCII)  # LlamaIndex does not change other braces


def to_poml(prompt: BasePromptTemplate) -> str:
    """Convert a ``ChatPromptTemplate`` or ``PromptTemplate`` to POML markup that renders to the same messages.

    Variables with text values are rendered unchanged. POML encodes pictures again.

    Args:
        prompt: The prompt. It may have partial values that are texts, variable mappings, and pictures.

    Returns:
        The markup.

    Raises:
        ConversionError: A part of the prompt cannot be expressed in POML; the message names it and the remedy.

    Example:
        >>> print(to_poml(PromptTemplate("From {context_str}: {query_str}")))
        <poml>
          <human-msg whiteSpace="pre">From {{context_str}}: {{query_str}}</human-msg>
        </poml>
        <BLANKLINE>
    """
    if type(prompt) is RichPromptTemplate:
        remedy = 'write it anew, by the table in docs/migration.md, "From RichPromptTemplate"'
        raise _no_form(type(prompt).__name__, f"is written in Jinja, which has no form here: {remedy}")
    if type(prompt) not in (ChatPromptTemplate, PromptTemplate):
        raise _no_form(type(prompt).__name__, "has no form here: convert the prompts in it, or write it anew")
    if prompt.output_parser is not None:
        raise _no_form("output_parser", "has no form in POML: give it to the new prompt")
    for name in prompt.function_mappings or {}:
        raise _no_form(name, "is a function: give function_mappings to the new prompt")
    fields = _Fields(prompt)
    if isinstance(prompt, PromptTemplate):
        return write([message("human", fields.parts(prompt.template))])
    assert isinstance(prompt, ChatPromptTemplate)  # noqa: S101
    return write([_message(template, fields) for template in prompt.message_templates])


class _Fields:
    """Converts texts with the variables and partial values of one prompt."""

    def __init__(self, prompt: BasePromptTemplate) -> None:
        self._values = prompt.kwargs
        self._names = {inner: outer for outer, inner in (prompt.template_var_mappings or {}).items()}

    def parts(self, template: str) -> Iterator[str]:
        pieces = _FIELD.split(template)
        for text, name in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            if text:
                yield text
            if name is not None:
                yield self._variable(self._names.get(name, name))

    def _variable(self, name: str) -> Markup:
        value: Any = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise _no_form(name, f"has a partial value of type {type(value).__name__}: give it to the new prompt")
        return variable(name, value)


def _message(template: ChatMessage, fields: _Fields) -> Item:
    role = str(template.role.value)
    if role not in _SPEAKERS:
        raise _no_form(f"the role {role}", "has no form in POML: pass such messages as a history, to <conversation>")
    if template.additional_kwargs:
        raise _no_form("additional_kwargs", "have no form in POML: remove them")
    return message(_SPEAKERS[role], [part for block in template.blocks for part in _block(block, fields)])


def _block(block: Any, fields: _Fields) -> Iterator[str]:
    if isinstance(block, TextBlock):
        yield from fields.parts(block.text)
    elif isinstance(block, ImageBlock) and block.url is None and block.detail is None:
        data = base64.b64encode(block.resolve_image().read()).decode()
        yield picture(block.image_mimetype or "image/png", data)
    else:
        kind = getattr(block, "block_type", type(block).__name__)
        raise _no_form(f"a content block of type {kind}", "has no form in POML, unless it is a picture in base64")


def _no_form(part: str, why: str) -> ConversionError:
    return ConversionError(f"{part} {why}", part)
