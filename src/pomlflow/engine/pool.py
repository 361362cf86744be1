"""The Node processes of this Python process: shared by its threads and event loops, and never by a fork."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

from pomlflow.engine.process import FROM_OUTSIDE, NodeProcess
from pomlflow.engine.threads import Threads
from pomlflow.exceptions import EngineBusyError, EngineError, WorkerDiedError
from pomlflow.settings import settings

__all__ = ["Pool", "Stats", "Turn", "WaitedError"]

_log = logging.getLogger("pomlflow")
_GRACE = 0.1  # seconds in which a render that nobody waits for any more may end by itself: a start takes longer
_LEAST = 0.01  # seconds that a render gets whose time went by while it waited, at the last moment
_CLOSED = "the engine was closed while this render waited or ran"


class WaitedError(TimeoutError):
    """All of a request's time went by before a process was free."""


@dataclass(frozen=True)
class Stats:
    """What the engine of this Python process does, and has done since it started.

    Attributes:
        workers: Node processes that are there.
        max_workers: How many there may be.
        starting: Those that are being started.
        running: Renders that run.
        waiting: Renders that wait for a process.
        rendered: Renders that POML answered, with a frame or with an error of the template.
        failed: Renders that the engine failed: out of time, or their process ended.
        refused: Renders that were refused because too many waited.
        cancelled: Async renders that were cancelled.
        restarted: Processes that were started for one that had ended.
        recycled: Processes that were replaced because of their memory.
        memory: Resident bytes of the processes, as they last told.
    """

    workers: int = 0
    max_workers: int = 0
    starting: int = 0
    running: int = 0
    waiting: int = 0
    rendered: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    restarted: int = 0
    recycled: int = 0
    memory: int = 0


@dataclass(eq=False)
class Turn:
    """A request's place in the queue.

    Attributes:
        granted: The process that it gets; None where it is to start one.
        since: When it was asked for, in seconds of the monotonic clock.
        process: What it renders in.
        abandoned: Whether nobody waits for its answer any more.
        own: Whether it is the engine's own, and no render.
    """

    granted: Future[NodeProcess | None] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    process: NodeProcess | None = None
    abandoned: bool = False
    own: bool = False


