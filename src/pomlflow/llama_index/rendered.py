"""One render, as LlamaIndex's models want it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.types import BaseOutputParser

from pomlflow.llama_index.events import deliver
from pomlflow.llama_index.messages import MessageHistory, messages_of
from pomlflow.record import RenderRecord

__all__ = ["Rendered"]


class Rendered(NamedTuple):
    """One render.

    Attributes:
        record: All that is known of it.
        messages: Its messages.
        text: Its text, where all of it is a single user's message, or chat is off.
    """

    record: RenderRecord
    messages: list[ChatMessage]
    text: str | None

    @classmethod
    def of(
        cls, record: RenderRecord, history: MessageHistory, file: Path | None = None, *, quiet: bool = False
    ) -> Rendered:
        """Tell those who listen, and read the record.

        Args:
            record: The render.
            history: The native messages in it.
            file: The absolute path of its file.
            quiet: Whether nobody is to hear of it.

        Raises:
            PomlError: The error of a failed render.
        """
        if not quiet:
            deliver(record, file)
        messages = messages_of(record, history)
        alone = not record.chat or (len(messages) == 1 and messages[0].role == "user" and not history.placed)
        return cls(record, messages, (messages[0].content or "") if alone else None)

    @property
    def place(self) -> str:
        """The template, as errors name it."""
        return self.record.path or self.record.name or "<inline>"

    def chat(self, parser: BaseOutputParser | None) -> list[ChatMessage]:
        """The messages, with what the prompt's output parser adds to them."""
        return self.messages if parser is None else parser.format_messages(self.messages)

    def completion(
        self,
        parser: BaseOutputParser | None,
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str],
        completion_to_prompt: Callable[[str], str] | None,
    ) -> str:
        """One text, with what the prompt's output parser adds to it.

        Args:
            parser: The output parser.
            messages_to_prompt: What makes a text of several messages, or of one that is not the user's.
            completion_to_prompt: What is done to the text of a single user's message.
        """
        if self.text is None:
            return messages_to_prompt(self.chat(parser))
        text = self.text if parser is None else parser.format(self.text)
        return text if completion_to_prompt is None else completion_to_prompt(text)
