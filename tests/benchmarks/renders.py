"""One render after another: compared with ``poml.poml`` and with Node alone, paced, and the first of a process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from measure import CASES, HELLO, Row, ratio
from timing import median_ms

ROUNDS = 5


def renders(seen: dict[str, tuple[float, float, float]]) -> Iterator[Row]:
    """Rows, and in `seen` the milliseconds of ``poml.poml``, of ours and of Node for the plot."""
    for name, case in CASES.items():
        theirs, ours, node, paced = [], [], [], []
        median_ms(case.ours, 100 if "MB" in name else 1_500)  # V8 compiles on until then
        for _ in range(ROUNDS):
            theirs.append(median_ms(case.theirs, 1))
            median_ms(case.ours, 5 if "MB" in name else 500)  # the CPU caches are full of poml.poml()'s data
            case.node.clear()
            ours.append(median_ms(case.ours, 20 if "MB" in name else 500))
            node.append(statistics.median(case.node))
            paced.append(median_ms(case.ours, 20, pause=0.04))
        seen[name] = statistics.median(theirs), statistics.median(ours), statistics.median(node)
        yield f"{name}: `poml.poml()`", f"{statistics.median(theirs):.0f} ms", "1x"
        yield (
            f"{name}: back to back",
            f"{statistics.median(ours):.2f} ms",
            f"{ratio(theirs, ours):.0f}x as fast; {ratio(ours, node):.2f}x the time inside Node",
        )
        yield f"{name}: 25 a second", f"{statistics.median(paced):.2f} ms", f"{ratio(theirs, paced):.0f}x as fast"


FIRST = """
import time
from pomlflow import engine
start = time.perf_counter()
engine.run(engine.Request("<p>Hello {{name}}</p>", *engine.encode({"name": "Ada"})))
print(time.perf_counter() - start)
"""


def first_render() -> Iterator[Row]:
    theirs = median_ms(HELLO.theirs, 5)

    def ours(cache: str) -> float:
        environment = {**os.environ, "POMLFLOW_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", FIRST], env=environment, check=True, capture_output=True, text=True
        )
        return float(done.stdout) * 1e3

    with tempfile.TemporaryDirectory() as cache:
        cold = ours(cache)
        warm = statistics.median(ours(cache) for _ in range(5))
    yield "first render of a process, cache warm", f"{warm:.0f} ms", f"{warm / theirs:.2f} of one `poml.poml()`"
    yield "first render ever, cache cold", f"{cold:.0f} ms", f"{cold / theirs:.2f} of one `poml.poml()`"
