"""MLflow's way to its store: spans wait in a processor, then as tasks in a queue that its threads work off.

All that leans on private parts of MLflow's exporters stands here; seen with MLflow 3.12 to 3.17. Its public
``flush_trace_async_logging`` has no limit, takes a second where nothing is to be done, starts threads, which an
interpreter that ends does not (Python 3.12 and later), and never ends in a forked child whose parent has traced.
"""

from __future__ import annotations

import concurrent.futures.thread
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from mlflow.tracing import provider
from mlflow.tracing.processor import base_mlflow
from mlflow.tracing.trace_manager import InMemoryTraceManager
from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["LINKER", "WORKER", "Export", "exports", "give_up", "hear_flush", "let_go", "linked"]

LINKER: Final = "link_prompts_from_exporter"  # how the names of its threads begin that link what was exported
WORKER: Final = "MlflowTraceLoggingWorker"  # and of those that export


class Export(NamedTuple):
    """One way to a store.

    Attributes:
        uri: The store.
        processor: MLflow's span processor.
        tasks: Its `AsyncTraceExportQueue`; None where MLflow is set to export at once.
    """

    uri: str
    processor: Any
    tasks: Any

    def drain(self, deadline: float, *, threads: bool = True) -> bool:
        """Have MLflow store all that waits.

        Args:
            deadline: Until when to wait, in seconds of the monotonic clock.
            threads: Whether threads can be started. If not, and the queue has none that live, this one does it all.

        Returns:
            Whether all is stored, or was given up by MLflow.
        """
        tasks = self.tasks
        if tasks is None:
            return bool(self.processor.force_flush())
        alone = not tasks._consumer_thread.is_alive() if tasks.is_active() else not threads  # no thread lives in a fork
        if alone:
            tasks._is_active = True  # so that it takes tasks, and starts nothing
        try:
            self.processor.force_flush()
            for task in _taken(tasks._queue) if alone else ():
                task.handle()
        finally:
            if alone:
                tasks._is_active = False  # the next task starts threads; and MLflow's own hook waits for an active one
        if alone:
            return True
        waiting = tasks._queue
        with waiting.all_tasks_done:
            left = max(0.0, deadline - time.monotonic())
            return bool(waiting.all_tasks_done.wait_for(lambda: not waiting.unfinished_tasks, left))


def exports() -> list[Export]:
    """All that there are: MLflow makes a new one where its tracking URI or its destination changes."""
    found = {*base_mlflow._batch_processor_registry, provider._get_span_processor()}  # type: ignore[no-untyped-call]
    ways = []
    for processor in found - {None}:
        exporter = processor.span_exporter
        if (client := getattr(exporter, "_client", None)) is not None:
            ways.append(Export(client.tracking_uri, processor, getattr(exporter, "_async_queue", None)))
    return ways


class _Listener(base_mlflow.BaseMlflowSpanProcessor):
    """Stands among MLflow's processors, and gets no span: their flush is the one thing that its flush calls."""

    def __init__(self, flushed: Callable[[float], object]) -> None:
        super().__init__(SpanExporter(), export_metrics=False)
        self._flushed = flushed

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        return bool(self._flushed(timeout_millis / 1e3))


_listener: _Listener | None = None


def hear_flush(flushed: Callable[[float], object]) -> None:
    """Have this called with a limit in seconds when MLflow flushes, up to the flush that ends MLflow's threads."""
    global _listener
    listener = _listener = _listener or _Listener(flushed)
    if listener not in base_mlflow._batch_processor_registry:
        with base_mlflow._batch_processor_registry_lock:
            base_mlflow._batch_processor_registry.add(listener)


def linked(deadline: float) -> bool:
    """Wait for the threads in which MLflow links what it has exported; whether they are done."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(LINKER)]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def let_go(ways: Iterable[Export], *, threads: bool) -> None:
    """Have Python not wait for MLflow's threads at the end; they go on for as long as the process lives.

    While a server is away they try again for four minutes, and are no daemons.

    Args:
        ways: Those to servers that are away.
        threads: Whether threads can be started.
    """
    for tasks in filter(None, (way.tasks for way in ways)):
        if threads:
            tasks.activate()
        if tasks.is_active():  # no more threads of its pool: what comes now, its consumer does, which is a daemon
            tasks._worker_threadpool.shutdown(wait=False)
    for thread in threading.enumerate():
        if not thread.name.startswith((LINKER, WORKER)):
            continue
        concurrent.futures.thread._threads_queues.pop(thread, None)  # type: ignore[attr-defined]
        lock = getattr(thread, "_tstate_lock", None)  # until Python 3.12
        if lock is not None:
            with threading._shutdown_locks_lock:  # type: ignore[attr-defined]
                threading._shutdown_locks.discard(lock)  # type: ignore[attr-defined]
        handle = getattr(thread, "_os_thread_handle", None) or getattr(thread, "_handle", None)
        if handle is not None:  # from Python 3.13 on
            handle._set_done()


def give_up(ways: Iterable[Export]) -> bool:
    """Take from MLflow what it could only try to store for minutes; whether there was anything."""
    traces = InMemoryTraceManager.get_instance()._traces  # type: ignore[no-untyped-call] # in MLflow
    lost = bool(traces)
    traces.clear()  # else the processors' own hooks export what they have
    for tasks in filter(None, (way.tasks for way in ways)):
        lost = lost or tasks._queue.unfinished_tasks > 0
        tasks._is_active = False  # its own hook waits for an active one
        for _ in _taken(tasks._queue):
            pass
    return lost


def _taken(tasks: queue.Queue[Any]) -> Iterator[Any]:
    while True:
        try:
            task = tasks.get_nowait()
        except queue.Empty:
            return
        try:
            yield task
        finally:
            tasks.task_done()
