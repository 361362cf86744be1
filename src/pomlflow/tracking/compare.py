"""Compare two renders' outputs, and show where they differ."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from itertools import islice
from typing import Any, Final

from mlflow.tracing.attachments import Attachment

from pomlflow.content import split_data_uri
from pomlflow.tracking.redaction import is_attachment

Fetch = Callable[[str], bytes]
"""Returns the bytes of an attachment, by its reference (``mlflow-attachment://…``)."""

_ABSENT: Final = object()
_MAX_LINES: Final = 20  # of one difference that are shown
_MAX_WIDTH: Final = 160  # characters of a line that are shown


@dataclass(frozen=True)
class Difference:
    """One place where two outputs differ."""

    where: str  # messages[1].content, tools[0].name, error …
    then: str | None  # text as it is, media as type, size and digest, other values as JSON; None if absent
    now: str | None

    def __str__(self) -> str:
        before, after = ([] if side is None else side.split("\n") for side in (self.then, self.now))
        same = os.path.commonprefix([self.then or "", self.now or ""])  # noqa: RUF071 - of texts
        column = len(same) - same.rfind("\n") - 1  # of the first difference
        diff = islice(unified_diff(before, after, n=0, lineterm=""), 2, None)  # without the names of files
        lines = [f"{line[0]} {_clipped(line[1:], column)}" for line in diff if line[0] != "@"]
        more = [f"  … {len(lines) - _MAX_LINES} more lines"] if len(lines) > _MAX_LINES else []
        return "\n".join([self.where, *lines[:_MAX_LINES], *more])


def compare(then: Any, now: Any, fetch: Fetch, where: str = "") -> Iterator[Difference]:
    """Yield the differences between stored and new outputs, down to single values; `fetch` reads stored attachments."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            inner = f"{where}.{key}" if where else key
            yield from compare(then.get(key, _ABSENT), now.get(key, _ABSENT), fetch, inner)
    elif isinstance(then, list) and isinstance(now, list):
        for index in range(max(len(then), len(now))):
            before, after = (side[index] if index < len(side) else _ABSENT for side in (then, now))
            yield from compare(before, after, fetch, f"{where}[{index}]")
    elif is_attachment(then):
        stored, media = fetch(then), _media(now)
        if media is None or media[1] != stored:
            parsed = Attachment.parse_ref(then) or {}
            yield Difference(where, _described(str(parsed.get("content_type")), stored), media and _described(*media))
    elif type(then) is not type(now) or then != now:
        yield Difference(where, _as_text(then), _as_text(now))


def _media(value: Any) -> tuple[str, bytes] | None:
    """Return the media type and the bytes of a data URI, or ``"base64"`` and the bytes of base64; else None."""
    if not isinstance(value, str):
        return None
    media_type, data = split_data_uri(value) or ("base64", value)
    try:
        return media_type, base64.b64decode(data, validate=True)
    except ValueError:
        return None


def _described(media_type: str, data: bytes) -> str:
    return f"[{media_type}, {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:12]}…]"


def _as_text(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    if isinstance(value, str):
        media = _media(value) if value.startswith("data:") else None
        return value if media is None else _described(*media)
    return json.dumps(value, ensure_ascii=False)


def _clipped(line: str, column: int) -> str:
    """Return the part of a line around a column."""
    start = max(0, min(column - _MAX_WIDTH // 4, len(line) - _MAX_WIDTH))
    head, tail = "…" if start else "", "…" if start + _MAX_WIDTH < len(line) else ""
    return f"{head}{line[start : start + _MAX_WIDTH]}{tail}"
