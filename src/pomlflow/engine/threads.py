"""Daemon threads for what event loops cannot wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """Daemon threads that start as there is work, and stay.

    Not a ThreadPoolExecutor: its threads are joined at exit, so that a template that loops would delay the exit.
    """

    def __init__(self) -> None:
        self._count = 0
        self._idle = threading.Semaphore(0)
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run something soon; RuntimeError where no thread can start, as at the end of the interpreter."""
        future: Future[T] = Future()
        if not self._idle.acquire(blocking=False):
            with self._lock:
                threading.Thread(target=self._run, name=f"pomlflow-{self._count + 1}", daemon=True).start()
                self._count += 1
        self._work.put((work, future))
        return future

    def close(self) -> None:
        """Let the threads end after what was submitted before."""
        with self._lock:
            for _ in range(self._count):
                self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it is the caller's, on the other side of the future
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del item, work, future  # what the caller holds must not live on here until the next comes
            self._idle.release()
