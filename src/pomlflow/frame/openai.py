"""A frame's messages in the shape of OpenAI's chat completions.

The shape: https://platform.openai.com/docs/api-reference/chat/create. There are two who read it. MLflow's page shows it
as a chat, whatever stands in it; OpenAI's API refuses what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["chat_messages", "media_part", "shown_messages"]

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_TOOL_REQUEST = "application/vnd.poml.toolrequest"
_TOOL_RESPONSE = "application/vnd.poml.toolresponse"
_AUDIO_FORMATS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}


def shown_messages(messages: str | list[Any]) -> list[dict[str, Any]]:
    """POML's messages as OpenAI's for whoever looks at them, each with POML's speaker beside the role.

    MLflow's page shows it as a chat, and stores media in it as attachments.

    Args:
        messages: As a frame has them; with chat off one text or a list of parts, which becomes one user message.

    Returns:
        Messages: a tool's responses one by one, requests as the assistant's ``tool_calls``.

    Example:
        >>> shown_messages([{"speaker": "human", "content": "Hello"}])
        [{'role': 'user', 'speaker': 'human', 'content': 'Hello'}]
    """
    return [shown for speaker, content in _spoken(messages) for shown in _shown_message(speaker, content)]


def chat_messages(messages: str | list[Any]) -> list[dict[str, Any]]:
    """POML's messages as OpenAI's API takes them.

    A tool's response may be text only there, so its pictures and sounds follow in a user's message, as soon as all
    responses are told: the API wants those right behind their requests. A message without content is left out.

    Args:
        messages: As a frame has them; with chat off one text or a list of parts, which becomes one user message.

    Returns:
        Messages for ``client.chat.completions.create(messages=…)``.

    Example:
        >>> chat_messages([{"speaker": "human", "content": ["Hello"]}])
        [{'role': 'user', 'content': 'Hello'}]
    """
    sent: list[dict[str, Any]] = []
    media: list[dict[str, Any]] = []
    for speaker, content in _spoken(messages):
        parts = _parts(content)
        responses = [part for part in parts if _kind(part) == _TOOL_RESPONSE]
        if media and not responses:
            sent.append({"role": "user", "content": media})
            media = []
        if not responses and isinstance(content, str):  # an empty one is the author's own
            sent.append({"role": _ROLES.get(speaker, speaker), "content": content})
        elif message := _chat_message(speaker, [part for part in parts if part not in responses]):
            sent.append(message)
        for part in responses:
            sent.append({"role": "tool", "tool_call_id": part["id"], "content": _text(part["content"])})
            media += _told_media(part)
    return [*sent, {"role": "user", "content": media}] if media else sent


def media_part(mime_type: str, data: str, name: str | None = None) -> dict[str, Any]:
    """One of OpenAI's content parts for an image, a sound or a file.

    Args:
        mime_type: ``image/png``, ``audio/wav``, ``application/pdf`` …
        data: Base64.
        name: The file's name, where it has one.

    Returns:
        An ``image_url``, ``input_audio`` or ``file`` part.

    Example:
        >>> media_part("audio/mpeg", "SUQz")
        {'type': 'input_audio', 'input_audio': {'data': 'SUQz', 'format': 'mp3'}}
    """
    major, _, minor = mime_type.partition("/")
    minor = minor.partition(";")[0]
    if major == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO_FORMATS.get(minor, minor)}}
    uri = f"data:{mime_type};base64,{data}"
    if major == "image":
        return {"type": "image_url", "image_url": {"url": uri}}
    return {"type": "file", "file": {"filename": name or f"file.{minor or 'bin'}", "file_data": uri}}


def _spoken(messages: str | list[Any]) -> Iterator[tuple[str, str | list[Any]]]:
    """Speaker and content of each message."""
    if isinstance(messages, str) or not all(isinstance(m, dict) and "speaker" in m for m in messages):
        yield "human", messages
        return
    for message in messages:
        yield message["speaker"], message["content"]


def _parts(content: str | list[Any]) -> list[Any]:
    return [content] if isinstance(content, str) else content


def _kind(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def _shown_message(speaker: str, content: str | list[Any]) -> Iterator[dict[str, Any]]:
    head = {"role": _ROLES.get(speaker, speaker), "speaker": speaker}
    if isinstance(content, str):
        yield {**head, "content": content}
        return
    calls = [_tool_call(part) for part in content if _kind(part) == _TOOL_REQUEST]
    responses = [part for part in content if _kind(part) == _TOOL_RESPONSE]
    rest = [part for part in content if _kind(part) not in (_TOOL_REQUEST, _TOOL_RESPONSE)]
    if calls:
        yield {**head, "content": _openai_content(rest) or None, "tool_calls": calls}
    elif rest or not responses:
        yield {**head, "content": _openai_content(rest)}
    for part in responses:
        shown = _openai_content(part["content"])
        yield {"role": "tool", "speaker": speaker, "tool_call_id": part["id"], "name": part["name"], "content": shown}


def _chat_message(speaker: str, parts: list[Any]) -> dict[str, Any] | None:
    calls = [_tool_call(part) for part in parts if _kind(part) == _TOOL_REQUEST]
    rest = [part for part in parts if _kind(part) != _TOOL_REQUEST]
    message: dict[str, Any] = {"role": _ROLES.get(speaker, speaker)}
    if rest:
        message["content"] = _openai_content(rest)
    if calls:
        message["tool_calls"] = calls
    return message if rest or calls else None


def _openai_content(content: str | list[Any]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if all(isinstance(part, str) for part in content) and len(content) <= 1:
        return "".join(content)
    return [_content_part(part) for part in content]


def _content_part(part: Any) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else media_part(part["type"], part["base64"])


def _tool_call(part: Mapping[str, Any]) -> dict[str, Any]:
    content = part["content"]
    arguments = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return {"id": part["id"], "type": "function", "function": {"name": part["name"], "arguments": arguments}}


def _text(content: str | list[Any]) -> str:
    """A tool's response as text: media by what they are, as ``poml.poml(format="openai_chat")`` has them."""
    return "\n\n".join(part if isinstance(part, str) else f"[{_described(part)}]" for part in _parts(content))


def _described(part: Mapping[str, Any]) -> str:
    return f"{part['type']}: {part['alt']}" if part.get("alt") else str(part["type"])


def _told_media(response: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The media of a tool's response as parts of a user's message, behind a line that says whose they are."""
    media = [part for part in _parts(response["content"]) if not isinstance(part, str)]
    if media:
        yield {"type": "text", "text": f"From {response['name']} ({response['id']}):"}
    yield from map(_content_part, media)
