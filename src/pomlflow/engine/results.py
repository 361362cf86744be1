"""Results that are given again for equal markup and variables, where the user asks for it."""

from __future__ import annotations

import collections
import hashlib
import threading
from typing import Any

import orjson

__all__ = ["Results"]


class Results:
    """The latest results, by all that Node is told for a render.

    They are kept as JSON: whoever gets one may change it.
    """

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, request: bytes) -> dict[str, Any] | None:
        """The result of a request as it was the last time; None where it is not kept.

        Args:
            request: As `Request.line` gives it.
        """
        key = hashlib.sha256(request).digest()
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
        output: dict[str, Any] = orjson.loads(kept)
        return output

    def keep(self, request: bytes, output: dict[str, Any], most: int) -> None:
        """Keep a result, and no more than so many."""
        key, text = hashlib.sha256(request).digest(), orjson.dumps(output)
        with self._lock:
            self._kept[key] = text
            while len(self._kept) > most:
                self._kept.popitem(last=False)
