"""A pool of Node processes, shared by this Python process's threads and event loops, but not by forked children."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from typing import Any

from pomlflow._log import logger
from pomlflow.engine.process import FROM_OUTSIDE, NodeProcess, watchdog
from pomlflow.engine.protocol import Stats
from pomlflow.engine.system import private_memory, start_thread
from pomlflow.exceptions import EngineBusyError, EngineError, WorkerDiedError
from pomlflow.settings import settings

_GRACE = 0.1  # seconds that a cancelled render has to finish; killing its process earlier would cost a start
_LEAST = 0.01  # seconds that a render has at least, even if all of its time was spent waiting
_IDLE = 120.0  # seconds without a render after which all processes but one are ended
_CLOSED = "the engine was closed while this render waited or ran"


class QueueTimeoutError(Exception):
    """A request's time was over before a process became free."""


@dataclass(eq=False)
class Position:
    """A request's position in the queue."""

    trusted: bool = True
    internal: bool = False  # a request of the engine itself, not a render: waiting, it does not make the pool grow
    granted: Future[NodeProcess | None] = field(default_factory=Future)  # None: the request must start a process
    since: float = field(default_factory=time.monotonic)  # when the request arrived
    process: NodeProcess | None = None  # that works on the request
    abandoned: bool = False  # the caller was cancelled


