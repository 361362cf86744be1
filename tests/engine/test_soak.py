"""Faults during work: other renders are right, the affected ones fail with their own class.

A short form in CI; ``make soak`` sets ``POMLFLOW_SOAK_RENDERS`` to 10,000, with a fault for every hundredth.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.processes import children

from pomlflow import engine
from pomlflow.exceptions import RenderError, RenderTimeoutError, WorkerDiedError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="POSIX signals, and reads /proc"),
    pytest.mark.timeout(1800),
]

RENDERS = int(os.environ.get("POMLFLOW_SOAK_RENDERS", "300"))
FAULTS = max(6, RENDERS // 100)
LIMIT = 20.0
ECHO = "<poml><p for='i in [1, 2, 3]'>{{who}} {{i}}</p></poml>"


class Outcomes:
    """The results of the renders, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    @property
    def done(self) -> int:
        with self._lock:
            return sum(self.counts.values())


def request(who: str) -> engine.Request:
    return engine.Request(ECHO, engine.encode({"who": who})[0])


def right(result: engine.Result, who: str) -> bool:
    return bool(result.output["messages"][0]["content"] == "\n\n".join(f"{who} {i}" for i in (1, 2, 3)))


def work(outcomes: Outcomes, share: int, name: str) -> None:
    for number in range(share):
        who = f"{name}{number}"
        try:
            outcomes.note("right" if right(engine.run(request(who), LIMIT), who) else "wrong")
        except (RenderTimeoutError, WorkerDiedError) as error:
            outcomes.note(type(error).__name__)


async def work_async(outcomes: Outcomes, share: int, name: str) -> None:
    async def one(who: str) -> None:
        try:
            outcomes.note("right" if right(await engine.arun(request(who), LIMIT), who) else "wrong")
        except (RenderTimeoutError, WorkerDiedError) as error:
            outcomes.note(type(error).__name__)

    for start in range(0, share, 10):
        await asyncio.gather(*(one(f"{name}{number}") for number in range(start, min(start + 10, share))))


def send_signals(outcomes: Outcomes, signals: list[signal.Signals], until: Callable[[Any], Any]) -> None:
    """Send the signals to random processes, busy or idle, at intervals of equally many renders."""
    chance = random.Random(1)
    for number, how in enumerate(signals):
        until(lambda: outcomes.done >= RENDERS * number // len(signals))  # noqa: B023 - called at once
        processes = until(lambda: engine.stats().pids)
        os.kill(chance.choice(processes), how)


def with_signals(signals: list[signal.Signals], until: Callable[[Any], Any]) -> Counter[str]:
    """8 threads and 2 event loops render; their processes get signals."""
    outcomes, share = Outcomes(), RENDERS // 10
    with ThreadPoolExecutor(11) as threads:
        jobs = [threads.submit(work, outcomes, share, f"thread{i}-") for i in range(8)]
        jobs += [threads.submit(lambda i=i: asyncio.run(work_async(outcomes, share, f"loop{i}-"))) for i in range(2)]
        jobs.append(threads.submit(send_signals, outcomes, signals, until))
        for job in jobs:
            job.result()
    assert outcomes.done == share * 10
    return outcomes.counts


def test_no_render_is_lost_when_processes_are_killed_or_crash(fresh: None, until: Callable[[Any], Any]) -> None:
    """Each returns its own result, also if its process was killed; no process remains."""
    before = children()
    kinds = [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGBUS]
    counts = with_signals([kinds[number % len(kinds)] for number in range(FAULTS)], until)
    assert counts == {"right": RENDERS // 10 * 10}
    engine.close()
    assert children() <= before


def test_a_process_that_aborts_costs_one_render_at_most(fresh: None, until: Callable[[Any], Any]) -> None:
    """V8 aborts if a template uses all memory, so such a render is not repeated."""
    counts = with_signals([signal.SIGABRT, signal.SIGKILL] * (FAULTS // 2), until)
    assert counts.keys() <= {"right", "WorkerDiedError"}
    assert counts["WorkerDiedError"] <= FAULTS


MISBEHAVING = {
    "loops": ("for (;;)", RenderTimeoutError),
    "never settles": (
        "const again = () => Promise.resolve().then(again); again()",
        (RenderTimeoutError, WorkerDiedError),
    ),
    "exits": ("process.exit(0)", RenderError),
    "leaks a global": ("leak = 1; throw 1", RenderError),
    "throws later": ("setTimeout(() => { throw new Error('late') }, 0); return nobody", RenderError),
    "rejects": ("Promise.reject(new Error('never awaited')); return nobody", RenderError),
    "floods": ("for (let i = 0; 200 > i; i++) console.log('x'.repeat(1e5)); return nobody", RenderError),
    "fixes a global": ("Object.defineProperty(globalThis, 'fixed', { value: 1 }); return nobody", RenderError),
}


def test_templates_that_misbehave_fail_alone(js: Callable[[str], str]) -> None:
    """Each of them several times, while good ones render on other threads."""
    outcomes, stop = Outcomes(), threading.Event()

    def render_good(name: str) -> None:
        number = 0
        while not stop.is_set():
            work(outcomes, 1, f"{name}{number}-")
            number += 1

    with ThreadPoolExecutor(3) as threads:
        good = [threads.submit(render_good, name) for name in "abc"]
        try:
            for _ in range(max(1, FAULTS // 20)):
                for code, expected in MISBEHAVING.values():
                    with pytest.raises(expected):
                        engine.run(engine.Request(js(code)), 2)
        finally:
            stop.set()
        for job in good:
            job.result()
    assert outcomes.counts.keys() == {"right"}
