"""Background tasks for MLflow's stores: one daemon thread, retries with backoff, one warning per outage.

The thread checks a server before each task. So only a server that goes away in the middle of one, where MLflow retries
for minutes, blocks the thread, and never a caller.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final

from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import set_server_request_workspace

from pomlflow._log import logger, warn_once
from pomlflow.tracking.stores import check_reachable, is_outage, may_pass, shown, without_login

__all__ = ["RejectedError", "State", "Task", "Worker", "worker"]

_MAX_OUTAGE_PAUSE: Final = 15.0  # seconds between checks of an unreachable server
_PAUSE: Final = 15.0  # seconds between tries of what is not possible yet; a flush, or `wake`, does not wait for that
_MAX_PAUSE: Final = 600.0  # seconds between tries of what a server refuses for now
_FLUSH_PAUSE: Final = 0.2  # seconds between tries during a flush
_MAX_TRIES: Final = 3  # of what a server rejects
_MAX_TASKS: Final = 50_000  # waiting


class RejectedError(Exception):
    """The store can never accept this; trying again is of no use."""


class State(Enum):
    """The result of a task's run."""

    DONE = "done"
    NOT_YET = "not yet"  # to be tried again; a flush waits for it
    PARKED = "parked"  # depends on the user's program; a flush does not wait for it
    LOST = "lost"  # impossible for ever, and counted


@dataclass(kw_only=True, eq=False, repr=False)
class Task:
    """Work for one store.

    Attributes:
        uri: The store.
        workspace: The MLflow workspace that it belongs to, or None.
        tries: How often it failed.
        has_reached: Whether its last run reached the store.
        state: What its last run returned; None before.
    """

    is_periodic: ClassVar[bool] = False  # run before the others, and no flush waits for it
    is_bounded: ClassVar[bool] = False  # it limits its own requests, so the server need not be checked before

    uri: str
    workspace: str | None = None
    tries: int = 0
    has_reached: bool = True
    state: State | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {shown(self.uri)}>"

    @property
    def wanted(self) -> bool:
        """Whether it is still to be done."""
        return True

    def run(self) -> State:
        """Do it; it may block for long."""
        raise NotImplementedError

    def dropped(self) -> None:
        """Handle that it will not be tried again."""


@dataclass
class _Outage:
    pause: float = 0.25
    until: float = 0.0
    confirmed: float = 0.0


@dataclass(order=True)
class _Entry:
    due: float
    number: int
    task: Task = field(compare=False)


class _Flush:
    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done = threading.Event()
        self.pending = 0


