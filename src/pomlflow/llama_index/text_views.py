"""A POML prompt as the texts that LlamaIndex's components read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import override

from pomlflow.exceptions import PomlError, VariableError
from pomlflow.template.source import Use


class PromptText(str):
    """A prompt's text as a string whose `format` renders the prompt, so that the render is traced where it happens.

    For ``+``, it is the prompt's f-string: `joined`, or the prompt's ``template`` at that moment.
    """

    __slots__ = ("_joined", "_prompt")
    prompt_class: ClassVar[type[BasePromptTemplate]]  # set where the class is defined, which imports this module
    _prompt: Any
    _joined: str | None

    def __new__(cls, text: str, prompt: BasePromptTemplate, joined: str | None = None) -> Self:
        """Make the string; `text` is its value, and `joined` the text that ``+`` uses."""
        made = super().__new__(cls, text)
        made._prompt = prompt
        made._joined = joined
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self._prompt, self._joined)

    # By these three methods, a workflow's context stores the object as JSON.

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which a context knows the object."""
        return "poml_prompt_text"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {"text": str(self), "joined": self._joined, "prompt": self._prompt.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the object that `to_dict` stored."""
        return cls(data["text"], cls.prompt_class.model_validate(data["prompt"]), data["joined"])

    @override
    def format(self, *_: object, **variables: Any) -> str:
        """Render the prompt to a text with these variables. Positional arguments are ignored."""
        text: str = self._prompt.format(**variables)
        return text

    @override
    def __add__(self, other: str) -> str:
        joined = str(self._prompt.template) if self._joined is None else self._joined
        return joined + other


def check_f_string(uses: Iterable[Use], names: Sequence[str], label: str) -> None:
    """Raise a `VariableError` if an expression computes with one of the variables: an f-string can only show them."""
    for use in uses:
        if use.name in names and not use.alone:
            raise VariableError(
                f"{label}: a component reads this prompt as an f-string, which can show {use.name!r} but not compute "
                f"{{{{ {use.expression.code} }}}}: show the variable alone, or give it a value with partial_format",
                use.name,
            )


def joined_text(messages: Iterable[ChatMessage], need: str) -> str:
    """Return the text of messages; raise a `PomlError` if they contain more, with what needs a text (`need`)."""
    blocks = [block for message in messages for block in message.blocks]
    for block in blocks:
        if not isinstance(block, TextBlock):
            raise PomlError(f"{need}, which cannot hold its {block.block_type}")
    return "\n\n".join(block.text for block in blocks if isinstance(block, TextBlock))
