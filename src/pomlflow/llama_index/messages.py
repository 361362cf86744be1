"""POML's messages to LlamaIndex's, and back."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.base.response.schema import Response
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from typing_extensions import override

from pomlflow.record import RenderRecord
from pomlflow.template.history import REQUEST, RESPONSE, History

__all__ = ["DescribedImage", "MessageHistory", "describe", "from_poml", "messages_of", "to_poml"]

_ROLES = {
    "human": MessageRole.USER,
    "ai": MessageRole.ASSISTANT,
    "system": MessageRole.SYSTEM,
    "tool": MessageRole.USER,  # what is no response answers no call
}
_SPEAKERS = {
    "system": "system",
    "developer": "system",
    "assistant": "ai",
    "chatbot": "ai",
    "model": "ai",
    "tool": "tool",
    "function": "tool",
}
# LlamaIndex names the format of a sound as OpenAI does, which takes "wav" and "mp3" alone.
_SOUNDS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}


class DescribedImage(ImageBlock):
    """A picture and the text that stands for it where it cannot be shown; no provider's request has a field for that.

    Attributes:
        alt: The text.
    """

    alt: str | None = None


def from_poml(
    messages: Sequence[Mapping[str, Any]], natives: Mapping[int, ChatMessage] | None = None
) -> list[ChatMessage]:
    """Make LlamaIndex's messages of a frame's.

    Images, sounds, videos and documents become LlamaIndex's blocks, tool requests `ToolCallBlock`s; each tool response
    becomes a message of its own with the role ``tool`` and its call's id in ``additional_kwargs``.

    Args:
        messages: The frame's messages: ``speaker`` and ``content``.
        natives: By position, messages that are LlamaIndex's already.

    Returns:
        New messages with new blocks, since LlamaIndex's agents write into the blocks that they are given.

    Example:
        >>> from_poml([{"speaker": "ai", "content": "Hello"}])[0].content
        'Hello'
    """
    made: list[ChatMessage] = []
    for position, message in enumerate(messages):
        if natives and position in natives:
            made.append(_copy(natives[position]))
            continue
        content = message["content"]
        if isinstance(content, str):
            made.append(ChatMessage(role=_ROLES[message["speaker"]], blocks=[TextBlock(text=content)]))
        else:
            made.extend(_rich(message["speaker"], content))
    return made


def _copy(message: ChatMessage) -> ChatMessage:
    return message.model_copy(
        update={
            "blocks": [block.model_copy() for block in message.blocks],
            "additional_kwargs": dict(message.additional_kwargs),
        }
    )


def _rich(speaker: str, parts: Sequence[Any]) -> list[ChatMessage]:
    blocks: list[ContentBlock] = []
    made: list[ChatMessage] = []
    for part in parts:
        if isinstance(part, Mapping) and part["type"] == RESPONSE:
            made.append(
                ChatMessage(
                    role=MessageRole.TOOL,
                    blocks=_blocks(part["content"]),
                    additional_kwargs={"tool_call_id": part["id"]},
                )
            )
        else:
            blocks.append(_block(part))
    if blocks or not made:  # an empty POML message has no parts at all, and is still a message
        calls = any(isinstance(block, ToolCallBlock) for block in blocks)  # only an assistant's message can carry them
        role = MessageRole.ASSISTANT if calls else _ROLES[speaker]
        made.insert(0, ChatMessage(role=role, blocks=blocks or [TextBlock(text="")]))
    return made


def _blocks(content: str | Sequence[Any]) -> list[ContentBlock]:
    return [_block(part) for part in ([content] if isinstance(content, str) else content)] or [TextBlock(text="")]


def _block(part: str | Mapping[str, Any]) -> ContentBlock:
    if isinstance(part, str):
        return TextBlock(text=part)
    mime: str = part["type"]
    if mime == REQUEST:
        return ToolCallBlock(tool_call_id=part["id"], tool_name=part["name"], tool_kwargs=_arguments(part["content"]))
    data, (kind, _, subtype) = part["base64"].encode(), mime.partition("/")
    if kind == "image":
        alt = part.get("alt")
        described = {"image": data, "image_mimetype": mime}
        return DescribedImage(**described, alt=alt) if alt else ImageBlock(**described)
    if kind == "audio":
        return AudioBlock(audio=data, format=_SOUNDS.get(subtype, subtype))
    if kind == "video":
        return VideoBlock(video=data, video_mimetype=mime)
    title = f"document{mimetypes.guess_extension(mime) or ''}"
    return DocumentBlock(data=data, document_mimetype=mime, title=title)


def _arguments(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        with suppress(ValueError):
            given = json.loads(given)
    return given if isinstance(given, dict) else {"input": given}


def to_poml(message: ChatMessage) -> dict[str, Any]:
    """Make POML's message of one of LlamaIndex's, for records and for templates that look into a history.

    Args:
        message: The message.

    Returns:
        ``speaker`` and ``content``; what POML has no part for becomes text that says what it was.

    Example:
        >>> to_poml(ChatMessage(role="user", content="Hello"))
        {'speaker': 'human', 'content': 'Hello'}
    """
    parts = [part for part in map(_part, message.blocks) if part != ""]
    call = message.additional_kwargs.get("tool_call_id")
    if message.role in (MessageRole.TOOL, MessageRole.FUNCTION) and call is not None:
        name = message.additional_kwargs.get("name") or ""
        parts = [{"type": RESPONSE, "id": str(call), "name": str(name), "content": _joined(parts)}]
    return {"speaker": _SPEAKERS.get(message.role.value, "human"), "content": _joined(parts)}


def _joined(parts: list[Any]) -> str | list[Any]:
    """POML's content: a text where there is nothing else."""
    if not parts:
        return ""
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _part(block: ContentBlock) -> str | dict[str, Any]:  # noqa: PLR0911 - a table, a line for each kind
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, ThinkingBlock):
        return ""  # thoughts are no part of the conversation
    if isinstance(block, ToolCallBlock):
        call = _arguments(block.tool_kwargs)
        return {"type": REQUEST, "id": block.tool_call_id or "", "name": block.tool_name, "content": call}
    if isinstance(block, ImageBlock):
        shown = _media("image", block.image, block.image_mimetype, block.url or block.path)
        alt = getattr(block, "alt", None)
        return {**shown, "alt": alt} if alt and isinstance(shown, dict) else shown
    if isinstance(block, AudioBlock):
        mime = {"mp3": "audio/mpeg"}.get(block.format or "", f"audio/{block.format or '*'}")
        return _media("audio", block.audio, mime, block.url or block.path)
    if isinstance(block, VideoBlock):
        return _media("video", block.video, block.video_mimetype, block.url or block.path)
    if isinstance(block, DocumentBlock):
        return _media("document", block.data, block.document_mimetype, block.url or block.path or block.title)
    return ""  # marks for a provider's cache, citations


