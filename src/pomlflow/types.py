"""The types of a render's result, for annotations.

poml's own classes have no types for type checkers (poml 0.0.8), so `Frame` and `Message` describe them.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

__all__ = ["Frame", "Message", "Speaker"]

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
