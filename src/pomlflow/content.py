"""The messages in a render's output (``poml.poml(format="dict")``), and the parts of their content."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, TypeGuard

REQUEST: Final = "application/vnd.poml.toolrequest"
RESPONSE: Final = "application/vnd.poml.toolresponse"
# POML's speakers by name: their own names, and the roles of other APIs.
SPEAKERS: Final = {
    **{speaker: speaker for speaker in ("human", "ai", "system", "tool")},
    "user": "human",
    "developer": "system",
    "function": "tool",
    **dict.fromkeys(("assistant", "chatbot", "model"), "ai"),
}
_DATA_URI: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.+)", re.DOTALL)


def is_chat(messages: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Return whether messages have speakers; with chat off, they are one text or a list of its parts."""
    return isinstance(messages, list) and all(isinstance(m, dict) and "speaker" in m for m in messages)


def as_chat(messages: Any) -> list[dict[str, Any]]:
    """Return a render's messages; with chat off, its text or parts as one human message."""
    return messages if is_chat(messages) else [{"speaker": "human", "content": messages}]


def split_parts(content: str | Sequence[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """Return the tool requests of a message's content, its tool responses, and its texts and media."""
    requests: list[Any] = []
    responses: list[Any] = []
    others: list[Any] = []
    for part in [content] if isinstance(content, str) else content:
        kind = None if isinstance(part, str) else part["type"]
        (requests if kind == REQUEST else responses if kind == RESPONSE else others).append(part)
    return requests, responses, others


def joined_parts(parts: list[Any]) -> str | list[Any]:
    """Return a message's content for parts; a single text becomes a string."""
    if not parts:
        return ""
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def split_data_uri(text: str) -> tuple[str, str] | None:
    """Return the MIME type and the base64 of a data URI; None for another text."""
    found = _DATA_URI.fullmatch(text)
    return None if found is None else (found[1], found[2])


def call_arguments(content: Any) -> dict[str, Any]:
    """Return the arguments of a tool request, whose content may also be JSON text or another value."""
    if isinstance(content, str):
        with suppress(ValueError):
            content = json.loads(content)
    return content if isinstance(content, dict) else {"input": content}
