"""Two renders' outputs side by side: where they differ, and how to show that."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from mlflow.tracing.attachments import Attachment

from pomlflow.tracking.stored import Fetch, is_attachment

__all__ = ["Difference", "differences"]

_ABSENT = object()
_MOST = 20  # lines of one difference that are shown
_WIDE = 160  # characters of a line


@dataclass(frozen=True)
class Difference:
    """One place where two outputs differ.

    Attributes:
        where: ``messages[1].content``, ``tools[0].name``, ``error`` …
        then: What stood there; other than text as JSON, media by their kind, size and digest. None for nothing.
        now: What stands there now.

    Example:
        >>> print(Difference("messages[0].content", "Hello Ada", "Hello Bob"))
        messages[0].content
        - Hello Ada
        + Hello Bob
    """

    where: str
    then: str | None
    now: str | None

    def __str__(self) -> str:
        lines = list(_changed(self.then, self.now))
        more = [f"  … {len(lines) - _MOST} lines more"] if len(lines) > _MOST else []
        return "\n".join([self.where, *lines[:_MOST], *more])


def differences(then: Any, now: Any, fetch: Fetch, where: str = "") -> Iterator[Difference]:
    """Compare what a trace holds with what is there now, down to single values.

    Args:
        then: Plain data, with references to attachments.
        now: Plain data, with the media themselves.
        fetch: Reads an attachment.
        where: The place in the whole.

    Yields:
        Each difference, in order.

    Raises:
        LostContentError: An attachment is not there.

    Example:
        >>> [found.where for found in differences({"a": [1, 2]}, {"a": [1, 3], "b": None}, fetch=bytes)]
        ['a[1]', 'b']
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            place = f"{where}.{key}" if where else key
            yield from differences(then.get(key, _ABSENT), now.get(key, _ABSENT), fetch, place)
    elif isinstance(then, list) and isinstance(now, list):
        for index in range(max(len(then), len(now))):
            was, is_ = (side[index] if index < len(side) else _ABSENT for side in (then, now))
            yield from differences(was, is_, fetch, f"{where}[{index}]")
    elif is_attachment(then):
        was, media = fetch(then), _media(now)
        if media is None or media[1] != was:
            known = Attachment.parse_ref(then) or {}
            yield Difference(where, _described(str(known.get("content_type")), was), media and _described(*media))
    elif type(then) is not type(now) or then != now:
        yield Difference(where, _text(then), _text(now))


def _media(value: Any) -> tuple[str, bytes] | None:
    """What kind of media a value is, as far as it tells, and the bytes."""
    if not isinstance(value, str):
        return None
    head, _, data = value.partition(";base64,") if value.startswith("data:") else ("", "", value)
    try:
        return head.removeprefix("data:") or "base64", base64.b64decode(data, validate=True)
    except binascii.Error:
        return None


def _described(kind: str, data: bytes) -> str:
    return f"[{kind}, {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:12]}…]"


def _text(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    if (media := _media(value) if isinstance(value, str) and value.startswith("data:") else None) is not None:
        return _described(*media)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _changed(then: str | None, now: str | None) -> Iterator[str]:
    """The lines that were taken away and that were added, those in between left out."""
    before, after = ([] if side is None else side.split("\n") for side in (then, now))
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        at = _first_difference(before[i], after[k]) if i < j and k < m else 0
        yield from (f"- {_clipped(line, at)}" for line in before[i:j])
        yield from (f"+ {_clipped(line, at)}" for line in after[k:m])


def _first_difference(one: str, other: str) -> int:
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)


def _clipped(line: str, at: int) -> str:
    """A line's part around a character."""
    start = max(0, min(at - _WIDE // 4, len(line) - _WIDE))
    head, tail = "…" if start else "", "…" if start + _WIDE < len(line) else ""
    return f"{head}{line[start : start + _WIDE]}{tail}"
