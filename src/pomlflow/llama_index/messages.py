"""Convert POML's messages to LlamaIndex's, and back, and hold a render in the forms that LlamaIndex reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as default_messages_to_prompt
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.base.response.schema import Response
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.types import BaseOutputParser
from typing_extensions import override

from pomlflow.content import REQUEST, RESPONSE, SPEAKERS, call_arguments, joined_parts, split_parts
from pomlflow.display import result_html, short
from pomlflow.exceptions import PomlError, VariableError
from pomlflow.frame.media import audio_format, audio_type, document_name
from pomlflow.record import RenderRecord
from pomlflow.template.history import History, in_poml_form
from pomlflow.template.source import Use
from pomlflow.types import Frame

_ROLES = {
    "human": MessageRole.USER,
    "ai": MessageRole.ASSISTANT,
    "system": MessageRole.SYSTEM,
    "tool": MessageRole.USER,  # a message of the role "tool" needs the id of a call
}


class DescribedImage(ImageBlock):
    """An image with its alt text, which templates can show. Requests to providers have no place for an alt text."""

    alt: str | None = None


def from_poml(
    messages: Sequence[Mapping[str, Any]], natives: Mapping[int, ChatMessage] | None = None
) -> list[ChatMessage]:
    """Convert POML messages to LlamaIndex's; `natives` are LlamaIndex's own, by position, of which copies are returned.

    Copies, since agents change the messages that they are given.
    """
    made: list[ChatMessage] = []
    for position, message in enumerate(messages):
        if natives and position in natives:
            made.append(_copy(natives[position]))
        else:
            made.extend(_converted(message["speaker"], message["content"]))
    return made


def _copy(message: ChatMessage) -> ChatMessage:
    """Copy a message and its blocks, but not the values in `additional_kwargs`: a user's object may not be copyable."""
    return message.model_copy(
        update={
            "blocks": [block.model_copy() for block in message.blocks],
            "additional_kwargs": dict(message.additional_kwargs),
        }
    )


def _converted(speaker: str, content: str | Sequence[Any]) -> list[ChatMessage]:
    requests, responses, rest = split_parts(content)
    made = [
        ChatMessage(
            role=MessageRole.TOOL, blocks=_blocks(part["content"]), additional_kwargs={"tool_call_id": part["id"]}
        )
        for part in responses
    ]
    if rest or requests or not made:  # an empty POML message has no parts at all, and is still a message
        role = MessageRole.ASSISTANT if requests else _ROLES[speaker]  # only an assistant's message can carry calls
        made.insert(0, ChatMessage(role=role, blocks=_blocks([*rest, *requests])))
    return made


def _blocks(content: str | Sequence[Any]) -> list[ContentBlock]:
    return [_block(part) for part in ([content] if isinstance(content, str) else content)] or [TextBlock(text="")]


def _block(part: str | Mapping[str, Any]) -> ContentBlock:
    if isinstance(part, str):
        return TextBlock(text=part)
    mime: str = part["type"]
    if mime == REQUEST:
        return ToolCallBlock(
            tool_call_id=part["id"], tool_name=part["name"], tool_kwargs=call_arguments(part["content"])
        )
    data, (kind, _, subtype) = part["base64"].encode(), mime.partition("/")
    if kind == "image":
        alt = part.get("alt")
        described = {"image": data, "image_mimetype": mime}
        return DescribedImage(**described, alt=alt) if alt else ImageBlock(**described)
    if kind == "audio":
        return AudioBlock(audio=data, format=audio_format(subtype))
    if kind == "video":
        return VideoBlock(video=data, video_mimetype=mime)
    return DocumentBlock(data=data, document_mimetype=mime, title=document_name(mime))


def to_poml(message: ChatMessage) -> dict[str, Any]:
    """Convert a LlamaIndex message to POML's ``speaker`` and ``content``; media without data become a text."""
    parts = [part for part in map(_part, message.blocks) if part != ""]
    call = message.additional_kwargs.get("tool_call_id")
    if message.role in (MessageRole.TOOL, MessageRole.FUNCTION) and call is not None:
        name = message.additional_kwargs.get("name") or ""
        parts = [{"type": RESPONSE, "id": str(call), "name": str(name), "content": joined_parts(parts)}]
    return {"speaker": SPEAKERS.get(message.role.value, "human"), "content": joined_parts(parts)}


def _part(block: ContentBlock) -> str | dict[str, Any]:  # noqa: PLR0911 - a table, a line for each kind
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, ToolCallBlock):
        call = call_arguments(block.tool_kwargs)
        return {"type": REQUEST, "id": block.tool_call_id or "", "name": block.tool_name, "content": call}
    if isinstance(block, ImageBlock):
        shown = _media("image", block.image, block.image_mimetype, block.url or block.path)
        alt = getattr(block, "alt", None)
        return {**shown, "alt": alt} if alt and isinstance(shown, dict) else shown
    if isinstance(block, AudioBlock):
        return _media("audio", block.audio, audio_type(block.format or "*"), block.url or block.path)
    if isinstance(block, VideoBlock):
        return _media("video", block.video, block.video_mimetype, block.url or block.path)
    if isinstance(block, DocumentBlock):
        return _media("document", block.data, block.document_mimetype, block.url or block.path or block.title)
    return ""  # thinking, cache points, citations


def _media(kind: str, data: Any, mime: str | None, location: object) -> str | dict[str, Any]:
    if isinstance(data, bytes) and data:  # it is base64 already: LlamaIndex's blocks encode their data
        return {"type": mime or f"{kind}/*", "base64": data.decode("ascii")}
    return f"[{kind} {location}]" if location else f"[{kind}]"


