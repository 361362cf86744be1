"""Detect media in messages and stored content, and convert them to the form that a provider or MLflow accepts."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

__all__ = [
    "AUDIO_FORMATS",
    "alt_text",
    "bare_data_uris",
    "data_uri",
    "heading",
    "kind_of_media",
    "media_after_tools",
    "openai_part",
    "with_openai_parts",
]

# OpenAI accepts "wav" and "mp3" only, and frameworks send the subtype as the format.
AUDIO_FORMATS: Final = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
_DATA_URI: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,]")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
_LONG: Final = 256  # characters; a shorter run of letters is a word, or an id
# The first characters of a file in base64, by type; RIFF is WebP or WAVE, depending on its ninth byte.
_MAGIC: Final = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "JVBERi0": "application/pdf",
    "UklGR": "riff",
}

M = TypeVar("M")
P = TypeVar("P")


def kind_of_media(text: str) -> str | None:
    """Return the MIME type of a data URI; ``base64`` for bare base64 or a data URI without a type; else None.

    Example:
        >>> kind_of_media("data:image/png;base64,iVBORw0KGgo="), kind_of_media("Hello")
        ('image/png', None)
    """
    if uri := _DATA_URI.match(text):
        return uri[1] or "base64"
    return "base64" if len(text) >= _LONG and _BASE64.fullmatch(text) else None


def data_uri(mime_type: str, data: str) -> str:
    """Return a data URI for base64 data."""
    return f"data:{mime_type};base64,{data}"


def openai_part(mime_type: str, data: str, name: str | None = None) -> dict[str, Any]:
    """Return OpenAI's content part for the base64 of an image, a sound or a file.

    Example:
        >>> openai_part("audio/mpeg", "SUQz")
        {'type': 'input_audio', 'input_audio': {'data': 'SUQz', 'format': 'mp3'}}
    """
    major, _, minor = mime_type.partition("/")
    minor = minor.partition(";")[0]
    if major == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": AUDIO_FORMATS.get(minor, minor)}}
    uri = data_uri(mime_type, data)
    if major == "image":
        return {"type": "image_url", "image_url": {"url": uri}}
    return {"type": "file", "file": {"filename": name or f"file.{minor or 'bin'}", "file_data": uri}}


def with_openai_parts(value: Any) -> Any:
    """Return plain data with LangChain's media blocks as OpenAI's content parts; the same object if there are none.

    upstream: mlflow 3.12-3.18: it makes attachments only of media in OpenAI's shape, and stores LangChain's inline.

    The blocks are those of https://docs.langchain.com/oss/python/langchain/messages#content-block-reference, and those
    of LangChain before 1.0, which have ``data`` instead of ``base64``.
    """
    if isinstance(value, dict):
        data, kind = value.get("base64") or value.get("data"), value.get("mime_type")
        if value.get("type") in ("image", "audio", "video", "file") and isinstance(data, str) and isinstance(kind, str):
            return openai_part(kind, data, value.get("filename"))
        items: Any = {key: with_openai_parts(item) for key, item in value.items()}
        return items if any(items[key] is not item for key, item in value.items()) else value
    if isinstance(value, list):
        items = [with_openai_parts(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def bare_data_uris(value: Any) -> Any:
    """Return JSON data with the bare base64 of images, audio and PDF made into data URIs."""
    if isinstance(value, str):
        return _with_type(value) if len(value) >= _LONG else value
    if isinstance(value, dict):
        return {key: bare_data_uris(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bare_data_uris(item) for item in value]
    return value


def _with_type(text: str) -> str:
    kind = next((kind for magic, kind in _MAGIC.items() if text.startswith(magic)), None)
    data = text if kind is None else text.replace("\r", "").replace("\n", "")  # the line breaks of base64.encodebytes
    if kind is None or len(data) % 4 or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", data):
        return text
    if kind == "riff":
        kind = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(base64.b64decode(data[:16])[8:])
    return data_uri(kind, data) if kind else text


def media_after_tools(
    messages: Iterable[M],
    *,
    is_tool: Callable[[M], bool],
    split: Callable[[M], tuple[M, list[P]]],
    user: Callable[[list[P]], M],
) -> list[M]:
    """Move media out of messages in which OpenAI's API refuses them, such as the responses of tools.

    The media follow in a user message after the last response, since no message may be between tool calls and their
    responses.

    Args:
        messages: The messages.
        is_tool: Return whether a message is the response of a tool.
        split: Return a message without its media, and the parts to move, which begin with a `heading`.
        user: Return a user message with the given parts.
    """
    made: list[M] = []
    moved: list[P] = []
    for message in messages:
        if moved and not is_tool(message):
            made.append(user(moved))
            moved = []
        sent, parts = split(message)
        made.append(sent)
        moved += parts
    return [*made, user(moved)] if moved else made


def heading(name: str, identity: str | None) -> str:
    """Return the line before moved media, which says where they come from."""
    return f"From {name} ({identity}):" if identity else f"From {name}:"


def alt_text(part: Mapping[str, Any]) -> str:
    """Return the text that replaces a media part of POML, as in ``poml.poml(format="openai_chat")``."""
    return f"[{part['type']}: {part['alt']}]" if part.get("alt") else f"[{part['type']}]"
