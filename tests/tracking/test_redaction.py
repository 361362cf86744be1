"""A span stores the inputs, outputs and attachments that MLflow itself would store."""

from __future__ import annotations

import base64
import random
from typing import Any

import mlflow
import pytest
from mlflow.tracing.attachments import Attachment
from mlflow.tracing.constant import SpanAttributeKey

from pomlflow.tracking.redaction import GuardedSpan

BYTES = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(90)
DATA = base64.b64encode(BYTES).decode()
MEDIA: dict[str, Any] = {
    "a data URI": {"url": f"data:image/png;base64,{DATA}"},
    "a short one": ["data:image/png;base64,iVBORw0KGgo="],
    "OpenAI's sound": {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
    "OpenAI's answer": {"audio": {"data": DATA, "transcript": "Hello"}},
    "Anthropic's picture": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    "DALL-E's picture": {"b64_json": DATA},
    "Bedrock's picture": {"image": {"format": "png", "source": {"bytes": DATA}}},
    "Gemini's picture": {"inline_data": {"mime_type": "image/png", "data": DATA}},
    "bytes as Python writes them": {"inline_data": {"mime_type": "image/png", "data": repr(BYTES)}},
    "MLflow's own": {"file": Attachment(content_type="image/png", content_bytes=BYTES)},
}
PLAIN: dict[str, Any] = {
    "words": {"context": "Hello Ada", "n": [1, None, 2.5]},
    "what only looks like media": {"data": "x" * 400, "note": "as in data:image/png;base64, which is a head"},
    "nothing": {},
}


@pytest.mark.parametrize("key", [SpanAttributeKey.INPUTS, SpanAttributeKey.OUTPUTS])
@pytest.mark.parametrize("content", [*MEDIA.values(), *PLAIN.values()], ids=[*MEDIA, *PLAIN])
def test_attachments_match_mlflow(content: Any, key: str, mlflow_store: str) -> None:
    """A span finds every value that MLflow would store as an attachment, in any provider's format."""
    theirs, ours = mlflow.start_span_no_context("theirs"), mlflow.start_span_no_context("ours")
    for span in (theirs, GuardedSpan(ours, None, lambda content: content)):
        (span.set_inputs if key == SpanAttributeKey.INPUTS else span.set_outputs)(content)

    def stored(span: Any) -> tuple[Any, list[bytes]]:
        files = [file.content_bytes for file in span._attachments.values()]
        return _without_ids(span.get_attribute(key)), files

    assert stored(ours) == stored(theirs)
    assert bool(ours._attachments) == (content in MEDIA.values())
    theirs.end()
    ours.end()
    mlflow.flush_trace_async_logging()


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    return "attachment" if isinstance(value, str) and value.startswith("mlflow-attachment://") else value
