"""Many renders at once: the number of processes, which renders wait or are refused, and `engine.stats()`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests import rendering, waiting
from tests.processes import stopped_node

import pomlflow
from pomlflow import engine
from pomlflow.engine import installation
from pomlflow.exceptions import EngineBusyError, EngineError, RenderError, RenderTimeoutError
from pomlflow.settings import settings

JS = Callable[[str], str]


@pytest.fixture(autouse=True)
def limits(fresh: None, one_worker: None) -> None:
    """Two processes at the most; the settings of before come back afterwards."""
    pomlflow.configure(max_workers=2)


def text(markup: str = "<p>{{n}}</p>", **variables: Any) -> str:
    return str(rendering.render(markup, variables)["messages"][0]["content"])


async def atext(markup: str = "<p>{{n}}</p>", **variables: Any) -> str:
    return str((await rendering.arender(markup, variables))["messages"][0]["content"])


def settled() -> None:
    """Wait until the compiled code of a first start is stored, which occupies the process for a moment."""
    cache = installation.find().cache_file
    waiting.until(lambda: not engine.stats().running and cache and cache.exists())


@contextmanager
def held() -> Iterator[None]:
    """Limit the pool to one process, and stop it (SIGSTOP) during the block."""
    pomlflow.configure(max_workers=1)
    text(n=0)
    settled()
    with stopped_node():
        yield


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0)


def test_one_render_after_another_needs_one_process() -> None:
    assert [text(n=n) for n in range(20)] == [str(n) for n in range(20)]
    assert engine.stats().workers == 1


def test_threads_get_as_many_processes_as_are_allowed_and_their_own_results(until: Callable[[Any], Any]) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: text(n=n), range(500))) == [str(n) for n in range(500)]
        until(lambda: engine.stats().workers == 2)
        assert list(threads.map(lambda n: text(n=n), range(500))) == [str(n) for n in range(500)]
    stats = engine.stats()
    assert (stats.workers, stats.max_workers, stats.running, stats.waiting, stats.failed) == (2, 2, 0, 0, 0)
    assert stats.rendered >= 1000
    assert stats.memory > 100 << 20


def test_a_burst_grows_the_pool_to_its_limit(until: Callable[[Any], Any]) -> None:
    """Also if all of its renders arrive while the second process starts."""
    with ThreadPoolExecutor(8) as threads, held():
        pomlflow.configure(max_workers=3)
        renders = [threads.submit(text, n=n) for n in range(8)]
        until(lambda: engine.stats().workers == 3)
    assert [render.result() for render in renders] == [str(n) for n in range(8)]


async def test_tasks_get_as_many_processes_as_are_allowed_and_their_own_results(until: Callable[[Any], Any]) -> None:
    assert await asyncio.gather(*(atext(n=n) for n in range(200))) == [str(n) for n in range(200)]
    until(lambda: engine.stats().workers == 2)


def test_the_queue_is_first_come_first_served_between_threads_and_event_loops(until: Callable[[Any], Any]) -> None:
    done: list[str] = []

    def render(name: str, *, loop: bool) -> None:
        clock = "<p>{{n}} {{ globalThis.performance.now() }}</p>"
        done.append(asyncio.run(atext(clock, n=name)) if loop else text(clock, n=name))

    with held():
        threads = [threading.Thread(target=text, args=("<p>x</p>",))]
        threads[0].start()
        until(lambda: engine.stats().running == 1)
        for place, name in enumerate("abcdef"):
            threads.append(threading.Thread(target=render, args=(name,), kwargs={"loop": place % 2 == 1}))
            threads[-1].start()
            until(lambda place=place: engine.stats().waiting == place + 1)
    for thread in threads:
        thread.join()
    assert [one[0] for one in sorted(done, key=lambda one: float(one.split()[1]))] == list("abcdef")


def test_a_render_too_many_is_refused_at_once(until: Callable[[Any], Any]) -> None:
    with held():
        pomlflow.configure(max_queue=1)
        others = [threading.Thread(target=text, kwargs={"n": n}) for n in range(2)]
        for thread in others:
            thread.start()
        until(lambda: engine.stats().waiting == 1)
        with pytest.raises(EngineBusyError, match=r"1 renders already wait for 1 Node processes.*max_workers"):
            text(n=1)
        with pytest.raises(EngineBusyError):
            asyncio.run(atext(n=1))
    for thread in others:
        thread.join()
    assert engine.stats().refused == 2
    assert text(n=2) == "2"


def test_the_time_that_a_render_waits_is_part_of_its_limit(until: Callable[[Any], Any]) -> None:
    with held():
        other = threading.Thread(target=text, kwargs={"n": 0})
        other.start()
        until(lambda: engine.stats().running == 1)
        with pytest.raises(RenderTimeoutError, match=r"no Node process became free .* within 0\.05 s"):
            engine.run(engine.Request("<p>x</p>"), 0.05)
        with pytest.raises(RenderTimeoutError, match="no Node process became free"):
            asyncio.run(engine.arun(engine.Request("<p>x</p>"), 0.05))
        assert engine.stats().waiting == 0
    other.join()
    stats = engine.stats()
    assert (stats.failed, stats.restarted) == (0, 0)  # the other one was left alone


async def test_a_cancelled_render_that_waits_leaves_the_queue() -> None:
    with held():
        first = asyncio.create_task(atext(n=1))
        await reached(lambda: engine.stats().running == 1)
        waits = asyncio.create_task(atext(n=2))
        await reached(lambda: engine.stats().waiting == 1)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        stats = engine.stats()
        assert (stats.waiting, stats.cancelled) == (0, 1)
        await reached(lambda: sum(one.name == "pomlflow-render" for one in threading.enumerate()) == 1)  # the first's
    assert await first == "1"


async def test_a_cancelled_render_that_runs_for_ever_frees_its_process(js: JS) -> None:
    pomlflow.configure(max_workers=1)
    await atext(n=0)
    endless = asyncio.create_task(atext(js("for (;;) ;")))
    await reached(lambda: engine.stats().running == 1)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert await atext(n=1) == "1"
    assert engine.stats().failed == 0


async def test_awaited_renders_that_wait_take_no_thread() -> None:
    def count() -> int:
        return sum(one.name == "pomlflow-render" for one in threading.enumerate())

    with held():
        first = asyncio.create_task(atext(n=0))
        await reached(lambda: engine.stats().running == 1)
        others = [asyncio.create_task(atext(n=n)) for n in range(1, 101)]
        await reached(lambda: engine.stats().waiting == 100)
        assert count() == 1
    assert await asyncio.gather(first, *others) == [str(n) for n in range(101)]
    await reached(lambda: count() == 0)


async def test_awaited_renders_go_on_while_their_event_loop_is_blocked(until: Callable[[Any], Any]) -> None:
    await atext(n=0)
    before = engine.stats().rendered
    tasks = [asyncio.create_task(atext(n=n)) for n in range(20)]
    await asyncio.sleep(0)
    until(lambda: engine.stats().rendered == before + 20)  # it sleeps in this thread
    assert await asyncio.gather(*tasks) == [str(n) for n in range(20)]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From a call on, the engine cannot start the thread of an awaited render."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    return lambda: monkeypatch.setattr("pomlflow.engine.engine.start_thread", refuse)


async def test_where_no_thread_can_start_a_render_fails_and_releases_its_process(
    no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pomlflow.configure(max_workers=1)
    await atext(n=0)
    no_threads()
    with pytest.raises(EngineError, match="can't start new thread"):
        await atext(n=1)
    assert engine.stats().running == 0
    monkeypatch.undo()
    assert await atext(n=2) == "2"


async def test_where_no_thread_can_start_the_process_passes_to_the_next_in_the_queue(
    no_threads: Callable[[], None],
) -> None:
    with ThreadPoolExecutor(2) as threads:
        with held():
            first = threads.submit(text, n=0)
            await reached(lambda: engine.stats().running == 1)
            awaited = [asyncio.create_task(atext(n=n)) for n in range(3)]
            await reached(lambda: engine.stats().waiting == 3)
            last = threads.submit(text, n=4)
            await reached(lambda: engine.stats().waiting == 4)
            no_threads()
        failed = await asyncio.gather(*awaited, return_exceptions=True)
    assert [str(one) for one in failed] == ["no thread can start for the render: can't start new thread"] * 3
    assert (first.result(), last.result(), engine.stats().running) == ("0", "4", 0)


async def test_a_render_that_is_cancelled_while_its_process_starts_leaves_the_process_to_the_next_one() -> None:
    pomlflow.configure(max_workers=1)
    first = asyncio.create_task(atext(n=1))
    await reached(lambda: engine.stats().starting == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await atext(n=2) == "2"
    await reached(lambda: not engine.stats().running)  # V8's compiled code is kept after a first start
    stats = engine.stats()
    assert (stats.workers, stats.waiting, stats.starting, stats.cancelled, stats.failed) == (1, 0, 0, 1, 0)


async def test_cancelling_ends_no_other_render() -> None:
    await atext(n=0)
    tasks = [asyncio.create_task(atext(n=n)) for n in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == [str(n) for n in range(1, 100, 2)]
    assert await atext(n="after") == "after"


def test_a_process_that_has_grown_is_replaced_without_a_failed_render() -> None:
    text(n=0)
    [first] = engine.stats().pids
    pomlflow.configure(max_memory=1)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: text(n=n), range(8))) == [str(n) for n in range(8)]
    assert (engine.stats().failed, engine.stats().restarted) == (0, 0)
    assert engine.stats().recycled
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert engine.stats().workers <= 2


def test_a_pool_that_is_idle_shrinks_to_one_process(
    until: Callable[[Any], Any], alive: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that rendered last stays, of either set; later the pool grows and shrinks again."""
    monkeypatch.setattr("pomlflow.engine.pool._IDLE_TIMEOUT", 0.3)
    for _ in range(2):
        engine.prewarm(2)
        registry_text()
        pids = engine.stats().pids
        assert len(pids) >= 2
        until(lambda: engine.stats().workers == 1)
        assert engine.stats().pids == pids[-1:]
        until(lambda pids=pids: not any(map(alive, pids[:-1])))
    assert (registry_text(1), text(n=2), engine.stats().failed) == ("1", "2", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not report it")
def test_the_private_memory_of_the_processes_is_reported() -> None:
    text(n=0)
    stats = engine.stats()
    assert 30 << 20 < stats.private_memory < stats.memory


def test_what_failed_and_what_was_started_again_is_counted(js: JS) -> None:
    """A template's error counts as rendered, a timeout as failed."""
    text(n=0)
    settled()
    before = engine.stats()
    assert before.rendered >= 1
    with pytest.raises(RenderError):
        text("<p>{{nobody}}</p>")
    with pytest.raises(RenderTimeoutError):
        engine.run(engine.Request(js("for (;;) ;")), 0.2)
    text(n=1)
    [pid] = engine.stats().pids
    os.kill(pid, signal.SIGKILL)
    text(n=2)
    stats = engine.stats()
    assert (stats.rendered - before.rendered, stats.failed, stats.restarted, stats.recycled) == (3, 1, 1, 0)


def test_the_engines_own_requests_are_counted_as_no_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[[Any], Any]
) -> None:
    monkeypatch.setenv("POMLFLOW_CACHE_DIR", str(tmp_path))  # a first start, whose compiled code is requested
    text(n=0)
    until(lambda: list(tmp_path.rglob("prepared")))
    assert engine.stats().rendered == 1


