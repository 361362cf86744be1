"""Wait for a condition instead of a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["until"]


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until a condition is true, and return its value.

    Conditions are such as what MLflow stores in threads that its flush does not join. Only a failing test waits long.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not met within {seconds:.0f} s"
        time.sleep(0.01)
    return value
