"""The package's logger, and warnings that are logged once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable
from typing import Final

logger: Final = logging.getLogger("pomlflow")

_lock = threading.Lock()
logged: set[Hashable] = set()


def warn_once(key: Hashable, message: str, *args: object, exc_info: BaseException | None = None) -> None:
    """Log a warning once for each key."""
    with _lock:
        if key in logged:
            return
        logged.add(key)
    logger.warning("%s (further warnings suppressed)", message % args if args else message, exc_info=exc_info)