def _media(kind: str, data: Any, mime: str | None, place: object) -> str | dict[str, Any]:
    if isinstance(data, bytes) and data:  # base64 already: LlamaIndex's blocks see to it
        return {"type": mime or f"{kind}/*", "base64": data.decode("ascii")}
    return f"[{kind} {place}]" if place else f"[{kind}]"


def describe(message: ChatMessage) -> dict[str, Any]:
    """Tell a template's expressions about a message: its speaker, role and content.

    Args:
        message: The message.

    Returns:
        What ``{{message.content}}`` and the like read.
    """
    return {**to_poml(message), "role": message.role.value}


def _plain(value: Any) -> Any:
    """Tell a template's expressions about LlamaIndex's own objects; all else stays as it is."""
    if isinstance(value, NodeWithScore):
        return {**_plain(value.node), "score": value.score}
    if isinstance(value, BaseNode):
        return {"id": value.node_id, "text": value.get_content(), "metadata": dict(value.metadata)}
    if isinstance(value, BasePromptTemplate):
        return str(value.get_template())
    return str(value) if isinstance(value, QueryBundle | Response) else value


class MessageHistory(History[ChatMessage]):
    """LlamaIndex's messages, nodes, queries, answers and prompts in one render of a POML template."""

    native = ChatMessage

    @override
    def take(self, variables: Mapping[str, Any], named: Sequence[str], passed: Sequence[str] = ()) -> Mapping[str, Any]:
        known = (BaseNode, NodeWithScore, BasePromptTemplate, QueryBundle, Response)
        taken: dict[str, Any] = {}
        for name, value in variables.items():
            if isinstance(value, known):
                taken[name] = _plain(value)
            # Only its start: a list of a million numbers is a variable too.
            elif isinstance(value, list | tuple) and isinstance(value[:1] and value[0], known):
                taken[name] = [_plain(item) for item in value]
        return super().take({**variables, **taken} if taken else variables, named, passed)

    @override
    def convert(self, value: Any) -> list[ChatMessage]:
        """Take messages, texts, pairs of role and text, dicts of LlamaIndex's or POML's kind, in a list or one alone.

        Args:
            value: What the user gave.
        """
        made: list[ChatMessage] = []
        for item in [value] if isinstance(value, str | Mapping | ChatMessage) else value:
            if isinstance(item, ChatMessage):
                made.append(item)
            elif isinstance(item, Mapping) and "speaker" in item:
                made += from_poml([item])
            elif isinstance(item, Mapping):
                made.append(ChatMessage(**item))
            elif isinstance(item, str):
                made += [ChatMessage(role=MessageRole.USER, content=item)] if item else []
            else:
                role, content = item
                made.append(ChatMessage(role=role, content=content))
        return made

    to_poml = staticmethod(to_poml)
    describe = staticmethod(describe)


def messages_of(record: RenderRecord, history: MessageHistory | None = None) -> list[ChatMessage]:
    """Make LlamaIndex's messages of a render; of one text, the user's message that says it.

    Args:
        record: The render.
        history: The native messages in it.

    Returns:
        New messages.

    Raises:
        PomlError: The error of a failed render.
    """
    content = record.result()["messages"]
    if record.chat:
        return from_poml(content, history.placed if history else None)
    parts = [content] if isinstance(content, str) else content
    said = [part for part in parts if isinstance(part, str) or part["type"] not in (REQUEST, RESPONSE)]
    return from_poml([{"speaker": "human", "content": said}])
