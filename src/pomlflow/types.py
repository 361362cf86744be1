"""The types of a render's result, for annotations.

poml's own classes have no types for type checkers (poml 0.0.8), so `Frame` and `Message` describe them. The others are
plain dicts.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, Protocol, TypedDict

__all__ = [
    "Frame",
    "FrameDict",
    "MediaDict",
    "Message",
    "MessageDict",
    "Speaker",
    "ToolRequestDict",
    "ToolResponseDict",
]

Speaker = Literal["human", "ai", "system", "tool"]


class Message(Protocol):
    """One message of a `Frame`, as in poml's ``PomlMessage``.

    Attributes:
        speaker: The role of the author.
        content: A text; or a list of texts and of poml's models of media, tool requests and tool responses.
    """

    speaker: Speaker
    content: str | list[Any]


class Frame(Protocol):
    """The result of a render, as in poml's ``PomlFrame``.

    Attributes:
        messages: The messages.
        output_schema: The JSON Schema of ``<output-schema>``.
        tools: The ``<tool-definition>`` elements.
        runtime: The settings of ``<runtime>``.
    """

    messages: list[Message]
    output_schema: dict[str, Any] | None
    tools: list[dict[str, Any]] | None
    runtime: dict[str, Any] | None

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return plain data, as every pydantic model does."""
        ...


class MediaDict(TypedDict):
    """A picture, sound or file in a message: its MIME type, its content in base64, and its alternative text."""

    type: str
    base64: str
    alt: NotRequired[str]


class ToolRequestDict(TypedDict):
    """A call of a tool in a message."""

    type: Literal["application/vnd.poml.toolrequest"]
    id: str
    name: str
    content: Any


class ToolResponseDict(TypedDict):
    """A tool's answer in a message."""

    type: Literal["application/vnd.poml.toolresponse"]
    id: str
    name: str
    content: str | list[str | MediaDict]


class MessageDict(TypedDict):
    """One message of ``format="message_dict"``."""

    speaker: Speaker
    content: str | list[str | MediaDict | ToolRequestDict | ToolResponseDict]


class FrameDict(TypedDict):
    """The result of ``format="dict"``; with ``chat=False``, `messages` is one text, or a list of its parts."""

    messages: list[MessageDict]
    schema: NotRequired[dict[str, Any]]
    tools: NotRequired[list[dict[str, Any]]]
    runtime: NotRequired[dict[str, Any]]