def test_prewarmed_processes_are_there_before_the_first_render() -> None:
    engine.prewarm(2)
    stats = engine.stats()
    assert (stats.workers, stats.rendered) == (2, 0)
    engine.prewarm(1)
    assert engine.stats().workers == 2


def test_settings_of_a_block_hold_in_it_alone(js: JS) -> None:
    with pomlflow.configured(timeout=0.2) as inside:
        assert inside.timeout == settings().timeout == 0.2
        with pytest.raises(RenderTimeoutError):
            text(js("for (;;) ;"))
        seen: list[float] = []
        other = threading.Thread(target=lambda: seen.append(settings().timeout))
        other.start()
        other.join()
    assert seen == [30.0]
    assert settings().timeout == 30.0


async def test_a_cancellation_at_the_moment_of_the_renders_own_limit() -> None:
    with ThreadPoolExecutor(1) as threads, held():
        threads.submit(text, n=0)
        await reached(lambda: engine.stats().running == 1)
        with pomlflow.configured(timeout=0.05):
            for _ in range(10):
                with pytest.raises((TimeoutError, RenderTimeoutError, EngineBusyError)):
                    await asyncio.wait_for(atext(n=1), 0.05)
        await reached(lambda: engine.stats().waiting == 0)
    await reached(lambda: engine.stats().running == 0)
    assert await atext(n=2) == "2"