class Worker:
    """Runs tasks one after another in a daemon thread that starts with the first; a forked child starts with none.

    Tasks and flushes reach the thread through a queue, and all else belongs to the thread alone. So `wake` needs no
    lock, and may be called from a weak reference's callback.
    """

    def __init__(self) -> None:
        self.lost = 0  # tasks and traces since the last `take_lost`
        self._is_hooked = False
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

    def submit(self, task: Task, *, after: float = 0.0) -> bool:
        """Have a task run after some seconds. Never blocks; returns False where too many wait, and it is dropped."""
        if self.pending() >= _MAX_TASKS:
            self.lost += not task.is_periodic
            logger.debug("Too many tasks wait for %s: %s is dropped", shown(task.uri), task)
            return False
        self._inbox.put((time.monotonic() + after, task))
        self._start()
        return True

    def wake(self, task: Task) -> None:
        """Have a submitted task run now, in addition to when it is due."""
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
        """Run all tasks now and wait for them; return how many are still pending.

        A store that is unreachable gets one try, and is not waited for.
        """
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
            flush.pending = max(1, len(self._waiting()))  # or it runs now
            flush.done.set()
        return flush.pending

    def _start(self) -> bool:
        """Start the thread; return False where none can start, as while Python ends."""
        if self._thread is not None:
            return True
        with self._starting:
            if self._thread is None:
                if not self._is_hooked and hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=self._reset)
                    self._is_hooked = True
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
                return  # the flush may be this thread's own
            due = min((entries[0].due for entries in self._entries if entries), default=None)
            if due is not None:
                timeout = max(0.0, due - now if timeout is None else min(due - now, timeout))
            self._receive(timeout)

    def _receive(self, timeout: float | None) -> None:
        """Accept what was submitted, and wait for it if there is nothing."""
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
        if self._flushes and task.state is not State.PARKED:
            due = min(due, time.monotonic() + _FLUSH_PAUSE)
        heapq.heappush(self._entries[0 if task.is_periodic else 1], _Entry(due, next(self._numbers), task))

    def _begin(self, flush: _Flush) -> None:
        if flush.done.is_set():  # its time is over
            return
        self._flushes.append(flush)
        for outage in self._outages.values():
            outage.until = 0.0
        for entry in self._entries[1]:
            entry.due = 0.0
        heapq.heapify(self._entries[1])

    def _settle(self) -> bool:
        """End the flushes that wait for no task any more, and return whether there were any; no task is due now."""
        before = len(self._flushes)
        for flush in list(self._flushes):
            waiting = self._waiting()
            if all(self._is_blocked(task, flush) for task in waiting):
                flush.pending = len(waiting)
                flush.done.set()
            if flush.done.is_set():
                self._flushes.remove(flush)
        return len(self._flushes) < before

    def _waiting(self) -> list[Task]:
        return [entry.task for entry in list(self._entries[1]) if entry.task.state is not State.PARKED]

    def _is_blocked(self, task: Task, flush: _Flush) -> bool:
        outage = self._outages.get(task.uri)
        return outage is not None and outage.confirmed >= flush.started

    def _run(self, task: Task) -> None:
        """Run a task once, and schedule its next try if there is to be one."""
        if not task.wanted:
            return
        pause = self._try(task)
        if pause is not None:
            self._push(task, time.monotonic() + pause)

    def _try(self, task: Task) -> float | None:
        """Return the seconds until the next try, or None if there is to be none."""
        outage = self._outages.get(task.uri)
        if outage is not None and (left := outage.until - time.monotonic()) > 0:
            return left
        try:
            task.state = contextvars.Context().run(_run_task, task)
        except Exception as error:  # noqa: BLE001 - no failure may end the thread
            task.state = None
            return self._failed(task, error)
        if task.has_reached and self._outages.pop(task.uri, None) is not None:
            logger.info("MLflow's store %s is reachable again.", shown(task.uri))
        if task.state is State.LOST:
            logger.debug("Lost: %s", task)
            self.lost += 1
        return None if task.state in {State.DONE, State.LOST} else _PAUSE

    def _failed(self, task: Task, error: Exception) -> float | None:
        task.tries += 1
        logger.debug("Failed %d times: %s", task.tries, task, exc_info=error)
        if is_outage(task.uri, error):
            return self._note_outage(task.uri, error)
        if isinstance(error, RejectedError):
            logger.warning("Not registered in MLflow: %s", error)
            task.dropped()
            return None
        if task.tries < _MAX_TRIES:  # mostly a race for a version's number
            return min(0.25 * 2.0**task.tries, _MAX_PAUSE)
        _warn_refused(task.uri, error)
        if may_pass(error):
            return min(2.0**task.tries, _MAX_PAUSE)
        self.lost += not task.is_periodic
        task.dropped()
        return None

    def _note_outage(self, uri: str, error: Exception) -> float:
        if uri not in self._outages:
            self._outages[uri] = _Outage()
            logger.warning(
                "MLflow's store %s is unreachable. Calls go on; prompt versions and trace links are queued and will be "
                "retried. (%s)",
                shown(uri),
                without_login(error, uri),
            )
        outage = self._outages[uri]
        outage.confirmed = time.monotonic()
        outage.pause = min(outage.pause * 2, _MAX_OUTAGE_PAUSE)
        outage.until = outage.confirmed + outage.pause
        return outage.pause


def _warn_refused(uri: str, error: Exception) -> None:
    kind = error.error_code if isinstance(error, MlflowException) else type(error).__name__
    effect = "it will be retried" if may_pass(error) else "it is dropped"
    warn_once(
        ("refused", uri, kind),
        "MLflow's store %s refuses a prompt or its link, %s: %s",
        shown(uri),
        effect,
        without_login(error, uri),
    )


worker: Final = Worker()
"""The process's own."""


def _run_task(task: Task) -> State:
    if task.workspace:
        set_server_request_workspace(task.workspace)  # in this context, unlike `set_workspace`, which is process-wide
    if not task.is_bounded:
        check_reachable(task.uri)
    return task.run()
