"""Convert LlamaIndex's prompts to POML markup."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.prompts.base import BasePromptTemplate

from pomlflow.template.writing import Item, message, no_form, picture, with_variables, write

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
        raise no_form(type(prompt).__name__, f"is written in Jinja, which has no form in POML: {remedy}")
    if type(prompt) is PromptTemplate:
        templates = [ChatMessage(prompt.template)]
    elif type(prompt) is ChatPromptTemplate:
        templates = prompt.message_templates
    else:
        raise no_form(type(prompt).__name__, "has no form in POML: convert the prompts in it, or write it anew")
    if prompt.output_parser is not None:
        raise no_form("output_parser", "has no form in POML: give it to the new prompt")
    for name in prompt.function_mappings or {}:
        raise no_form(name, "is a function: give function_mappings to the new prompt")
    return write([_message(template, prompt) for template in templates])


def _parts(template: str, prompt: BasePromptTemplate) -> Iterator[str]:
    """Convert a text with the variables and partial values of a prompt."""
    names = {inner: outer for outer, inner in (prompt.template_var_mappings or {}).items()}
    pieces = _FIELD.split(template)
    pieces[1::2] = [names.get(name, name) for name in pieces[1::2]]
    return with_variables(pieces, prompt.kwargs)


def _message(template: ChatMessage, prompt: BasePromptTemplate) -> Item:
    role = str(template.role.value)
    if role not in _SPEAKERS:
        raise no_form(f"the role {role}", "has no form in POML: pass such messages as a history, to <conversation>")
    if template.additional_kwargs:
        raise no_form("additional_kwargs", "have no form in POML: remove them")
    return message(_SPEAKERS[role], [part for block in template.blocks for part in _block(block, prompt)])


def _block(block: Any, prompt: BasePromptTemplate) -> Iterator[str]:
    if isinstance(block, TextBlock):
        yield from _parts(block.text, prompt)
    elif isinstance(block, ImageBlock) and block.url is None and block.detail is None:
        data = base64.b64encode(block.resolve_image().read()).decode()
        yield picture(block.image_mimetype or "image/png", data)
    else:
        kind = getattr(block, "block_type", type(block).__name__)
        raise no_form(f"a content block of type {kind}", "has no form in POML, unless it is a picture in base64")
