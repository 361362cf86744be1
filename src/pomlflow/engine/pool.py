"""The Node processes of this Python process: shared by its threads and event loops, and never by a fork."""

from __future__ import annotations

import collections
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pomlflow.engine.process import FROM_OUTSIDE, NodeProcess
from pomlflow.exceptions import EngineError, WorkerDiedError

__all__ = ["Pool"]

T = TypeVar("T")

_log = logging.getLogger("pomlflow")


class Pool:
    """Warm processes, lent out one render at a time, first come first served.

    Args:
        start: Makes a process.
        size: How many processes at the most.
    """

    def __init__(self, start: Callable[[], NodeProcess], size: int = 1) -> None:
        self._make = start
        self._size = size
        self._lock = threading.Lock()
        self._idle: list[NodeProcess] = []
        self._all: set[NodeProcess] = set()
        self._starting = 0
        self._waiting: collections.deque[Future[NodeProcess | None]] = collections.deque()
        self._closed = False
        self._threads = _Threads(size)

    def call(self, request: bytes, timeout: float) -> dict[str, Any]:
        """Send a request to a process, waiting for one to be free.

        Args:
            request: As `NodeProcess.call` takes it.
            timeout: Seconds for the render itself.

        Returns:
            The process's answer.

        Raises:
            NotWarmError: The bundle cannot be loaded warm.
            TimeoutError: The request outlasted its limit.
            WorkerDiedError: The process ended by its own doing, or twice by somebody else's.
        """
        for last in (False, True):
            process = None
            try:
                process = self._acquire()
                return process.call(request, timeout)
            except WorkerDiedError as error:
                if last or error.returncode not in FROM_OUTSIDE:
                    raise
                _log.info("the Node process was killed from outside; rendering once more in a new one")
            finally:
                if process is not None:
                    self._release(process)
        raise AssertionError  # pragma: no cover

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run something that calls the pool on a thread of the pool's own: event loops must not wait for a pipe."""
        return self._threads.submit(work)

    def _acquire(self) -> NodeProcess:
        while True:
            turn: Future[NodeProcess | None] | None = None
            with self._lock:
                if self._closed:
                    raise EngineError("the engine was closed while this render waited or ran")
                if self._idle:
                    process = self._idle.pop()
                elif len(self._all) + self._starting < self._size:
                    self._starting += 1
                    process = None
                else:
                    turn = Future()
                    self._waiting.append(turn)
            if turn is not None:
                process = self._wait(turn)
                if process is None:
                    continue  # a place came free, not a process
            elif process is None:
                process = self._start()
            if process.alive:
                return process
            self._release(process)  # killed while it was idle: nobody's render was lost

    def _wait(self, turn: Future[NodeProcess | None]) -> NodeProcess | None:
        try:
            return turn.result()
        except BaseException:  # Ctrl-C while waiting: what was handed over in that moment goes to the next
            if not turn.cancel():
                process = turn.result()
                if process is not None:
                    self._release(process)
                else:
                    with self._lock:
                        self._hand_on(None)
            raise

    def _start(self) -> NodeProcess:
        try:
            process = self._make()
        except BaseException:
            with self._lock:
                self._starting -= 1
                self._hand_on(None)
            raise
        with self._lock:
            self._starting -= 1
            self._all.add(process)
        return process

    def _release(self, process: NodeProcess) -> None:
        healthy = process.alive and not self._closed
        if not healthy:
            process.close()
        with self._lock:
            if not healthy:
                self._all.discard(process)
                self._hand_on(None)
            elif not self._hand_on(process):
                self._idle.append(process)

    def _hand_on(self, process: NodeProcess | None) -> bool:
        """Give a process, or the place for one, to whoever waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():
                turn.set_result(process)
                return True
        return False

    def close(self) -> None:
        """End every process; renders in flight fail."""
        self._threads.close()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all.clear()
            while self._hand_on(None):
                pass
        for process in idle:
            process.close()
        for process in busy:  # whoever holds one closes it
            process.kill()


class _Threads:
    """Daemon threads that run what event loops must not wait for.

    Not a ThreadPoolExecutor: its threads are joined at exit, so that a template that loops would hold the exit up.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._idle = threading.Semaphore(0)
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._work.put((work, future))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self._count < self._size:
                    self._count += 1
                    threading.Thread(target=self._run, name=f"pomlflow-{self._count}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end after what was submitted before."""
        for _ in range(self._size):
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:  # noqa: BLE001 - it is the caller's, on the other side of the future
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del item, work, future  # what the caller holds must not live on here until the next comes
            self._idle.release()