def describe(message: ChatMessage) -> dict[str, Any]:
    """Return the fields of a message that expressions can read: ``speaker``, ``role`` and ``content``."""
    return {**to_poml(message), "role": message.role.value}


def _plain(value: Any) -> Any:
    """Return plain data for LlamaIndex's own objects, and other values as they are."""
    if isinstance(value, NodeWithScore):
        return {**_plain(value.node), "score": value.score}
    if isinstance(value, BaseNode):
        return {"id": value.node_id, "text": value.get_content(), "metadata": dict(value.metadata)}
    if isinstance(value, BasePromptTemplate):
        return str(value.get_template())
    return str(value) if isinstance(value, QueryBundle | Response) else value


class MessageHistory(History[ChatMessage]):
    """The LlamaIndex messages, nodes, queries, answers and prompts among the variables of one render."""

    native = ChatMessage

    @override
    def collect(
        self, variables: Mapping[str, Any], named: Sequence[str], sources: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        known = (BaseNode, NodeWithScore, BasePromptTemplate, QueryBundle, Response)
        plain: dict[str, Any] = {}
        for name, value in variables.items():
            if isinstance(value, known):
                plain[name] = _plain(value)
            # Only the first item is checked, since a variable may also be a list of a million numbers.
            elif isinstance(value, list | tuple) and value and isinstance(value[0], known):
                plain[name] = [_plain(item) for item in value]
        return super().collect({**variables, **plain} if plain else variables, named, sources)

    @override
    def convert(self, item: Any) -> list[ChatMessage]:
        """Convert a message, text, pair of role and text, or dict in either form."""
        if isinstance(item, ChatMessage):
            return [item]
        if isinstance(item, str):
            return [ChatMessage(role=MessageRole.USER, content=item)] if item else []
        if isinstance(item, list | tuple) and len(item) == 2:  # noqa: PLR2004 - a role and a text
            return [ChatMessage(role=item[0], content=item[1])]
        if not isinstance(item, Mapping):
            raise TypeError(f"it is {type(item).__name__}, not a message")
        if "speaker" in item:
            return from_poml([in_poml_form(item)])
        if "role" not in item or not item.keys() & {"content", "blocks"}:  # LlamaIndex would make an empty message
            raise TypeError("it has no role, or neither content nor blocks")
        return [ChatMessage(**item)]

    @override
    def items(self, value: Any) -> Iterable[Any]:
        return [value] if isinstance(value, str) else super().items(value)

    to_poml = staticmethod(to_poml)
    describe = staticmethod(describe)


@dataclass(frozen=True)
class Rendered:
    """One successful render in the two forms that LlamaIndex reads: messages and a text."""

    record: RenderRecord
    messages: list[ChatMessage]
    text: str | None  # None for a conversation
    parser: BaseOutputParser | None = None

    @classmethod
    def of(cls, record: RenderRecord, history: MessageHistory, parser: BaseOutputParser | None = None) -> Rendered:
        """Convert a record, or raise its error. With chat off, or with one user message only, it is also one text."""
        content = record.result()["messages"]
        if record.chat:
            messages = from_poml(content, history.placed)
            is_text = len(messages) == 1 and messages[0].role == MessageRole.USER and not history.placed
        else:
            *_, parts = split_parts(content)
            messages, is_text = from_poml([{"speaker": "human", "content": parts}]), True
        return cls(record, messages, (messages[0].content or "") if is_text else None, parser)

    @property
    def frame(self) -> Frame:
        """The POML frame: ``messages``, ``output_schema``, ``tools``, ``runtime``."""
        return self.record.frame

    def __repr__(self) -> str:
        return short(f"Rendered(messages={self.messages!r}, text={self.text!r})")

    def _repr_html_(self) -> str:
        return result_html(self.record.result(), self.record.name)

    def format_messages(self, **_: Any) -> list[ChatMessage]:
        """Return the messages, with the additions of the prompt's output parser."""
        return self.messages if self.parser is None else self.parser.format_messages(self.messages)

    def format(
        self,
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None = None,
        completion_to_prompt: Callable[[str], str] | None = None,
        **_: Any,
    ) -> str:
        """Return one text, with the additions of the prompt's output parser."""
        if self.text is None:
            return (messages_to_prompt or default_messages_to_prompt)(self.format_messages())
        text = self.text if self.parser is None else self.parser.format(self.text)
        return text if completion_to_prompt is None else completion_to_prompt(text)


def check_f_string(uses: Iterable[Use], names: Sequence[str], label: str) -> None:
    """Raise a `VariableError` if an expression computes with one of the variables: an f-string can only show them."""
    for use in uses:
        if use.name in names and not use.alone:
            raise VariableError(
                f"{label}: a component reads this prompt as an f-string, which can show {use.name!r} but not compute "
                f"{{{{ {use.expression.code} }}}}: show the variable alone, or give it a value with partial_format",
                use.name,
            )


def joined_text(messages: Iterable[ChatMessage], need: str) -> str:
    """Return the text of messages, or raise a `PomlError` if they hold more; `need` begins its message."""
    blocks = [block for message in messages for block in message.blocks]
    for block in blocks:
        if not isinstance(block, TextBlock):
            raise PomlError(f"{need}, which cannot hold its {block.block_type}")
    return "\n\n".join(block.text for block in blocks if isinstance(block, TextBlock))
