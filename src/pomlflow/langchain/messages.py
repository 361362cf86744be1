"""Convert POML's messages to LangChain's and back; prompt values that hold a render."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from pydantic import PrivateAttr
from typing_extensions import override

from pomlflow.content import REQUEST, RESPONSE, SPEAKERS, call_arguments, joined_parts, split_data_uri, split_parts
from pomlflow.display import result_html, short
from pomlflow.exceptions import PomlError
from pomlflow.frame import media
from pomlflow.record import RenderRecord
from pomlflow.template.history import History, in_poml_form
from pomlflow.types import Frame

_CLASSES: dict[str, type[BaseMessage]] = {"human": HumanMessage, "ai": AIMessage, "system": SystemMessage}
_MEDIA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file"})


def from_poml(
    messages: Sequence[Mapping[str, Any]], natives: Mapping[int, BaseMessage] | None = None
) -> list[BaseMessage]:
    """Convert a frame's messages to LangChain's. `natives` are LangChain's own by position; they are not changed."""
    made: list[BaseMessage] = []
    for position, message in enumerate(messages):
        if natives and position in natives:
            made.append(natives[position])
        else:
            made.extend(_converted(message["speaker"], message["content"]))
    return made


def _converted(speaker: str, content: str | Sequence[Any]) -> list[BaseMessage]:
    requests, responses, rest = split_parts(content)
    calls = [
        {"type": "tool_call", "id": part["id"], "name": part["name"], "args": call_arguments(part["content"])}
        for part in requests
    ]
    made: list[BaseMessage] = [
        ToolMessage(content=_content(part["content"]), tool_call_id=part["id"], name=part["name"]) for part in responses
    ]
    if rest or calls or not made:  # an empty POML message has no parts at all, and is still a message
        content = _content(rest)
        # Only an AI's message can carry calls.
        message = AIMessage(content, tool_calls=calls) if calls else _CLASSES.get(speaker, HumanMessage)(content)
        made.insert(0, message)
    return made


def _content(parts: str | Sequence[Any]) -> str | list[Any]:
    """Return a message's content; a single text becomes a string, which every provider and parser takes."""
    content = parts if isinstance(parts, str) else joined_parts(list(parts))
    return content if isinstance(content, str) else [_block(part) for part in content]


