"""The media in LlamaIndex's messages, as MLflow stores them beside a trace rather than in it."""

from __future__ import annotations

import json
from typing import Any, Final

from mlflow.entities import LiveSpan

from pomlflow.tracking.spans import store_content

__all__ = ["offloadable", "store"]

# By a block's kind: where its data stands, where its type, and what that is where it is left out.
_BLOCKS: Final = {
    "image": ("image", "image_mimetype", "image/png"),
    "audio": ("audio", "format", "wav"),
    "video": ("video", "video_mimetype", "video/mp4"),
    "document": ("data", "document_mimetype", "application/pdf"),
}
_DONE: Final = ("data:", "mlflow-attachment://", "[")  # the last of what was left out, and why
_QUOTED: Final = "b'"
_QUOTE: Final = "'"
_SIGNS: Final = tuple(f'"block_type": "{kind}"' for kind in _BLOCKS)


def store(span: LiveSpan, key: str, content: Any) -> None:
    """Store a span's inputs or outputs, with the media of LlamaIndex's blocks as attachments.

    MLflow (3.12 to 3.17) makes attachments of data URIs and of OpenAI's parts, and stores LlamaIndex's blocks inline.

    Args:
        span: The span.
        key: The attribute of its inputs or outputs.
        content: What a component took or gave.
    """
    if not store_content(span, key, content):
        return
    stored = (getattr(span._span, "attributes", None) or {}).get(key)
    if isinstance(stored, str) and any(sign in stored for sign in _SIGNS):
        store_content(span, key, offloadable(json.loads(stored)))


def offloadable(value: Any) -> Any:
    """Plain data with the media of LlamaIndex's blocks as data URIs.

    Blocks: https://docs.llamaindex.ai/en/stable/api_reference/llms/ (``ImageBlock``, ``AudioBlock`` …), whose data is
    base64, which MLflow stores as Python shows bytes.
    """
    if isinstance(value, list):
        return [offloadable(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("block_type")
    if isinstance(kind, str) and kind in _BLOCKS:
        field, type_field, usual = _BLOCKS[kind]
        data = value.get(field)
        if isinstance(data, str) and data and not data.startswith(_DONE):
            mime = str(value.get(type_field) or usual)
            if kind == "audio":
                mime = "audio/mpeg" if mime == "mp3" else f"audio/{mime}"
            return {**value, field: f"data:{mime};base64,{data.removeprefix(_QUOTED).removesuffix(_QUOTE)}"}
    return {key: offloadable(item) for key, item in value.items()}
