"""Many renders at once and many in a row: throughput, latencies, growth."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import HELLO, RICH, Case, Row, ratio
from timing import median_ms, taken_ms

import pomlflow
from pomlflow import engine
from pomlflow.settings import settings

THREADS = 8
SECONDS = 2.0
WARMING = 1.5  # seconds for each process: V8 compiles on until it has seen some 1,500 renders
ROUNDS = 3


def load(seen: dict[str, list[float]]) -> Iterator[Row]:
    """Rows, and in `seen` the latencies for the plot."""
    cold = 1e3 / median_ms(RICH.theirs, 3)
    rates: dict[str, list[float]] = {"node": [], "one": [], "two": []}
    for _ in range(ROUNDS):
        for name, workers in (("one", 1), ("two", 2)):
            engine.close()
            pomlflow.configure(max_workers=workers)
            engine.prewarm(workers)
            saturated(WARMING * workers)
            if workers == 1:  # the same process, as warm
                RICH.node.clear()
                median_ms(RICH.ours, 500)
                rates["node"].append(1e3 / statistics.mean(RICH.node))
            taken = saturated(SECONDS)
            rates[name].append(len(taken) / SECONDS)
            seen[f"{THREADS} threads, {name} worker{'s' if workers > 1 else ''}"] = taken
    for name, workers in (("one", "1 Node process"), ("two", "2 Node processes")):
        rate = statistics.median(rates[name])
        share = statistics.median(a / b for a, b in zip(rates[name], rates["node"], strict=True))
        more = statistics.median(a / b for a, b in zip(rates[name], rates["one"], strict=True))
        yield (
            f"rich, {THREADS} threads, {workers}",
            f"{rate:.0f} a second",
            f"{rate / cold:.0f}x `poml.poml()`; {share:.2f}x the same looped inside Node; {more:.2f}x one process",
        )
    pomlflow.configure(max_workers=0)
    seen["25 a second"] = taken_ms(RICH.ours, 150, pause=0.04)
    for name, taken in seen.items():
        half, most, all_but_one = (statistics.quantiles(taken, n=100)[at] for at in (49, 89, 98))
        yield f"rich, {name}: p50 / p90 / p99", f"{half:.2f} / {most:.2f} / {all_but_one:.2f} ms", ""


def saturated(seconds: float) -> list[float]:
    """The milliseconds of each render while all threads render."""
    end = time.perf_counter() + seconds

    def work() -> list[float]:
        taken = []
        while time.perf_counter() < end:
            taken += taken_ms(RICH.ours, 1)
        return taken

    with ThreadPoolExecutor(THREADS) as threads:
        return [one for taken in [threads.submit(work) for _ in range(THREADS)] for one in taken.result()]


def sandbox() -> Iterator[Row]:
    """The cost of Node's permission model and the worker's own restrictions for a render."""
    taken: dict[tuple[Case, bool], list[float]] = {(case, on): [] for case in (HELLO, RICH) for on in (True, False)}
    for number in range(2 * ROUNDS):
        for on in (number % 2 == 0, number % 2 == 1):  # another process each time
            pomlflow.configure(sandbox=on)
            for case in (HELLO, RICH):
                median_ms(case.ours, 800)
                taken[case, on].append(median_ms(case.ours, 300))
    pomlflow.configure(sandbox=True)
    for name, case in (("hello", HELLO), ("rich", RICH)):
        share = ratio(taken[case, True], taken[case, False])
        yield (
            f"{name}, in the sandbox",
            f"{statistics.median(taken[case, True]):.2f} ms",
            f"{share:.2f}x the time without",
        )


def growth(renders: tuple[int, ...]) -> Iterator[Row]:
    """The time of a render and the memory of a process after many renders."""
    engine.close()
    before = settings()
    pomlflow.configure(max_workers=1, max_memory=100_000)
    done, sizes, times = 0, [], []
    for goal in renders:
        while done < goal:
            RICH.ours()
            done += 1
        times.append(median_ms(RICH.ours, 200 if done > 1 else 1))
        sizes.append(_resident())
    pomlflow.configure(max_workers=before.max_workers, max_memory=before.max_memory)
    numbers = ", ".join(f"{goal:,}" for goal in renders)
    shown = " / ".join(f"{one:.2f}" for one in times)
    yield f"rich, after {numbers} renders in one process", f"{shown} ms", " / ".join(f"{size} MB" for size in sizes)


def _resident() -> int:
    """Megabytes of the one Node process."""
    if sys.platform != "linux":
        return engine.stats().memory // 1_000_000
    [pid] = engine.stats().pids
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kibibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return kibibytes * 1024 // 1_000_000
