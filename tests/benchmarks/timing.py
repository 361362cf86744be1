"""Times of repeated work; it imports nothing that is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def median_ms(work: Callable[[], Any], times: int, pause: float = 0.0) -> float:
    return statistics.median(taken_ms(work, times, pause))


def taken_ms(work: Callable[[], Any], times: int, pause: float = 0.0) -> list[float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
        if pause:
            time.sleep(max(0.0, pause - taken[-1]))
    return [one * 1e3 for one in taken]
