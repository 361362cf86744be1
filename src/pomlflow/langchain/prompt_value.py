"""LangChain's prompt values with the POML frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from pydantic import PrivateAttr
from typing_extensions import override

from pomlflow.content import split_parts
from pomlflow.display import result_html, short
from pomlflow.exceptions import PomlError
from pomlflow.langchain.messages import from_poml
from pomlflow.record import RenderRecord
from pomlflow.types import Frame


class _Rendered(PromptValue):
    """A prompt value with the render that it was made from. LangChain serialises only its messages or text."""

    _record: RenderRecord | None = PrivateAttr(default=None)
    _arguments: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def record(self) -> RenderRecord | None:
        """The render; None for a value that was loaded from a checkpoint."""
        return self._record

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the chain's call, which a `PomlModel` after the prompt passes to its model."""
        return self._arguments

    @property
    def frame(self) -> Frame:
        """The frame: ``messages``, ``output_schema``, ``tools``, ``runtime``.

        Raises:
            PomlError: The value holds no frame, because it was loaded from a checkpoint, for example.
        """
        if self._record is None:
            raise PomlError(
                "this prompt value holds no POML frame, since LangChain stores only the messages. Render the prompt "
                "again"
            )
        return self._record.frame

    def __repr__(self) -> str:
        return short(super().__repr__())

    def _repr_html_(self) -> str | None:
        return None if self._record is None else result_html(self._record.result(), self._record.name)


class PomlChatPromptValue(ChatPromptValue, _Rendered):
    """The messages of a render, with the POML frame.

    LangChain serialises it as a plain `ChatPromptValue`, which contains only the messages.
    """

    def __init__(self, messages: Sequence[BaseMessage], *, record: RenderRecord | None = None, **fields: Any) -> None:
        super().__init__(messages=messages, **fields)
        self._record = record

    @classmethod
    def lc_id(cls) -> list[str]:
        """Return the id of `ChatPromptValue`, which `loads` allows."""
        return ChatPromptValue.lc_id()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatPromptValue) and list(self.messages) == list(other.messages)

    __hash__ = None  # type: ignore[assignment]  # as of every mutable pydantic model


class PomlStringPromptValue(StringPromptValue, _Rendered):
    """The text of a render with ``chat=False``, with the POML frame."""

    _messages: list[BaseMessage] = PrivateAttr(default_factory=list)

    def __init__(
        self,
        text: str,
        *,
        record: RenderRecord | None = None,
        messages: Sequence[BaseMessage] = (),
        **fields: Any,
    ) -> None:
        super().__init__(text=text, **fields)
        self._record, self._messages = record, list(messages)

    @override
    def to_messages(self) -> list[BaseMessage]:
        """Return one human message with the text, and with the pictures and other media."""
        return list(self._messages) or super().to_messages()

    @classmethod
    def lc_id(cls) -> list[str]:
        """Return the id of `StringPromptValue`."""
        return StringPromptValue.lc_id()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StringPromptValue) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]


PomlPromptValue = PomlChatPromptValue | PomlStringPromptValue
"""The result of a render; a `PomlStringPromptValue` if the prompt has ``chat=False``."""


def prompt_value(record: RenderRecord, natives: Mapping[int, BaseMessage]) -> PomlPromptValue:
    """Return the prompt value of a render, or raise its error; `natives` are LangChain's own messages, by position."""
    content = record.result()["messages"]
    if record.chat:
        return PomlChatPromptValue(from_poml(content, natives), record=record)
    *_, parts = split_parts(content)
    messages = from_poml([{"speaker": "human", "content": parts}])
    text = "\n".join(part for part in parts if isinstance(part, str))  # texts with a picture between them
    return PomlStringPromptValue(text, record=record, messages=messages)
