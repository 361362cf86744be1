"""Background tasks for MLflow's stores: one daemon thread, retries with backoff, one warning per outage.

MLflow's client retries for minutes while a server is unreachable, and would block the thread. So a task calls
`check_reachable` before it uses the client. No caller is ever blocked.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from mlflow.utils.workspace_context import set_server_request_workspace

from pomlflow._log import logger, warn_once
from pomlflow.tracking.stores import is_outage, may_succeed_later, redacted, redacted_error

FIRST: Final = -math.inf  # as `after`: the task runs before all others that are due
_PAUSE: Final = 5.0  # seconds between runs of a task that is not done
_MAX_OUTAGE_PAUSE: Final = 15.0  # seconds between checks of an unreachable server
_FLUSH_PAUSE: Final = 0.2  # seconds between runs of a task during a flush
_MAX_TRIES: Final = 3  # failed runs in a row, after which a task is dropped or retried with a warning
_MAX_TASKS: Final = 50_000  # waiting tasks
FOREVER: Final = threading.TIMEOUT_MAX / 2  # seconds


class RejectedError(Exception):
    """The store can never accept this, so the task is not run again."""


@dataclass(kw_only=True, eq=False)
class Task:
    """Work for one store."""

    uri: str = field(repr=False)  # it may contain a password
    workspace: str | None  # MLflow's workspace
    run: Callable[[], bool | None]  # if it returns False, it is run again later, and no flush waits for that
    on_dropped: Callable[[], None] | None = None  # called if the task is dropped or rejected
    is_periodic: bool = False  # it runs before the others, and no flush waits for it
    tries: int = 0  # failed runs in a row, outages not counted


@dataclass
class _Outage:
    """An unreachable store."""

    pause: float = 0.25  # seconds, doubled before each use
    until: float = 0.0  # the time of the next try, by `time.monotonic`; a flush sets it to 0, to try at once


@cache
def call_in_child(function: Callable[[], None]) -> None:
    """Register a function, once, that each forked child calls."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class Worker:
    """Runs tasks one after another in a daemon thread, which the first task starts.

    Tasks and flushes reach the thread through a queue, and only `_work` changes the heaps, the outages and the flushes.
    A forked child has neither tasks nor a thread.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._inbox: queue.SimpleQueue[tuple[float, Task | queue.SimpleQueue[int]]] = queue.SimpleQueue()
        # Heaps by time: of the tasks that no flush waits for, and of the others. A number keeps their order.
        self._heaps: tuple[list[tuple[float, int, Task]], ...] = ([], [])
        self._outages: dict[str, _Outage] = {}
        self._flushes: list[tuple[float, queue.SimpleQueue[int]]] = []  # with their deadlines
        self._starting = threading.Lock()
        self._working = threading.Lock()
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count()
        self.lost = 0  # tasks and traces since the last `take_lost`; approximate, as threads count without a lock

    def submit(self, task: Task, *, after: float = 0.0) -> bool:
        """Schedule a task, without blocking; return False if it is dropped because too many are waiting."""
        if self.pending() >= _MAX_TASKS and not task.is_periodic:  # there are few periodic ones
            self.lost += 1
            return False
        self._inbox.put((time.monotonic() + after, task))
        self._start()
        return True

    def pending(self) -> int:
        """Return the approximate number of waiting tasks, periodic ones included."""
        return self._inbox.qsize() + sum(map(len, self._heaps))

    def take_lost(self) -> int:
        """Return how many tasks and traces were lost since this was last called."""
        lost, self.lost = self.lost, 0
        return lost

    def flush(self, timeout: float) -> int:
        """Run all tasks now, and those that fail in reachable stores again; return how many are pending.

        Each task whose `run` returned False is run once. Tasks of unreachable stores are tried once for each store.
        """
        if self._thread is None and not self.pending():
            return 0
        deadline, done = time.monotonic() + timeout, queue.SimpleQueue[int]()
        self._inbox.put((deadline, done))
        if not self._start():
            while done.empty() and (left := deadline - time.monotonic()) > 0:
                self._work(left)
        try:
            return done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return max(1, len(self._heaps[1]))  # at least 1: a task that runs now is in no heap

    def _start(self) -> bool:
        """Start the thread; return False if no thread can start, which is so while the interpreter shuts down."""
        if self._thread is not None:
            return True
        with self._starting:
            if self._thread is None:
                call_in_child(self._reset)
                thread = threading.Thread(target=self._loop, name="pomlflow-background", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
        return True

    def _loop(self) -> None:
        while True:
            self._work(FOREVER)

    def _work(self, timeout: float) -> None:
        """Run the first task that is due; if none is, end the flushes that can end, or wait for the next item."""
        with self._working:
            self._receive(0.0)
            now = time.monotonic()
            for heap in self._heaps:
                if heap and heap[0][0] <= now:
                    self._run(heapq.heappop(heap)[-1])
                    return
            if not self._end_flushes(now):
                self._receive(min(timeout, *(heap[0][0] - now if heap else FOREVER for heap in self._heaps)))

    def _receive(self, timeout: float) -> None:
        """Move all submitted tasks and flushes out of the queue; wait up to `timeout` seconds for the first one."""
        with suppress(queue.Empty):
            when, item = self._inbox.get(timeout=timeout)
            while True:
                if isinstance(item, Task):
                    self._push(item, when)
                else:
                    self._begin_flush(when, item)
                when, item = self._inbox.get_nowait()

    def _push(self, task: Task, due: float, *, is_ready: bool = True) -> None:
        is_awaited = is_ready and not task.is_periodic
        if self._flushes and is_awaited:
            due = min(due, time.monotonic() + _FLUSH_PAUSE)
        heapq.heappush(self._heaps[is_awaited], (due, next(self._numbers), task))

    def _begin_flush(self, deadline: float, done: queue.SimpleQueue[int]) -> None:
        self._flushes.append((deadline, done))
        for outage in self._outages.values():
            outage.until = 0.0
        waiting, others = self._heaps
        others += [item for item in waiting if not item[2].is_periodic]
        waiting[:] = [item for item in waiting if item[2].is_periodic]
        others[:] = [(min(due, 0.0), number, task) for due, number, task in others]
        heapq.heapify(waiting)
        heapq.heapify(others)

    def _end_flushes(self, now: float) -> bool:
        """End the flushes that have no task or time left; return whether there were any. Call it if no task is due."""
        if not self._flushes:
            return False
        unreachable = {uri for uri, outage in self._outages.items() if outage.until}
        is_done = all(task.uri in unreachable for _, _, task in self._heaps[1])
        ended = [flush for flush in self._flushes if is_done or flush[0] <= now]
        for flush in ended:
            flush[1].put(len(self._heaps[1]))
            self._flushes.remove(flush)
        return bool(ended)

    def _run(self, task: Task) -> None:
        """Run a task unless its store is in an outage, and schedule its next run if it needs one."""
        outage = self._outages.get(task.uri)
        if outage is not None and outage.until > time.monotonic():
            self._push(task, outage.until)
            return
        try:
            is_ready = contextvars.Context().run(_run_in_workspace, task) is not False
        except Exception as error:  # noqa: BLE001 - no failure may end the thread
            pause = self._failed(task, error)
            if pause is not None:
                self._push(task, time.monotonic() + pause)
            return
        task.tries = 0
        if self._outages.pop(task.uri, None) is not None:
            logger.info("MLflow's store %s is reachable again.", redacted(task.uri))
        if not is_ready:
            self._push(task, time.monotonic() + _PAUSE, is_ready=False)

    def _failed(self, task: Task, error: Exception) -> float | None:
        """Return the seconds until a failed task is run again, or None if it is dropped."""
        logger.debug("Failed: %s", task, exc_info=error)
        if is_outage(task.uri, error):
            return self._note_outage(task.uri, error)
        task.tries += 1
        if isinstance(error, RejectedError):
            logger.warning("Not registered in MLflow: %s", error)
        elif task.tries < _MAX_TRIES:  # usually another process has taken the same version number
            return 0.25 * 2.0**task.tries
        else:
            is_retried = may_succeed_later(error)
            warn_once(
                ("refused", task.uri, getattr(error, "error_code", type(error))),
                "MLflow's store %s refuses a prompt or its link (%s): %s",
                redacted(task.uri),
                "it will be retried" if is_retried else "it is dropped",
                redacted_error(task.uri, error),
            )
            if is_retried:
                return 2.0 ** min(task.tries, 9)
            self.lost += 1
        if task.on_dropped is not None:
            task.on_dropped()
        return None

    def _note_outage(self, uri: str, error: Exception) -> float:
        if uri not in self._outages:
            self._outages[uri] = _Outage()
            logger.warning(
                "MLflow's store %s is unreachable. Calls go on; prompt versions and trace links are queued and will be "
                "retried. (%s)",
                redacted(uri),
                redacted_error(uri, error),
            )
        outage = self._outages[uri]
        outage.pause = min(outage.pause * 2, _MAX_OUTAGE_PAUSE)
        outage.until = time.monotonic() + outage.pause
        return outage.pause


worker: Final = Worker()
"""The one worker of this process."""


def _run_in_workspace(task: Task) -> bool | None:
    if task.workspace:
        set_server_request_workspace(task.workspace)  # in this context, unlike `set_workspace`, which is process-wide
    return task.run()
