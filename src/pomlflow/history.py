"""A framework's own messages through a POML template, untouched.

POML's messages hold less than a framework's: ``<conversation>`` rejects tool messages, merges neighbours of one
speaker and knows no ids. So each native message goes in as a mark, POML decides where it comes out, and there the
native message is put back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["History"]

M = TypeVar("M")


class History(Generic[M]):
    """The native messages of one render.

    Args:
        to_poml: A native message as POML's: ``speaker`` and ``content``.
        describe: A native message as the template's expressions see it, ``speaker`` among it.

    Attributes:
        marks: By variable, the mark of each of its messages; what the engine wants.
        placed: After `splice`: where in the output a native message stands, and which.
    """

    def __init__(self, to_poml: Callable[[M], dict[str, Any]], describe: Callable[[M], dict[str, Any]]) -> None:
        self._to_poml = to_poml
        self._describe = describe
        # Unknown to whoever wrote a message: a text cannot pretend to be a mark.
        self._nonce = secrets.token_hex(8)
        self._messages: list[M] = []
        self.marks: dict[str, list[str]] = {}
        self.placed: dict[int, M] = {}

    def add(self, variable: str, messages: Sequence[M]) -> list[dict[str, Any]]:
        """Take a variable's messages, in order.

        Args:
            variable: The variable's name.
            messages: The native messages.

        Returns:
            What the template's expressions see of them.
        """
        first = len(self._messages)
        self._messages.extend(messages)
        self.marks[variable] = [self._mark(index) for index in range(first, len(self._messages))]
        return [self._describe(message) for message in messages]

    def splice(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Put the native messages where their marks came out.

        Args:
            output: What the engine gave, with messages.

        Returns:
            The same with each mark's message in POML's form; `placed` tells where they are.
        """
        whole_line = re.compile(rf"(?:\A|\n)\ue000{self._nonce}:(\d+)\ue001(?=\n|\Z)")
        messages: list[dict[str, Any]] = []
        for message in output["messages"]:
            content = message["content"]
            parts: list[Any] = []
            for part in [content] if isinstance(content, str) else content:
                if not isinstance(part, str):
                    parts.append(part)
                    continue
                # split() gives text, index, text, index … text
                pieces = whole_line.split(part)
                parts.extend(self._text(pieces[0]))
                for index, text in zip(pieces[1::2], pieces[2::2], strict=True):
                    _flush(messages, message, parts)
                    self.placed[len(messages)] = self._messages[int(index)]
                    messages.append(self._to_poml(self._messages[int(index)]))
                    parts = self._text(text)
            _flush(messages, message, parts, keep_empty=not content)
        return {**output, "messages": messages}

    def _mark(self, index: int) -> str:
        # Private-use characters: no syntax of POML's escapes them or breaks a line at them.
        return f"\ue000{self._nonce}:{index}\ue001"

    def _text(self, text: str) -> list[str]:
        """The text between marks; a mark inside a line (of serialised XML or JSON) becomes its message's text."""
        text = re.sub(
            rf"\ue000{self._nonce}:(\d+)\ue001",
            lambda found: _plain(self._to_poml(self._messages[int(found[1])])["content"]),
            text.strip("\n"),
        )
        return [text] if text else []


def _flush(
    messages: list[dict[str, Any]], like: Mapping[str, Any], parts: list[Any], *, keep_empty: bool = False
) -> None:
    if parts or keep_empty:
        content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts
        messages.append({**like, "content": content})


def _plain(content: str | Sequence[Any]) -> str:
    return content if isinstance(content, str) else " ".join(part for part in content if isinstance(part, str))