# --- two sets of processes


def registry_text(n: int = 0) -> str:
    """Render as a template of a registry, in the other set of processes."""
    context, _ = engine.encode({"n": n})
    return str(engine.run(engine.Request("<p>{{n}}</p>", context, roots=())).output["messages"][0]["content"])


@contextmanager
def saturated() -> Iterator[None]:
    """Render trusted templates in eight threads, without a pause; each of these renders must succeed."""
    stop = threading.Event()

    def render_own(_: int) -> None:
        while not stop.is_set():
            text(n=1)

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(render_own, number) for number in range(8)]
        try:
            yield
        finally:
            stop.set()
        assert [one.result() for one in running] == [None] * 8


@pytest.mark.parametrize("workers", [1, 2])
def test_each_set_gets_a_process_and_keeps_it(workers: int) -> None:
    """With any `max_workers`, and without a start at each change from one set to the other."""
    pomlflow.configure(max_workers=workers)
    for number in range(5):
        assert (text(n=number), registry_text(number)) == (str(number), str(number))
    stats = engine.stats()
    assert (stats.workers, stats.restarted, stats.rendered) == (2, 0, 10)
    assert len(stats.pids) == 2


def test_the_cap_is_common_and_an_idle_process_makes_room_for_the_other_set(until: Callable[[Any], Any]) -> None:
    pomlflow.configure(max_workers=3)
    engine.prewarm(3)
    before = set(engine.stats().pids)
    with ThreadPoolExecutor(8) as threads:
        until(lambda: [*threads.map(registry_text, range(40))] and len(before.intersection(engine.stats().pids)) == 1)
        assert engine.stats().workers + engine.stats().starting <= 3
        assert sorted(map(int, threads.map(lambda n: text(n=n), range(40)))) == list(range(40))
    assert (engine.stats().failed, engine.stats().restarted) == (0, 0)


def test_prewarm_keeps_to_the_limit_of_both_sets() -> None:
    assert registry_text(1) == "1"
    engine.prewarm(2)
    assert engine.stats().workers == 2


def test_a_starting_set_replaces_an_idle_or_the_next_free_process(
    until: Callable[[Any], Any],
) -> None:
    pomlflow.configure(max_workers=3)
    engine.prewarm(3)
    assert registry_text(1) == "1"
    assert engine.stats().workers == 3
    engine.close()
    engine.prewarm(3)
    with saturated():
        assert registry_text(1) == "1"
        until(lambda: engine.stats().workers == 3)


def test_neither_set_starves_while_both_have_more_than_they_can_do(until: Callable[[Any], Any]) -> None:
    """The set with two processes more than the other releases one."""
    pomlflow.configure(max_workers=4)
    engine.prewarm(4)
    own = set(engine.stats().pids)
    with saturated(), ThreadPoolExecutor(8) as threads:
        until(lambda: [*threads.map(registry_text, range(16))] and len(own.intersection(engine.stats().pids)) <= 2)
    assert (engine.stats().failed, engine.stats().waiting, engine.stats().running) == (0, 0, 0)
