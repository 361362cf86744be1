"""What a POML prompt gives: LangChain's prompt values, with the frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from pydantic import PrivateAttr
from typing_extensions import override

from pomlflow.exceptions import PomlError
from pomlflow.langchain.messages import from_poml
from pomlflow.record import RenderRecord
from pomlflow.template.history import REQUEST, RESPONSE

if TYPE_CHECKING:
    from poml.api import PomlFrame

__all__ = ["PomlChatPromptValue", "PomlStringPromptValue", "prompt_value"]


class PomlChatPromptValue(ChatPromptValue):
    """Messages, with all else that the POML frame says.

    To LangChain and its serialisation it is a plain `ChatPromptValue`; what comes back from there holds the messages.
    """

    _record: RenderRecord | None = PrivateAttr(default=None)

    @property
    def frame(self) -> PomlFrame:
        """The frame: ``messages``, ``output_schema``, ``tools``, ``runtime``.

        Raises:
            PomlError: The value was made of messages alone, out of a checkpoint for example.
        """
        return _frame(self._record)

    @classmethod
    def lc_id(cls) -> list[str]:
        """The identity of `ChatPromptValue`: `loads` knows that class, and not this one."""
        return ChatPromptValue.lc_id()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatPromptValue) and list(self.messages) == list(other.messages)

    __hash__ = None  # type: ignore[assignment]  # as of every mutable pydantic model


class PomlStringPromptValue(StringPromptValue):
    """One text, with all else that the POML frame says; what a prompt with ``chat=False`` gives."""

    _record: RenderRecord | None = PrivateAttr(default=None)
    _messages: list[BaseMessage] = PrivateAttr(default_factory=list)

    @property
    def frame(self) -> PomlFrame:
        """The frame: ``messages`` (one, the human's), ``output_schema``, ``tools``, ``runtime``.

        Raises:
            PomlError: The value was made of a text alone, out of a checkpoint for example.
        """
        return _frame(self._record)

    @override
    def to_messages(self) -> list[BaseMessage]:
        """One human message; pictures and other media, which a text cannot hold, are in it."""
        return list(self._messages) or super().to_messages()

    @classmethod
    def lc_id(cls) -> list[str]:
        """The identity of `StringPromptValue`."""
        return StringPromptValue.lc_id()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StringPromptValue) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]


def prompt_value(record: RenderRecord, natives: Mapping[int, BaseMessage]) -> PromptValue:
    """Give the prompt value of a render.

    Args:
        record: The render.
        natives: By position in its messages, those that are LangChain's already.

    Returns:
        Messages, or a text where that was asked for.

    Raises:
        PomlError: The error of a failed render.
    """
    content = record.result()["messages"]
    if record.chat:
        value = PomlChatPromptValue(messages=from_poml(content, natives))
        value._record = record
        return value
    parts = [content] if isinstance(content, str) else content
    text = PomlStringPromptValue(text=_text(parts))
    said = [part for part in parts if isinstance(part, str) or part["type"] not in (REQUEST, RESPONSE)]
    text._messages = from_poml([{"speaker": "human", "content": said}])
    text._record = record
    return text


def _text(parts: Sequence[Any]) -> str:
    """The text of parts; where a picture stood between two blocks, a line ends."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            joined = not text or text[-1].isspace() or part[:1].isspace()
            text += part if joined else f"\n{part}"
    return text


def _frame(record: RenderRecord | None) -> PomlFrame:
    if record is None:
        raise PomlError("this prompt value holds no POML frame: what LangChain stores is the messages; render again")
    return record.frame