class Pool:
    """Warm processes, lent out one render at a time, first come first served.

    A process is started for the first request, and another, in the background, whenever as many requests wait as there
    are processes. How many there may be is `settings().max_workers` at that moment.

    Args:
        start: Makes a process.
    """

    def __init__(self, start: Callable[[], NodeProcess]) -> None:
        self._make = start
        self._lock = threading.Lock()
        self._idle: list[NodeProcess] = []
        self._all: set[NodeProcess] = set()
        self._starting = 0
        self._beside = False  # whether one is being started in the background
        self._waiting: collections.deque[Turn] = collections.deque()
        self._counts: collections.Counter[str] = collections.Counter()
        self._closed = False
        self.threads = Threads()

    def ask(self, *, own: bool = False) -> Turn:
        """Take a place in the queue.

        Args:
            own: Whether it is the engine's own: no process is started for it, and it is not counted.

        Raises:
            EngineBusyError: Too many wait.
        """
        turn, limits = Turn(own=own), settings()
        with self._lock:
            self._check_open()
            if self._idle:
                turn.granted.set_result(self._idle.pop())
            elif not self._all and not self._starting:
                self._starting += 1
                turn.granted.set_result(None)
            elif len(self._waiting) >= limits.max_queue:
                self._counts["refused"] += 1
                raise EngineBusyError(
                    f"{len(self._waiting)} renders wait for {len(self._all)} Node processes already: render less at "
                    "once, or raise pomlflow.configure(max_workers=…, max_queue=…)"
                )
            else:
                self._waiting.append(turn)
                if not own and len(self._waiting) >= len(self._all) and self._places() < limits.workers:
                    self._start_beside(None)
        return turn

    def call(
        self,
        request: bytes,
        timeout: float,
        turn: Turn | None = None,
        answer: Callable[[bytes], bytes] | None = None,
    ) -> dict[str, Any]:
        """Send a request to a process, waiting for one to be free.

        Args:
            request: As `NodeProcess.call` takes it.
            timeout: Seconds for waiting and for the render itself; the start of a process is not counted.
            turn: Its place in the queue; by default it takes one now.
            answer: As `NodeProcess.call` takes it.

        Returns:
            The process's answer.

        Raises:
            NotWarmError: The bundle cannot be loaded warm.
            EngineBusyError: Too many wait.
            WaitedError: No process came free in that time.
            TimeoutError: The request outlasted its limit.
            WorkerDiedError: The process ended by its own doing, or twice by somebody else's.
        """
        process, left, answered = None, timeout, False
        try:
            if turn is None and (process := self._take_idle()) is None:
                turn = self.ask()
            if turn is not None:
                process = self._granted(turn, timeout)
                left = max(turn.since + timeout - time.monotonic(), _LEAST)
            if process is None:
                process = self._start()
            elif not process.alive:  # it ended while it was idle: nobody's render was lost
                process = self._replaced(process)
            deadline = time.monotonic() + left
            self._begin(turn, process)
            try:
                result = process.call(request, left, answer)
            except WorkerDiedError as error:
                if error.returncode not in FROM_OUTSIDE:
                    raise
                _log.info("the Node process ended by no doing of the render, which is done once more in a new one")
                left = max(deadline - time.monotonic(), _LEAST)
                process = self._replaced(process)
                self._begin(turn, process)
                result = process.call(request, left, answer)
            answered = True
        finally:
            if process is not None:
                self._release(process, turn, answered=answered)
        return result

    def _begin(self, turn: Turn | None, process: NodeProcess) -> None:
        if turn is not None:
            with self._lock:
                if turn.abandoned:
                    raise CancelledError
                turn.process = process

    def withdraw(self, turn: Turn) -> bool:
        """Leave the queue; False where it is too late for that."""
        with self._lock:
            if not turn.granted.cancel():
                return False
            self._waiting.remove(turn)
            return True

    def abandon(self, turn: Turn) -> None:
        """Nobody waits for this request's answer any more: free its place, or what it renders in, soon."""
        withdrawn = self.withdraw(turn)
        with self._lock:
            self._counts["cancelled"] += 1
            turn.abandoned = True
            if not withdrawn and turn.process is not None:
                turn.process.hurry(_GRACE)

    def prewarm(self, workers: int) -> None:
        """Start processes now, as many as are missing, in this thread.

        Raises:
            NotWarmError: The bundle cannot be loaded warm.
            EngineError: Node could not be started.
        """
        while True:
            with self._lock:
                self._check_open()
                if self._places() >= workers:
                    return
                self._starting += 1
            self.give_back(self._start())

    def stats(self) -> Stats:
        """What runs, waits and has been."""
        with self._lock:
            return Stats(
                workers=len(self._all),
                max_workers=settings().workers,
                starting=self._starting,
                running=len(self._all) - len(self._idle),
                waiting=len(self._waiting),
                memory=sum(process.memory for process in self._all),
                **self._counts,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(_CLOSED)

    def _places(self) -> int:
        return len(self._all) + self._starting

    def _take_idle(self) -> NodeProcess | None:
        with self._lock:
            self._check_open()
            return self._idle.pop() if self._idle else None

    def _granted(self, turn: Turn, timeout: float) -> NodeProcess | None:
        try:
            return turn.granted.result(max(turn.since + timeout - time.monotonic(), 0))
        except FutureTimeoutError:
            if self.withdraw(turn):
                raise WaitedError from None
            return turn.granted.result()
        except BaseException:  # Ctrl-C while waiting: what was handed over in that moment goes to the next
            if not self.withdraw(turn):
                self.give_back(turn.granted.result())
            raise

    def _start(self) -> NodeProcess:
        """Start a process in a place that is counted in `_starting`; where it fails, the place is free again."""
        try:
            try:
                process = self._make()
            except WorkerDiedError:  # somebody killed it while it started
                process = self._make()
        except BaseException:
            self.give_back(None)
            raise
        with self._lock:
            self._starting -= 1
            if not self._closed:
                self._all.add(process)
                return process
        process.close()
        raise EngineError(_CLOSED)

    def _replaced(self, process: NodeProcess) -> NodeProcess:
        """Start another one in the place of one that has ended."""
        process.close()
        with self._lock:
            self._check_open()
            self._all.discard(process)
            self._starting += 1
            self._counts["restarted"] += 1
        return self._start()

    def _start_beside(self, old: NodeProcess | None) -> None:
        """Start one in the background, to grow, or for one that is to go. Under the lock."""
        if self._beside:
            return
        self._beside = True
        self._starting += 1
        try:
            self.threads.submit(lambda: self._run_beside(old))
        except RuntimeError:  # no thread can start
            self._starting -= 1
            self._beside = False

    def _run_beside(self, old: NodeProcess | None) -> None:
        try:
            process = self._start()
        except EngineError as error:  # whoever waits gets one of those that are there
            _log.info("no further Node process could be started: %s", error)
        else:
            self.give_back(process)
            if old is not None:
                self._retire(old)
        finally:
            self._beside = False

    def _retire(self, process: NodeProcess) -> None:
        with self._lock:
            process.retired = True
            self._counts["recycled"] += 1
            if process not in self._idle:
                return  # whoever holds it closes it
            self._idle.remove(process)
            self._all.discard(process)
        process.close()

    def _release(self, process: NodeProcess, turn: Turn | None, *, answered: bool) -> None:
        usable = process.healthy if answered else process.alive
        with self._lock:
            if turn is None or not (turn.abandoned or turn.own):
                self._counts["rendered" if answered else "failed"] += 1
            if turn is not None:
                turn.process = None
            there = process in self._all  # else the pool was closed, or another process has its place
            usable = usable and there and not process.retired
            if usable:
                if process.memory > settings().max_memory << 20:
                    self._start_beside(process)
                self._hand_over(process)
            else:
                self._all.discard(process)
        if not usable:
            process.close()
            with self._lock:
                if there:
                    self._pass_place()

    def give_back(self, process: NodeProcess | None) -> None:
        """Take back what a turn was granted, unused: a process, or the place to start one."""
        with self._lock:
            if process is None:
                self._starting -= 1
                self._pass_place()
            elif process in self._all:
                self._hand_over(process)

    def _hand_over(self, process: NodeProcess) -> None:
        if not self._grant(process):
            self._idle.append(process)

    def _pass_place(self) -> None:
        """Have whoever waits longest start a process where one may be started."""
        if self._places() < settings().workers and self._grant(None):
            self._starting += 1

    def _grant(self, process: NodeProcess | None) -> bool:
        if not self._waiting:
            return False
        self._waiting.popleft().granted.set_result(process)
        return True

    def close(self) -> None:
        """End every process; renders in flight fail."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all.clear()
            while self._waiting:
                self._waiting.popleft().granted.set_exception(EngineError(_CLOSED))
        self.threads.close()
        for process in idle:
            process.close()
        for process in busy:  # whoever holds one closes it
            process.kill()
