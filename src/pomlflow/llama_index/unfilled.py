"""A POML prompt some of whose variables have no values yet: as an f-string, and measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.instrumentation.span import active_span_id

from pomlflow.exceptions import PomlError, VariableError
from pomlflow.llama_index.events import deliver
from pomlflow.llama_index.messages import MessageHistory, messages_of
from pomlflow.llama_index.text_views import Name, PromptText
from pomlflow.template import Snapshot
from pomlflow.template.whitespace import protect, restore

if TYPE_CHECKING:
    from pomlflow.llama_index.prompt import PomlPromptTemplate

__all__ = ["as_f_string", "histories", "is_measured", "measure", "open_variables"]

_FILES = re.compile(r"\b(?:src|base64)\s*=|<(?:include|folder|webpage)\b", re.IGNORECASE)


def open_variables(prompt: PomlPromptTemplate) -> list[str]:
    """The needed variables, as the markup names them, that have no value yet."""
    filled = prompt._map_template_vars({**prompt.kwargs, **(prompt.function_mappings or {})})
    return [name for name in prompt._seen.inference.variables if name not in filled]


def histories(now: Snapshot) -> dict[str, list[Any]]:
    """The histories that need not be given; POML needs them."""
    return {name: [] for name in now.inference.messages if name in now.inference.optional}


def is_measured(given: Mapping[str, Any]) -> bool:
    """Whether LlamaIndex only wants to know how long a prompt is, and gives ``""`` for each of `template_vars`."""
    names = [name for name in given if type(name) is Name]
    return bool(names) and all(given[name] == "" for name in names)


def measure(prompt: PomlPromptTemplate) -> list[ChatMessage]:
    """Messages about as long as the prompt's are without its open variables; rather longer, for their tags."""
    now = prompt._refreshed()
    messages = [ChatMessage(role="user", content=now.source)]
    if _FILES.search(now.source):
        # What a document or a picture adds can only be known by a render: one, ever.
        if now.digest not in prompt._blanks:
            names = dict.fromkeys((*now.inference.variables, *now.inference.optional), "")
            blank = prompt._core.render(names, history=MessageHistory(), snapshot=now)
            prompt._blanks[now.digest] = messages if blank.error else messages_of(blank)
        messages = prompt._blanks[now.digest]
    filled = "\n".join(map(str, prompt.kwargs.values()))
    return [*messages, ChatMessage(role="user", content=filled)] if filled else list(messages)


def as_f_string(prompt: PomlPromptTemplate, *, quiet: bool = False) -> PromptText:
    """The prompt as an f-string: what `format` gives, with its open variables in braces.

    Args:
        prompt: The prompt.
        quiet: Whether nobody is to hear of the render.

    Raises:
        PomlError: An expression computes with an open variable, or the prompt has more than text.
    """
    place = prompt.path or "<inline>"
    now, names = prompt._refreshed(), {to: name for name, to in (prompt.template_var_mappings or {}).items()}
    filled = prompt._map_template_vars(prompt.kwargs)
    open_ = [name for name in now.inference.variables if name not in filled]
    for expression in now.inference.expressions:
        for name in open_:
            if expression.strip() != name and re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", expression):
                raise VariableError(
                    f"{place}: a component asks for this prompt as an f-string, which can show {name!r} but not "
                    f"compute {{{{ {expression} }}}}: show the variable alone, or give it a value with partial_format",
                    name,
                )
    shown = {name: f"{{{names.get(name, name)}}}" for name in open_}
    variables, hidden = protect({**histories(now), **filled, **shown}, now, prompt.stylesheet)
    history = MessageHistory()
    record = restore(prompt._core.render(variables, history=history, snapshot=now), hidden)
    # With open variables and outside of a run, something is being set up.
    if not quiet and (not open_ or active_span_id.get() is not None):
        deliver(record, prompt._core.path)
    blocks = [block for message in messages_of(record, history) for block in message.blocks]
    lost = next((block.block_type for block in blocks if not isinstance(block, TextBlock)), None)
    if lost is not None:
        raise PomlError(f"{place}: a component asks for this prompt as a text, which cannot hold its {lost}")
    text = "\n\n".join(block.text for block in blocks if isinstance(block, TextBlock))
    return PromptText(text, prompt, text)