def _block(part: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    mime = part["type"]
    kind, _, subtype = mime.partition("/")
    if kind == "audio":
        mime = f"audio/{media.audio_format(subtype)}"
    block = {"type": kind, "base64": part["base64"], "mime_type": mime}
    if kind not in ("image", "audio", "video"):
        block |= {"type": "file", "filename": media.document_name(mime)}
    if part.get("alt"):
        block["extras"] = {"alt": part["alt"]}
    return block


def move_media_after_tools(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Move pictures and other media out of tools' messages, where OpenAI's chat completions refuse them."""
    return media.move_media_after_tools(
        messages, is_tool=lambda message: isinstance(message, ToolMessage), split=_without_media, user=HumanMessage
    )


def _without_media(message: BaseMessage) -> tuple[BaseMessage, list[Any]]:
    if not isinstance(message, ToolMessage) or isinstance(message.content, str):
        return message, []
    found = [block for block in message.content if _is_media(block)]
    if not found:
        return message, []
    text = "\n\n".join(_as_text(block) for block in message.content)
    head = {"type": "text", "text": media.heading(message.name or "tool", message.tool_call_id)}
    return message.model_copy(update={"content": text}), [head, *found]


def _is_media(block: str | Mapping[str, Any]) -> bool:
    return isinstance(block, Mapping) and block.get("type") in _MEDIA


def _as_text(block: str | Mapping[str, Any]) -> str:
    """Return a block of a tool's response as text; media are replaced by alt text or type, without address."""
    part = _part(block)
    if isinstance(part, Mapping):
        return media.alt_text(part)
    return media.alt_text({"type": block["type"]}) if isinstance(block, Mapping) and _is_media(block) else part


def message_to_poml(message: BaseMessage) -> dict[str, Any]:
    """Convert a LangChain message to POML's ``speaker`` and ``content``, without its reasoning."""
    content = message.content
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    kind = message.type.removesuffix("MessageChunk").lower()  # a chunk's type is the name of its class
    speaker = SPEAKERS.get(kind) or SPEAKERS.get(getattr(message, "role", ""), "human")
    if isinstance(content, str) and not calls and not isinstance(message, ToolMessage):
        return {"speaker": speaker, "content": content}
    parts: list[Any] = [content] if isinstance(content, str) else [_part(block) for block in content]
    parts = [part for part in parts if part != ""]
    parts += [
        {"type": REQUEST, "id": call["id"] or "", "name": call["name"], "content": call["args"]} for call in calls
    ]
    if isinstance(message, ToolMessage):
        parts = [
            {"type": RESPONSE, "id": message.tool_call_id, "name": message.name or "", "content": joined_parts(parts)}
        ]
    return {"speaker": speaker, "content": joined_parts(parts)}


def describe(message: BaseMessage) -> dict[str, Any]:
    """Return the fields of a message that a template's expressions can read, ``{{message.content}}`` for example."""
    fields = {**message_to_poml(message), "type": message.type}
    if isinstance(message.content, str):
        # The content stays a text, which cannot hold tool calls and ids as POML's parts do: they get their own fields.
        fields["content"] = message.content
        if isinstance(message, AIMessage) and message.tool_calls:
            keys = ("id", "name", "args")
            fields["tool_calls"] = [{key: call.get(key) for key in keys} for call in message.tool_calls]
        elif isinstance(message, ToolMessage):
            fields["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        fields["name"] = message.name
    if message.id is not None:
        fields["id"] = message.id
    return fields


def _part(block: str | Mapping[str, Any]) -> str | dict[str, Any]:
    if isinstance(block, str):
        return block
    kind = str(block.get("type", ""))
    if kind in ("tool_use", "tool_call", "thinking", "reasoning"):
        return ""  # `tool_calls` has the calls as well, and reasoning is not part of the conversation
    if "text" in block:
        return str(block["text"])
    url = block.get("url") or block.get(kind)
    url = url.get("url") if isinstance(url, Mapping) else url
    data, mime = block.get("base64") or block.get("data"), block.get("mime_type") or f"{kind}/*"
    if isinstance(url, str) and (uri := split_data_uri(url)):
        mime, data = uri
    if not data:
        return f"[{kind} {url}]" if url else f"[{kind}]"
    alt = (block.get("extras") or {}).get("alt")
    return {"type": str(mime), "base64": str(data), **({"alt": alt} if alt else {})}


class MessageHistory(History[BaseMessage]):
    """The LangChain messages among the variables of one render."""

    native = BaseMessage

    @override
    def convert(self, item: Any) -> list[BaseMessage]:
        """Convert a message, tuple, text, or dict of OpenAI's or POML's form."""
        if isinstance(item, BaseMessage):
            return [item]
        if isinstance(item, Mapping) and "speaker" in item:
            if "type" not in item or not isinstance(item["content"], str):
                return from_poml([in_poml_form(item)])
            item = {key: value for key, value in item.items() if key != "speaker"}  # as `describe` returns it
        return convert_to_messages([item])  # raises for other types

    @override
    def items(self, value: Any) -> Iterable[Any]:
        """Return the items of a list, a prompt value or a message; a text has no role, and is a `TypeError`."""
        if isinstance(value, str):
            raise TypeError("a history is a list of messages, not a text")
        return value.to_messages() if isinstance(value, PromptValue) else super().items(value)

    to_poml = staticmethod(message_to_poml)
    describe = staticmethod(describe)


class _Rendered(PromptValue):
    """A prompt value with the render that it was made from. LangChain serialises only its messages or text."""

    _record: RenderRecord | None = PrivateAttr(default=None)
    _arguments: dict[str, Any] = PrivateAttr(default_factory=dict)

    def with_record(self, record: RenderRecord) -> Self:
        """Set the render and return the value."""
        self._record = record
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptValue) and self.to_messages() == other.to_messages()

    __hash__ = None  # type: ignore[assignment]  # like every mutable pydantic model

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
        """Return one human message with the text, the pictures and the other media."""
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
