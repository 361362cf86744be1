"""Background tasks for MLflow's stores: one daemon thread, retries with backoff, one warning per outage.

The thread checks that a server is reachable before it runs a task for it. A server that goes away in the middle of a
task blocks the thread for minutes, because MLflow's client retries. It never blocks a caller.
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
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import ClassVar, Final

from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import set_server_request_workspace

from pomlflow._log import logger, warn_once
from pomlflow.tracking.stores import check_reachable, is_outage, may_pass, redacted, redacted_error

FIRST: Final = -math.inf  # seconds after which a task runs that goes before all others that are due
_MAX_OUTAGE_PAUSE: Final = 15.0  # seconds between checks of an unreachable server
_PAUSE: Final = 15.0  # seconds between runs of a task that returned NOT_YET or PARKED; a flush or `wake` runs it sooner
_MAX_PAUSE: Final = 600.0  # seconds between runs of a task that a server refuses for now
_FLUSH_PAUSE: Final = 0.2  # seconds between runs of a task during a flush
_MAX_TRIES: Final = 3  # failed runs, without outages, at which the refusal is logged and the task may be dropped
_MAX_TASKS: Final = 50_000  # that wait at the same time


class RejectedError(Exception):
    """The store can never accept this, so the task is not run again."""


class TaskState(Enum):
    """The result of a task's run."""

    DONE = "done"
    NOT_YET = "not yet"  # it runs again, and a flush waits for it
    PARKED = "parked"  # it runs again, but waits for the user's program, so a flush does not wait for it
    LOST = "lost"  # its trace is not in the store and never will be; counted in `Worker.lost`


@dataclass(kw_only=True, eq=False, repr=False)
class Task:
    """Work for one store."""

    is_periodic: ClassVar[bool] = False  # it runs before the others, and no flush waits for it
    is_bounded: ClassVar[bool] = False  # it limits the time of its own requests, so the server is not checked before it

    uri: str
    workspace: str | None = None  # MLflow's workspace
    tries: int = 0  # how many of its runs failed; outages do not count
    has_reached: bool = True  # whether its last run reached the store
    state: TaskState | None = None  # what its last run returned; None before the first run and after a failure

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {redacted(self.uri)}>"

    @property
    def wanted(self) -> bool:
        """Whether it still has work to do; if not, it is removed without a run."""
        return True

    def run(self) -> TaskState:
        """Do the work. It may block for minutes."""
        raise NotImplementedError

    def on_dropped(self) -> None:
        """Clean up after the worker has given up on the task."""


@dataclass
class _Outage:
    """An unreachable store; times are those of `time.monotonic`."""

    pause: float = 0.25  # seconds, doubled before each use
    until: float = 0.0  # when it is tried again
    confirmed: float = 0.0  # when it was last found unreachable


@dataclass(order=True)
class _Entry:
    """A task in a heap; `number` keeps the order of submission among tasks that are due at the same time."""

    due: float
    number: int
    task: Task = field(compare=False)


