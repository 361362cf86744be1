"""Detect media in messages and stored content, and convert them to the form that a provider or MLflow accepts."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

# OpenAI accepts "wav" and "mp3" only, and frameworks send the subtype as the format.
_AUDIO_FORMATS: Final = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
_DATA_URI: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,]")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
_LONG: Final = 256  # characters; a shorter run of letters is a word, or an id
# The first characters of a file in base64, by type; RIFF is WebP or WAVE, by its bytes 9 to 12.
_MAGIC: Final = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "JVBERi0": "application/pdf",
    "UklGR": "riff",
}
# For each type of LlamaIndex's blocks: the field of the data, the field of its media type, and the default of that.
_BLOCKS: Final = {
    "image": ("image", "image_mimetype", "image/png"),
    "audio": ("audio", "format", "wav"),
    "video": ("video", "video_mimetype", "video/mp4"),
    "document": ("data", "document_mimetype", "application/pdf"),
}

M = TypeVar("M")
P = TypeVar("P")


def kind_of_media(text: str) -> str | None:
    """Return the MIME type of a data URI; ``base64`` for bare base64 or a data URI without a type; else None."""
    if uri := _DATA_URI.match(text):
        return uri[1] or "base64"
    return "base64" if len(text) >= _LONG and _BASE64.fullmatch(text) else None


def audio_format(subtype: str) -> str:
    """Return OpenAI's name of an audio format for the subtype of a MIME type."""
    return _AUDIO_FORMATS.get(subtype, subtype)


def audio_type(format_: str) -> str:
    """Return the MIME type of an audio format."""
    return "audio/mpeg" if format_ == "mp3" else f"audio/{format_}"


def document_name(mime_type: str) -> str:
    """Return a file name for a document, since OpenAI rejects a file without one."""
    return f"document{mimetypes.guess_extension(mime_type) or ''}"


def openai_part(mime_type: str, data: str, name: str | None = None) -> dict[str, Any]:
    """Return OpenAI's content part for the base64 of an image, a sound or a file."""
    major, _, minor = mime_type.partition("/")
    minor = minor.partition(";")[0]
    if major == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": audio_format(minor)}}
    uri = f"data:{mime_type};base64,{data}"
    if major == "image":
        return {"type": "image_url", "image_url": {"url": uri}}
    return {"type": "file", "file": {"filename": name or f"file.{minor or 'bin'}", "file_data": uri}}


def replace_values(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return JSON data with values replaced by what `change` returns for them; the same object if nothing changes."""
    if (changed := change(value)) is not value:
        return changed
    if isinstance(value, Mapping):
        items = {key: replace_values(item, change) for key, item in value.items()}
        return items if any(items[key] is not item for key, item in value.items()) else value
    if isinstance(value, list | tuple):
        made = [replace_values(item, change) for item in value]
        return made if any(new is not old for new, old in zip(made, value, strict=True)) else value
    return value


def with_openai_parts(value: Any) -> Any:
    """Return JSON data with LangChain's media blocks as OpenAI's content parts; the same object if there are none.

    The blocks are those of https://docs.langchain.com/oss/python/langchain/messages#content-block-reference, and those
    of LangChain before 1.0, which have ``data`` instead of ``base64``.
    """
    # upstream: mlflow 3.12-3.18: it makes attachments only of media in OpenAI's shape, and stores LangChain's inline.
    return replace_values(value, _openai_part_of_block)


def _openai_part_of_block(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("type") not in ("image", "audio", "video", "file"):
        return value
    data, mime_type = value.get("base64") or value.get("data"), value.get("mime_type")
    if isinstance(data, str) and isinstance(mime_type, str):
        return openai_part(mime_type, data, value.get("filename"))
    return value


def with_data_uris(value: Any) -> Any:
    """Return JSON data with the media of LlamaIndex's blocks as data URIs; the same object if there are none."""
    # upstream: mlflow 3.12-3.18: LlamaIndex's blocks are stored inline, attachments are made of data URIs alone
    return replace_values(value, _block_with_data_uri)


def _block_with_data_uri(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("block_type") not in _BLOCKS:
        return value
    field, type_field, default = _BLOCKS[value["block_type"]]
    data = value.get(field)
    # Neither a data URI, nor an attachment, nor a note in brackets that MLflow has written instead.
    if not isinstance(data, str) or not data or data.startswith(("data:", "mlflow-attachment://", "[")):
        return value
    kind = str(value.get(type_field) or default)
    kind = audio_type(kind) if field == "audio" else kind
    base64_text = data.removeprefix("b'").removesuffix("'")  # MLflow writes the repr of bytes
    return {**value, field: f"data:{kind};base64,{base64_text}"}


def base64_to_data_uris(value: Any) -> Any:
    """Return JSON data with the bare base64 of images, audio and PDF as data URIs; the same object if there is none."""
    return replace_values(value, _as_data_uri)


def _as_data_uri(text: Any) -> Any:
    if not isinstance(text, str) or len(text) < _LONG:
        return text
    kind = next((kind for magic, kind in _MAGIC.items() if text.startswith(magic)), None)
    data = text if kind is None else text.replace("\r", "").replace("\n", "")  # the line breaks of base64.encodebytes
    if kind is None or len(data) % 4 or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", data):
        return text
    if kind == "riff":
        kind = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(base64.b64decode(data[:16])[8:])
    return f"data:{kind};base64,{data}" if kind else text


def move_media_after_tools(
    messages: Iterable[M],
    *,
    is_tool: Callable[[M], bool],
    split: Callable[[M], tuple[M, list[P]]],
    user: Callable[[list[P]], M],
) -> list[M]:
    """Move media out of messages in which OpenAI's API refuses them, such as the responses of tools.

    They follow in a `user` message after the last response, since no message may be between tool calls and their
    responses. `split` returns a message without its media, and the parts to move, which begin with a `heading`.
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
    """Return the line before moved media, which names the tool that returned them."""
    return f"From {name} ({identity}):" if identity else f"From {name}:"


def alt_text(part: Mapping[str, Any]) -> str:
    """Return the text that replaces a media part of POML, as in ``poml.poml(format="openai_chat")``."""
    return f"[{part['type']}: {part['alt']}]" if part.get("alt") else f"[{part['type']}]"
