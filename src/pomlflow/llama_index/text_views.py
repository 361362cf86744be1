"""A POML prompt as the texts that LlamaIndex and notebooks take it for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from typing_extensions import override

if TYPE_CHECKING:
    from pomlflow.llama_index.prompt import PomlPromptTemplate

__all__ = ["Name", "PromptText", "markdown"]


class Name(str):
    """A variable's name, as `template_vars` tells it.

    LlamaIndex measures how long a prompt is without its variables by formatting it with ``""`` for each of
    `template_vars`. Because the names come back as they were given, that is told from a call that means it.
    """

    __slots__ = ()


class PromptText(str):
    """A prompt as a text.

    Formatted, it is the prompt's render; joined to another text, it is the prompt's f-string. So neither braces nor
    tags of the markup are in the way where a component of LlamaIndex does so, and the render is traced at its place.

    Args:
        text: The text.
        prompt: The prompt.
        joined: What is joined to another text; by default what the prompt's ``template`` gives then.
    """

    __slots__ = ("_joined", "_prompt")
    _prompt: PomlPromptTemplate
    _joined: str | None

    def __new__(cls, text: str, prompt: PomlPromptTemplate, joined: str | None = None) -> Self:
        """Make it of the text that it shows."""
        made = super().__new__(cls, text)
        made._prompt = prompt
        made._joined = joined
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self._prompt, self._joined)

    @override
    def format(self, *_: object, **variables: Any) -> str:
        """Render the prompt with these variables."""
        return self._prompt.format(**variables)

    @override
    def __add__(self, other: str) -> str:
        joined = str(self._prompt.template) if self._joined is None else self._joined
        return joined + other


def markdown(title: str, messages: Sequence[ChatMessage]) -> str:
    """Show messages in a notebook.

    Args:
        title: What stands above them.
        messages: The messages.

    Returns:
        Markdown: each message's role, its text as it is, and its pictures.
    """
    shown = [f"**{title}**"]
    for message in messages:
        shown.append(f"*{message.role.value}*")
        for block in message.blocks:
            if isinstance(block, TextBlock):
                shown.append(fenced(block.text, "text"))
            elif isinstance(block, ImageBlock) and isinstance(block.image, bytes):
                shown.append(f"![picture](data:{block.image_mimetype};base64,{block.image.decode()})")
            else:
                shown.append(f"`[{block.block_type}]`")
    return "\n\n".join(shown)


def fenced(text: str, kind: str) -> str:
    """Make a code block of a text, fences in it or not.

    Args:
        text: The text.
        kind: The language.

    Returns:
        Markdown.
    """
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"