class Pool:
    """Two sets of warm processes, for trusted templates and for others; requests are served in order of arrival.

    `Settings.workers` limits both sets together, but each set may always have one process.
    """

    def __init__(self, start: Callable[[bool], NodeProcess]) -> None:
        self._make_process = start  # its argument: whether the process is for trusted templates
        self._lock = threading.RLock()  # reentrant: a callback of `granted` may release its process at once
        self._idle: list[NodeProcess] = []
        self._all: set[NodeProcess] = set()
        self._surplus: list[NodeProcess] = []  # no longer in the pool; closed before another process starts
        self._starting = {True: 0, False: 0}  # processes that are being started, or that a grant allows to start
        self._growing = False  # whether a process is being started in the background
        self._waiting: dict[bool, collections.deque[Position]] = {True: collections.deque(), False: collections.deque()}
        self._counts: collections.Counter[str] = collections.Counter()
        self._closed = threading.Event()
        self._used = 0.0  # when the last process started, or the last render ended
        self._shrinking = False  # whether a thread waits for the pool to be idle

    def acquire(self, *, trusted: bool = True, internal: bool = False) -> Position:
        """Return a position in the queue; raise an `EngineBusyError` if too many requests wait."""
        position = Position(trusted, internal)
        with self._lock:
            self._check_open()
            waiting = sum(map(len, self._waiting.values()))
            if (process := self._take_idle(trusted)) is not None:
                position.granted.set_result(process)
            elif not self._size(trusted):
                self._make_room(trusted)
                self._starting[trusted] += 1
                position.granted.set_result(None)
            elif waiting >= settings().max_queue:
                self._counts["refused"] += 1
                raise EngineBusyError(
                    f"{waiting} renders wait for {len(self._all)} Node processes already: render less at once, or "
                    "raise pomlflow.configure(max_workers=…, max_queue=…)"
                )
            else:
                self._waiting[trusted].append(position)
                if not internal:
                    self._grow(trusted)
        return position

    def run(
        self, request: bytes, timeout: float, position: Position, respond: Callable[[bytes], bytes] | None = None
    ) -> dict[str, Any]:
        """Wait for the position's grant, send the request (see `NodeProcess.call`), and return the answer.

        `timeout`, in seconds, covers the wait and the render itself, but not the start of a process.
        """
        process, answered = None, False
        try:
            process = self._granted(position, timeout)
            left = max(position.since + timeout - time.monotonic(), _LEAST)
            if process is None:
                process = self._start(position.trusted)
            elif not process.alive:  # it ended while it was idle: no render was lost
                process = self._replaced(process)
            deadline = time.monotonic() + left
            self._begin(position, process)
            try:
                result = process.call(request, left, respond)
            except WorkerDiedError as error:
                if error.returncode not in FROM_OUTSIDE:
                    raise
                logger.info("the Node process was ended from outside; the render is repeated in a new one")
                left = max(deadline - time.monotonic(), _LEAST)
                process = self._replaced(process)
                self._begin(position, process)
                result = process.call(request, left, respond)
            answered = True
        finally:
            if process is not None:
                self._release(process, position, answered=answered)
        return result

    def cancel(self, position: Position) -> bool:
        """Remove a position from the queue; return False if it has already been granted."""
        with self._lock:
            if not position.granted.cancel():
                return False
            if position in self._waiting[position.trusted]:  # else it was cancelled before
                self._waiting[position.trusted].remove(position)
            return True

    def abandon(self, position: Position) -> None:
        """Cancel a request: remove its position from the queue, or kill its process unless the render finishes soon."""
        cancelled = self.cancel(position)
        with self._lock:
            self._counts["cancelled"] += 1
            position.abandoned = True
            if not cancelled and position.process is not None:
                watchdog.shorten(position.process, time.monotonic() + _GRACE)

    def return_grant(self, position: Position) -> None:
        """Return an unused grant of a position, a process or the right to start one, to the waiting requests."""
        with self._lock:
            process = position.granted.result()
            if process is None:
                self._cancel_start(position.trusted)
            else:
                self._grant_or_keep(process)

    def prewarm(self, workers: int) -> None:
        """Start processes for trusted templates in this thread until there are `workers` of them."""
        while True:
            with self._lock:
                self._check_open()
                size = self._size(trusted=True)
                if size >= workers or (size and not self._make_room(trusted=True)):
                    return
                self._starting[True] += 1
            process = self._start(trusted=True)
            with self._lock:
                self._grant_or_keep(process)

    def stats(self) -> Stats:
        """Return the current state and the counters."""
        with self._lock:
            pids = tuple(one.pid for one in sorted(self._all, key=lambda one: (not one.trusted, one.pid)))
            found = Stats(
                workers=len(self._all),
                max_workers=settings().workers,
                starting=sum(self._starting.values()),
                running=len(self._all) - len(self._idle),
                waiting=sum(map(len, self._waiting.values())),
                memory=sum(process.memory for process in self._all),
                pids=pids,
                **self._counts,
            )
        return replace(found, private_memory=sum(map(private_memory, pids)))

    def close(self) -> None:
        """End every process; renders in flight fail."""
        with self._lock:
            self._closed.set()
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            idle += self._surplus
            self._all.clear()
            for waiting in self._waiting.values():
                while waiting:
                    waiting.popleft().granted.set_exception(EngineError(_CLOSED))
        for process in idle:
            process.close()
        for process in busy:  # the thread that has acquired it closes it
            process.kill()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError(_CLOSED)

    def _size(self, trusted: bool) -> int:
        return sum(process.trusted is trusted for process in self._all) + self._starting[trusted]

    def _free(self) -> int:
        """Return how many processes more there may be; negative above the limit."""
        return settings().workers - len(self._all) - sum(self._starting.values())

    def _make_room(self, trusted: bool) -> bool:
        """Take an idle process of the other set out of a full pool; return whether a process may start."""
        if self._free() > 0:
            return True
        surplus = self._take_idle(not trusted) if self._size(not trusted) > 1 else None
        if surplus is None:
            return False
        self._all.discard(surplus)
        self._surplus.append(surplus)
        return True

    def _take_idle(self, trusted: bool) -> NodeProcess | None:
        for process in reversed(self._idle):
            if process.trusted is trusted:
                self._idle.remove(process)
                return process
        return None

    def _granted(self, position: Position, timeout: float) -> NodeProcess | None:
        granted = position.granted
        try:
            if not granted.done():
                concurrent.futures.wait([granted], max(position.since + timeout - time.monotonic(), 0))
            expired = not granted.done() and self.cancel(position)
        except BaseException:  # raised by a signal handler: a grant of that moment goes to the next request
            if not self.cancel(position) and granted.exception() is None:
                self.return_grant(position)
            raise
        if expired:
            raise QueueTimeoutError
        return granted.result()

    def _begin(self, position: Position, process: NodeProcess) -> None:
        with self._lock:
            if position.abandoned:
                raise CancelledError
            position.process = process

    def _start(self, trusted: bool) -> NodeProcess:
        """Start a process that `_starting` already counts."""
        with self._lock:
            surplus, self._surplus = self._surplus, []
        try:
            for process in surplus:
                process.close()
            try:
                process = self._make_process(trusted)
            except WorkerDiedError:  # it was killed while it started
                process = self._make_process(trusted)
        except BaseException:
            with self._lock:
                self._cancel_start(trusted)
            raise
        with self._lock:
            self._starting[trusted] -= 1
            if not self._closed.is_set():
                self._all.add(process)
                self._used = time.monotonic()
                self._watch_for_idleness()
                return process
        process.close()
        raise EngineError(_CLOSED)

    def _replaced(self, process: NodeProcess) -> NodeProcess:
        """Return a new process in place of one that has ended."""
        process.close()
        with self._lock:
            self._check_open()
            self._all.discard(process)
            self._starting[process.trusted] += 1
            self._counts["restarted"] += 1
        return self._start(process.trusted)

    def _grow(self, trusted: bool) -> None:
        """Start another process for a set whose waiting requests are as many as its processes. Needs the lock."""
        wanted = not self._growing and len(self._waiting[trusted]) >= self._size(trusted)
        if wanted and self._make_room(trusted):
            self._start_in_background(trusted)

    def _start_in_background(self, trusted: bool) -> None:
        """Start a process in a thread. Needs the lock."""
        self._growing = True
        self._starting[trusted] += 1
        try:
            start_thread(lambda: self._run_in_background(trusted))
        except RuntimeError:  # no thread can start
            self._starting[trusted] -= 1
            self._growing = False

    def _run_in_background(self, trusted: bool) -> None:
        try:
            process = self._start(trusted)
        except EngineError as error:  # waiting requests get one of the existing processes
            logger.info("no further Node process could be started: %s", error)
            return
        finally:
            self._growing = False
        with self._lock:
            self._grant_or_keep(process)
            for kind in (not trusted, trusted):  # requests that arrived during the start
                if self._waiting[kind]:
                    self._grow(kind)

    def _watch_for_idleness(self) -> None:
        """Start the thread that shrinks an idle pool, if there is more than one process. Needs the lock."""
        if len(self._all) > 1 and not self._shrinking:
            with contextlib.suppress(RuntimeError):  # no thread can start: the next start tries again
                start_thread(self._shrink)
                self._shrinking = True

    def _shrink(self) -> None:
        """Wait until there has been no render for a while, then end all processes but the one used last."""
        while not self._closed.wait(_IDLE):
            with self._lock:
                idle = len(self._idle) == len(self._all) and not sum(self._starting.values())
                if not idle or time.monotonic() < self._used + _IDLE:
                    continue
                surplus, self._idle = self._idle[:-1], self._idle[-1:]
                self._all.difference_update(surplus)
                self._shrinking = False
            for process in surplus:
                process.close()
            return

    def _release(self, process: NodeProcess, position: Position, *, answered: bool) -> None:
        usable = not process.timed_out if answered else process.alive  # `alive` takes a system call
        with self._lock:
            if not (position.abandoned or position.internal):
                self._counts["rendered" if answered else "failed"] += 1
            position.process = None
            self._used = time.monotonic()
            is_ours = process in self._all  # else the pool was closed, or another process has replaced it
            surplus = self._free() < 0 and self._size(process.trusted) > 1
            too_large = usable and is_ours and process.memory > settings().max_memory << 20
            if usable and is_ours and not (too_large or surplus):
                self._grant_or_keep(process)
                return
            self._all.discard(process)
            self._counts["recycled"] += too_large
        process.close()
        with self._lock:
            if is_ours and not self._grant_start() and too_large and not self._growing and self._free() > 0:
                self._start_in_background(process.trusted)

    def _grant_or_keep(self, process: NodeProcess) -> None:
        """Grant a free process to the longest waiting request of its set, or keep it idle. Needs the lock."""
        if process not in self._all:  # the pool was closed
            return
        trusted, other = process.trusted, not process.trusted
        self._idle.append(process)
        if self._waiting[other] and self._size(trusted) > self._size(other) + 1:  # balance the sets
            self._grow(other)
        if process in self._idle and self._waiting[trusted]:
            self._idle.remove(process)
            self._waiting[trusted].popleft().granted.set_result(process)

    def _cancel_start(self, trusted: bool) -> None:
        """Stop counting a process that was not started; another request may start one instead. Needs the lock."""
        self._starting[trusted] -= 1
        self._grant_start()

    def _grant_start(self) -> bool:
        """Let the longest waiting request that may start a process do so; return whether one may. Needs the lock."""
        for waiting in sorted(filter(None, self._waiting.values()), key=lambda one: one[0].since):
            trusted = waiting[0].trusted
            if self._free() > 0 or not self._size(trusted):
                self._starting[trusted] += 1
                waiting.popleft().granted.set_result(None)
                return True
        return False