class _Flush:
    """One call of `Worker.flush`; `pending` is its result once `done` is set."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done = threading.Event()
        self.pending = 0


@cache
def call_in_child(function: Callable[[], None]) -> None:
    """Register a function, once, that each forked child calls."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class Worker:
    """Runs tasks one after another in a daemon thread, which the first task starts.

    Tasks and flushes reach the thread through a queue, and only the thread changes the other fields. So `wake` needs no
    lock, and may be called from a weak reference's callback. A forked child has neither tasks nor a thread.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._inbox: queue.SimpleQueue[tuple[float, Task | _Flush]] = queue.SimpleQueue()
        self._entries: tuple[list[_Entry], list[_Entry]] = ([], [])  # heaps: periodic tasks, the others
        self._outages: dict[str, _Outage] = {}
        self._flushes: list[_Flush] = []
        self._starting = threading.Lock()
        self._working = threading.Lock()
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count()
        self.lost = 0  # tasks and traces since the last `take_lost`

    def submit(self, task: Task, *, after: float = 0.0) -> bool:
        """Schedule a task, without blocking; return False if it is dropped because too many are waiting."""
        if self.pending() >= _MAX_TASKS and not task.is_periodic:  # of which there is one for each prompt
            self.lost += 1
            logger.debug("Too many tasks wait for %s: %s is dropped", redacted(task.uri), task)
            return False
        self._inbox.put((time.monotonic() + after, task))
        self._start()
        return True

    def wake(self, task: Task) -> None:
        """Run a submitted task now, and again when it is due if it is still wanted."""
        self._inbox.put((0.0, task))

    def is_unreachable(self, uri: str) -> bool:
        """Whether the store was unreachable when it was last tried."""
        return uri in self._outages

    def pending(self) -> int:
        """Return about how many tasks wait, parked and periodic ones included."""
        return self._inbox.qsize() + len(self._entries[0]) + len(self._entries[1])

    def take_lost(self) -> int:
        """Return how many tasks and traces were lost since this was last called."""
        lost, self.lost = self.lost, 0
        return lost

    def flush(self, timeout: float | None) -> int:
        """Run all tasks now and wait for those of reachable stores; return how many are still pending."""
        deadline = time.monotonic() + (threading.TIMEOUT_MAX / 2 if timeout is None else timeout)
        if self._thread is None and not self.pending():
            return 0
        flush = _Flush()
        self._inbox.put((0.0, flush))
        if self._start():
            flush.done.wait(max(0.0, deadline - time.monotonic()))
        else:
            while not flush.done.is_set() and (left := deadline - time.monotonic()) > 0:
                self._work(left)
        if not flush.done.is_set():
            flush.pending = max(1, len(self._waiting()))  # at least 1: a task that runs now is in no heap
            flush.done.set()
        return flush.pending

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
            self._work(None)

    def _work(self, timeout: float | None) -> None:
        """Run the first task that is due, or wait for one."""
        with self._working:
            self._receive(0.0)
            now = time.monotonic()
            for entries in self._entries:
                if entries and entries[0].due <= now:
                    self._run(heapq.heappop(entries).task)
                    return
            if self._settle():
                return  # `flush` itself calls this method where no thread can start; it must not wait then
            due = min((entries[0].due for entries in self._entries if entries), default=None)
            if due is not None:
                timeout = max(0.0, due - now if timeout is None else min(due - now, timeout))
            self._receive(timeout)

    def _receive(self, timeout: float | None) -> None:
        """Move all submitted tasks and flushes out of the queue; wait up to `timeout` seconds for the first one."""
        try:
            due, item = self._inbox.get(timeout=timeout)
            while True:
                if isinstance(item, Task):
                    self._push(item, due)
                else:
                    self._begin(item)
                due, item = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _push(self, task: Task, due: float) -> None:
        if self._flushes and task.state is not TaskState.PARKED:
            due = min(due, time.monotonic() + _FLUSH_PAUSE)
        heapq.heappush(self._entries[0 if task.is_periodic else 1], _Entry(due, next(self._numbers), task))

    def _begin(self, flush: _Flush) -> None:
        if flush.done.is_set():  # its timeout has passed
            return
        self._flushes.append(flush)
        for outage in self._outages.values():
            outage.until = 0.0
        for entry in self._entries[1]:
            entry.due = min(entry.due, 0.0)
        heapq.heapify(self._entries[1])

    def _settle(self) -> bool:
        """End the flushes that wait for no task any more; return whether there were any. Call it if no task is due."""
        before = len(self._flushes)
        for flush in list(self._flushes):
            waiting = self._waiting()
            unreachable = {uri for uri, outage in self._outages.items() if outage.confirmed >= flush.started}
            if all(task.uri in unreachable for task in waiting):
                flush.pending = len(waiting)
                flush.done.set()
            if flush.done.is_set():
                self._flushes.remove(flush)
        return len(self._flushes) < before

    def _waiting(self) -> list[Task]:
        return [entry.task for entry in list(self._entries[1]) if entry.task.state is not TaskState.PARKED]

    def _run(self, task: Task) -> None:
        """Run a task once, and schedule its next run if it needs one."""
        if not task.wanted:
            return
        pause = self._try(task)
        if pause is not None:
            self._push(task, time.monotonic() + pause)

    def _try(self, task: Task) -> float | None:
        """Run a task unless its store is in an outage; return the seconds until its next run, or None for no more."""
        outage = self._outages.get(task.uri)
        if outage is not None and (left := outage.until - time.monotonic()) > 0:
            return left
        try:
            task.state = contextvars.Context().run(_run_task, task)
        except Exception as error:  # noqa: BLE001 - no failure may end the thread
            task.state = None
            return self._failed(task, error)
        if task.has_reached and self._outages.pop(task.uri, None) is not None:
            logger.info("MLflow's store %s is reachable again.", redacted(task.uri))
        if task.state is TaskState.LOST:
            logger.debug("Lost: %s", task)
            self.lost += 1
        return None if task.state in {TaskState.DONE, TaskState.LOST} else _PAUSE

    def _failed(self, task: Task, error: Exception) -> float | None:
        logger.debug("Failed: %s", task, exc_info=error)
        if is_outage(task.uri, error):
            return self._note_outage(task.uri, error)
        task.tries += 1
        if isinstance(error, RejectedError):
            logger.warning("Not registered in MLflow: %s", error)
            task.on_dropped()
            return None
        if task.tries < _MAX_TRIES:  # usually another process has taken the same version number
            return 0.25 * 2.0**task.tries
        _warn_rejected(task.uri, error)
        if may_pass(error):
            return min(2.0 ** min(task.tries, 10), _MAX_PAUSE)
        self.lost += not task.is_periodic
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
        outage.confirmed = time.monotonic()
        outage.pause = min(outage.pause * 2, _MAX_OUTAGE_PAUSE)
        outage.until = outage.confirmed + outage.pause
        return outage.pause


def _warn_rejected(uri: str, error: Exception) -> None:
    kind = error.error_code if isinstance(error, MlflowException) else type(error).__name__
    effect = "it will be retried" if may_pass(error) else "it is dropped"
    warn_once(
        ("refused", uri, kind),
        "MLflow's store %s refuses a prompt or its link, %s: %s",
        redacted(uri),
        effect,
        redacted_error(uri, error),
    )


worker: Final = Worker()
"""The one worker of this process."""


def _run_task(task: Task) -> TaskState:
    if task.workspace:
        set_server_request_workspace(task.workspace)  # in this context, unlike `set_workspace`, which is process-wide
    if not task.is_bounded:
        check_reachable(task.uri)
    return task.run()
