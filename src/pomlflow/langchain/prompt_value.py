"""LangChain's prompt values with the POML frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

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

    def with_record(self, record: RenderRecord) -> Self:
        """Set the render, and return the value."""
        self._record = record
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptValue) and self.to_messages() == other.to_messages()

    __hash__ = None  # type: ignore[assignment]  # as of every mutable pydantic model

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


class PomlChatPromptValue(_Rendered, ChatPromptValue):
    """The messages of a render, with the POML frame.

    LangChain serialises it as a plain `ChatPromptValue`, which contains only the messages.
    """

    @classmethod
    def lc_id(cls) -> list[str]:
        """Return the id of `ChatPromptValue`, which `loads` allows."""
        return ChatPromptValue.lc_id()


class PomlStringPromptValue(_Rendered, StringPromptValue):
    """The text of a render with ``chat=False``, with the POML frame."""

    @override
    def to_messages(self) -> list[BaseMessage]:
        """Return one human message with the text, and with the pictures and other media."""
        if self._record is None:
            return super().to_messages()
        *_, parts = split_parts(self._record.result()["messages"])
        return from_poml([{"speaker": "human", "content": parts}])

    @classmethod
    def lc_id(cls) -> list[str]:
        """Return the id of `StringPromptValue`."""
        return StringPromptValue.lc_id()


PomlPromptValue = PomlChatPromptValue | PomlStringPromptValue
"""The result of a render; a `PomlStringPromptValue` if the prompt has ``chat=False``."""


def prompt_value(record: RenderRecord, natives: Mapping[int, BaseMessage]) -> PomlPromptValue:
    """Return the prompt value of a render, or raise its error; `natives` are LangChain's own messages, by position."""
    content = record.result()["messages"]
    if record.chat:
        return PomlChatPromptValue(messages=from_poml(content, natives)).with_record(record)
    texts = [part for part in split_parts(content)[2] if isinstance(part, str)]
    return PomlStringPromptValue(text="\n".join(texts)).with_record(record)  # texts with a picture between them
