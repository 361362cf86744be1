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
from pathlib import Path
from typing import Any

from pomlflow._log import logger
from pomlflow.engine.process import EXTERNAL_RETURNCODES, NodeProcess, watchdog
from pomlflow.engine.protocol import Stats
from pomlflow.exceptions import EngineBusyError, EngineError, WorkerDiedError
from pomlflow.settings import settings

_CANCEL_GRACE = 0.1  # seconds that a cancelled render has to finish; killing its process earlier would cost a start
_MIN_RENDER_TIME = 0.01  # seconds that a render has at least, even if all of its time was spent waiting
_IDLE_TIMEOUT = 120.0  # seconds without a render after which all processes but one are ended
_CLOSED = "the engine was closed while this render waited or ran"


class QueueTimeoutError(Exception):
    """A request's time was over before a process became free."""


@dataclass(eq=False)
class Position:
    """A request's position in the queue."""

    trusted: bool = True
    internal: bool = False  # the engine's own request, not a render; the pool does not grow for it
    granted: Future[NodeProcess | None] = field(default_factory=Future)  # a process, or None: start one
    since: float = field(default_factory=time.monotonic)  # when the request arrived
    process: NodeProcess | None = None  # the one that renders the request
    abandoned: bool = False  # the caller was cancelled


class Pool:
    """Two sets of warm processes, for trusted templates and for others; requests are served in order of arrival.

    `Settings.workers` limits both sets together, but each set may always have one process.
    """

    def __init__(self, start: Callable[[bool], NodeProcess]) -> None:
        self._make_process = start  # its argument: whether the process is for trusted templates
        self._lock = threading.Lock()
        self._idle: list[NodeProcess] = []
        self._all: set[NodeProcess] = set()
        self._surplus: list[NodeProcess] = []  # no longer in the pool; closed before another process starts
        self._starting = {True: 0, False: 0}  # processes that are being started, or that a grant allows to start
        self._waiting: dict[bool, collections.deque[Position]] = {True: collections.deque(), False: collections.deque()}
        self._counts: collections.Counter[str] = collections.Counter()
        self._closed = threading.Event()
        self._last_used = 0.0  # when the last process started, or the last render ended
        self._has_shrinker = False  # whether a thread waits for the pool to be idle

    def acquire(self, *, trusted: bool = True, internal: bool = False) -> Position:
        """Return a position in the queue; raise an `EngineBusyError` if too many requests wait."""
        position = Position(trusted, internal)
        with self._lock:
            self._check_open()
            waiting = sum(map(len, self._waiting.values()))
            self._waiting[trusted].append(position)
            self._assign(trusted)
            if position.granted.done():
                return position
            if waiting >= settings().max_queue:
                self._waiting[trusted].pop()
                self._counts["refused"] += 1
                raise EngineBusyError(
                    f"{waiting} renders already wait for {len(self._all)} Node processes: run fewer renders at the "
                    "same time, or raise pomlflow.configure(max_workers=…, max_queue=…)"
                )
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
            left = max(position.since + timeout - time.monotonic(), _MIN_RENDER_TIME)
            if process is None:  # the right to start one
                process = self._start(position.trusted)
            elif not process.alive:  # it ended while it was idle: no render was lost
                process = self._replaced(process)
            deadline = time.monotonic() + left
            self._begin(position, process)
            try:
                result = process.call(request, left, respond)
            except WorkerDiedError as error:
                if error.returncode not in EXTERNAL_RETURNCODES:
                    raise
                logger.info("the Node process was ended from outside; the render is repeated in a new one")
                left = max(deadline - time.monotonic(), _MIN_RENDER_TIME)
                process = self._replaced(process)
                self._begin(position, process)
                result = process.call(request, left, respond)
            answered = True
        finally:
            if process is not None:
                self._release(process, position, answered=answered)
        return result

    def abandon(self, position: Position) -> None:
        """Cancel a request: remove its position from the queue, or kill its process unless the render finishes soon."""
        with self._lock:
            self._counts["cancelled"] += 1
            position.abandoned = True
            if not self._fail(position, CancelledError()) and position.process is not None:
                watchdog.shorten(position.process, time.monotonic() + _CANCEL_GRACE)

    def expire(self, position: Position) -> None:
        """Fail a request whose time is over, unless its position has been granted."""
        with self._lock:
            self._fail(position, QueueTimeoutError())

    def withdraw(self, position: Position) -> None:
        """Remove a position from the queue, or pass what it was granted to the next one."""
        with self._lock:
            if self._fail(position, CancelledError()) or position.granted.exception() is not None:
                return
            process = position.granted.result()
            if process is None:
                self._starting[position.trusted] -= 1
            else:
                self._idle.append(process)
            self._assign(position.trusted)

    def prewarm(self, workers: int) -> None:
        """Start processes for trusted templates in this thread until there are `workers` of them."""
        while True:
            with self._lock:
                self._check_open()
                size = self._size(trusted=True)
                if size >= workers or (size and not self._make_room(trusted=True)):
                    return
                self._starting[True] += 1
            self._start(trusted=True, idle=True)

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
        return replace(found, private_memory=sum(map(_private_memory, pids)))

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
        for process in busy:  # its thread closes it
            process.kill()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError(_CLOSED)

    def _size(self, trusted: bool) -> int:
        return sum(process.trusted is trusted for process in self._all) + self._starting[trusted]

    def _free(self) -> int:
        """Return how many processes more there may be; negative above the limit."""
        return settings().workers - len(self._all) - sum(self._starting.values())

    def _fail(self, position: Position, error: Exception) -> bool:
        """Fail a waiting request; return False if it is not waiting any more. Needs the lock."""
        if position.granted.done():
            return False
        self._waiting[position.trusted].remove(position)
        position.granted.set_exception(error)
        return True

    def _granted(self, position: Position, timeout: float) -> NodeProcess | None:
        if not position.granted.done():
            try:
                concurrent.futures.wait([position.granted], max(position.since + timeout - time.monotonic(), 0))
            except BaseException:  # raised by a signal handler
                self.withdraw(position)
                raise
            self.expire(position)
        return position.granted.result()

    def _begin(self, position: Position, process: NodeProcess) -> None:
        with self._lock:
            if position.abandoned:
                raise CancelledError
            position.process = process

    def _release(self, process: NodeProcess, position: Position, *, answered: bool) -> None:
        with self._lock:
            if not (position.abandoned or position.internal):
                self._counts["rendered" if answered else "failed"] += 1
            position.process = None
            self._last_used = time.monotonic()
            # A process is no longer in the pool if the pool was closed or another process has replaced it.
            usable = process in self._all and process.alive
            too_large = usable and process.memory > settings().max_memory << 20
            surplus = self._free() < 0 and self._size(process.trusted) > 1
            if usable and not (too_large or surplus):
                self._keep(process)
                return
        try:
            process.close()
        finally:  # a signal handler may raise an error while it waits
            with self._lock:
                self._counts["recycled"] += too_large
                self._all.discard(process)
                self._assign(process.trusted)
                self._grow(process.trusted)

    def _keep(self, process: NodeProcess) -> None:
        """Grant a free process to a waiting request, or keep it idle. Needs the lock."""
        self._idle.append(process)
        self._grow(not process.trusted)  # the other set; if it has fewer processes, it takes this one's place
        self._assign(process.trusted)
        self._grow(process.trusted)

    def _assign(self, trusted: bool) -> None:
        """Grant a set's idle processes, or the start of its first one, to its waiting requests. Needs the lock."""
        waiting = self._waiting[trusted]
        while waiting and (process := self._take_idle(trusted)) is not None:
            waiting.popleft().granted.set_result(process)
        if waiting and not self._size(trusted):
            self._make_room(trusted)
            self._starting[trusted] += 1
            waiting.popleft().granted.set_result(None)

    def _grow(self, trusted: bool) -> None:
        """Start another process in a thread if as many requests of a set wait as it has processes. Needs the lock."""
        waiting = len(self._waiting[trusted])
        if not waiting or waiting < self._size(trusted) or self._starting[trusted] or not self._make_room(trusted):
            return
        self._starting[trusted] += 1
        try:
            start_thread(lambda: self._start_in_background(trusted))
        except RuntimeError:  # no thread can start
            self._starting[trusted] -= 1

    def _make_room(self, trusted: bool) -> bool:
        """Return whether a process may start; in a full pool, an idle process of the other set leaves it."""
        if self._free() > 0:
            return True
        size = self._size(not trusted)
        may_give = size > self._size(trusted) + 1 if self._waiting[not trusted] else size > 1
        surplus = self._take_idle(not trusted) if may_give else None
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

    def _start(self, trusted: bool, *, idle: bool = False) -> NodeProcess:
        """Start a process that `_starting` already counts, for the caller or for the waiting requests."""
        with self._lock:
            surplus, self._surplus = self._surplus, []
        process = None
        try:
            for one in surplus:
                one.close()
            try:
                process = self._make_process(trusted)
            except WorkerDiedError:  # it was killed while it started
                process = self._make_process(trusted)
        finally:
            with self._lock:
                self._starting[trusted] -= 1
                if process is None:
                    self._assign(trusted)  # another request may start one
                elif not self._closed.is_set():
                    self._all.add(process)
                    self._last_used = time.monotonic()
                    self._watch_for_idleness()
                    if idle:
                        self._keep(process)
        if self._closed.is_set():
            process.close()
            raise EngineError(_CLOSED)
        return process

    def _start_in_background(self, trusted: bool) -> None:
        try:
            self._start(trusted, idle=True)
        except EngineError as error:  # waiting requests get one of the existing processes
            logger.info("no further Node process could be started: %s", error)

    def _replaced(self, process: NodeProcess) -> NodeProcess:
        """Return a new process in place of one that has ended."""
        process.close()
        with self._lock:
            self._check_open()
            self._all.discard(process)
            self._starting[process.trusted] += 1
            self._counts["restarted"] += 1
        return self._start(process.trusted)

    def _watch_for_idleness(self) -> None:
        """Start the thread that shrinks an idle pool, if there is more than one process. Needs the lock."""
        if len(self._all) > 1 and not self._has_shrinker:
            with contextlib.suppress(RuntimeError):  # no thread can start: the next start tries again
                start_thread(self._shrink)
                self._has_shrinker = True

    def _shrink(self) -> None:
        """Wait until there has been no render for a while, then end all processes but the one used last."""
        while not self._closed.wait(_IDLE_TIMEOUT):
            with self._lock:
                idle = len(self._idle) == len(self._all) and not sum(self._starting.values())
                if not idle or time.monotonic() < self._last_used + _IDLE_TIMEOUT:
                    continue
                surplus, self._idle = self._idle[:-1], self._idle[-1:]
                self._all.difference_update(surplus)
                self._has_shrinker = False
            for process in surplus:
                process.close()
            return


def start_thread(work: Callable[[], object]) -> threading.Thread:
    """Run a function in a daemon thread, which does not delay an exit; raise RuntimeError if no thread can start."""
    thread = threading.Thread(target=work, name="pomlflow-render", daemon=True)
    thread.start()
    return thread


def _private_memory(pid: int) -> int:
    """Return the bytes that a process takes for itself; 0 if the system does not report them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    # Not the clean pages: most are of Node's program, which all its processes share.
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))
