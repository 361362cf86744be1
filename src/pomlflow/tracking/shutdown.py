"""Flush pending traces, prompt versions and links: in `pomlflow.flush`, in MLflow's own flush, at exit and at SIGTERM.

If its server is unreachable, MLflow delays the exit by minutes. So everything is flushed earlier, before Python joins
threads: a server that responds receives everything, and what is pending for another one is dropped.

SIGTERM, by which container runtimes and `multiprocessing.Pool` end processes, runs no exit hooks. It is handled in
programs without a handler of their own, and under uvicorn, which raises the signal again at the end of its shutdown.

This module uses private parts of MLflow, since MLflow's own flush has no time limit.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final

import mlflow
from mlflow.tracing import provider
from mlflow.tracing.client import TracingClient
from mlflow.tracing.processor import base_mlflow
from opentelemetry.sdk.trace.export import SpanExporter

from pomlflow._log import logger, warn_once
from pomlflow.tracking.background import FOREVER, call_in_child, worker
from pomlflow.tracking.stores import check_reachable, redacted, redacted_error

_CHILD_TIMEOUT: Final = 300.0  # seconds to flush at the end of a multiprocessing child, which its parent waits for
_SIGTERM_TIMEOUT: Final = 20.0  # seconds to flush at SIGTERM; most container runtimes kill after 30
_PAUSE: Final = 5.0  # seconds that the main thread waits at SIGTERM: it may hold a lock that the flush needs
_CHECK_TIMEOUT: Final = 2.0  # seconds within which a server must respond at exit
_CHILD_CHECK_TIMEOUT: Final = 30.0  # the same for a multiprocessing child: many end together, so the server is busy
_before_flush: Final[list[Callable[[bool], None]]] = []
_flushed: Final = threading.Event()  # set after the flush at SIGTERM


class _Hooks(base_mlflow.BaseMlflowSpanProcessor):
    """Flushes at exit, and in MLflow's flush, which calls each span processor; this one processes no spans."""

    def __init__(self) -> None:
        super().__init__(SpanExporter(), export_metrics=False)
        call_in_child(_restart_exports)
        try:
            threading._register_atexit(_exit_before_join)  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):  # no such function in this Python; it shuts down already
            atexit.register(flush_at_exit)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Flush MLflow's traces and then our tasks."""
        deadline = time.monotonic() + min(timeout_millis / 1e3, _limit())
        with suppress(AttributeError):  # another version of MLflow
            _drain_all(deadline)
        worker.flush(max(0.0, deadline - time.monotonic()))
        return True


_hooks: Final = cache(_Hooks)


def enlarge_span_queue(size: int) -> None:
    """Set the queue size of the span processors that MLflow makes from now on."""
    # upstream: mlflow 3.12-3.17: of more than 2,048 spans that wait for its exporter it drops the oldest.
    if hasattr(base_mlflow, "_DEFAULT_OTEL_MAX_QUEUE_SIZE"):
        base_mlflow._DEFAULT_OTEL_MAX_QUEUE_SIZE = size


def register_hooks() -> None:
    """Register hooks at exit and at fork, once, and in MLflow's flush, each time: MLflow may remove that one."""
    try:
        with base_mlflow._batch_processor_registry_lock:
            base_mlflow._batch_processor_registry.add(_hooks())
    except AttributeError as error:
        warn_once("hooks", "This version of MLflow has unknown exporters (%s): call pomlflow.flush() at exit", error)


def call_before_flush(callback: Callable[[bool], None]) -> None:
    """Register a function to call before each flush, with True for the flush at exit. It must not block."""
    _before_flush.append(callback)
    register_hooks()


def _call_before_flush(*, is_exit: bool) -> None:
    for callback in _before_flush:
        with suppress(Exception):
            callback(is_exit)


def _exit_before_join() -> None:
    if hasattr(signal, "sigpending") and signal.SIGTERM in signal.sigpending():  # blocked by `_block_after`
        flush_at_exit(_SIGTERM_TIMEOUT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if flush_at_exit():
        # For the traces of threads that outlive main. Hooks run in reverse order, so this one precedes MLflow's.
        atexit.register(flush_at_exit)


def flush(timeout: float | None) -> bool:
    """Flush traces, prompt versions and links; return whether everything is stored. One warning counts the losses."""
    deadline = time.monotonic() + (FOREVER if timeout is None else min(timeout, FOREVER))
    try:
        is_drained = _drain_all(deadline)
    except AttributeError:  # another version of MLflow
        mlflow.flush_trace_async_logging()
        is_drained = True
    pending, lost = _flush_worker(deadline)
    return is_drained and not pending and not lost


def flush_at_exit(limit: float | None = None) -> bool:
    """Store what is pending, except for stores that do not respond; return whether all stores respond. Never raises.

    `limit` is in seconds, for a process that ends without the exit hook in which MLflow stores the rest.
    """
    _call_before_flush(is_exit=True)
    check = _CHECK_TIMEOUT
    if multiprocessing.parent_process() is not None:  # such a child never runs exit hooks
        limit, check = _CHILD_TIMEOUT, _CHILD_CHECK_TIMEOUT
    deadline = time.monotonic() + (_limit() if limit is None else limit)
    all_respond = True
    with suppress(Exception):  # another version of MLflow or Python
        exports = _exports()
        if not _can_start_threads():
            for _, _, queue in exports:  # for all first: MLflow's own thread may export while the stores are checked
                _export_without_threads(queue)
        for uri, processor, queue in exports:
            if uri is None and limit is None:  # OpenTelemetry's own exit hook follows
                continue
            try:
                check_reachable(uri or "", check)
                _drain(processor, queue, deadline)
            except Exception as error:  # noqa: BLE001 - for any reason, the store accepts nothing
                all_respond = False
                warn_once(
                    ("exit", uri),
                    "The program ends while MLflow's store %s is unreachable: its traces are lost (%s)",
                    redacted(uri or "by OTLP"),
                    redacted_error(uri or "", error),
                )
                _abandon(queue)
    pending, _ = _flush_worker(max(deadline, time.monotonic() + 0.1))
    if limit is not None and all_respond:
        with suppress(AttributeError, RuntimeError):  # another version of MLflow; an exporter is made meanwhile
            pending += sum(queue._queue.unfinished_tasks for _, _, queue in _exports() if queue is not None)
        if pending:
            warn_once(
                "exit", "The process ends before MLflow has stored everything: %d traces or links are lost", pending
            )
    return all_respond


def _flush_worker(deadline: float) -> tuple[int, int]:
    """Flush the worker; return how many tasks are pending and how many were lost, and warn of the lost ones."""
    pending = worker.flush(max(0.0, deadline - time.monotonic()))
    lost = worker.take_lost()
    if lost:
        logger.warning("Not stored in MLflow: %d traces or prompt versions were lost, %d are pending", lost, pending)
    return pending, lost


def _exports() -> list[tuple[str | None, Any, Any]]:
    """Return the store (None for OTLP), the processor and the queue, if it has one, of each of MLflow's exporters."""
    processors = {*base_mlflow._batch_processor_registry, provider._get_span_processor()}  # type: ignore[no-untyped-call]
    exports = []
    for processor in processors:
        if processor is not None and not isinstance(processor, _Hooks):
            exporter: Any = getattr(processor, "span_exporter", None)
            client = getattr(exporter, "_client", None)
            uri = client.tracking_uri if isinstance(client, TracingClient) else None
            exports.append((uri, processor, getattr(exporter, "_async_queue", None)))
    return exports


def _drain_all(deadline: float) -> bool:
    """Wait until MLflow has tried to store all ended traces; return whether it has."""
    _call_before_flush(is_exit=False)
    drained = [_drain(processor, queue, deadline) for _, processor, queue in _exports()]
    return all(drained)


def _drain(processor: Any, queue: Any, deadline: float) -> bool:
    processor.force_flush()
    if queue is None:
        return True
    tasks = queue._queue
    with tasks.all_tasks_done:
        left = max(0.0, deadline - time.monotonic())
        return bool(tasks.all_tasks_done.wait_for(lambda: not tasks.unfinished_tasks, left))


def _export_without_threads(queue: Any) -> None:
    """Let an export queue work while no thread can start, as in exit hooks from Python 3.12 on."""
    if queue is None:
        return
    # upstream: mlflow 3.12-3.18: the queue loses traces then, or stores one twice and stops, as it starts its threads.
    with queue._lock:  # if the queue is stopped while another thread starts its threads, MLflow's exit hook never ends
        if queue.is_active():
            pool = queue._worker_threadpool
            pool._max_workers = max(1, len(pool._threads))
        else:
            queue._stop_event.set()  # a stopped queue exports in the calling thread


def _can_start_threads() -> bool:
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return True


def _restart_exports() -> None:
    # upstream: mlflow 3.12-3.18: in a forked child the export queue has no threads, and takes tasks for ever.
    for _, _, queue in _exports():
        if queue is not None:
            queue.__init__()


def _abandon(queue: Any) -> None:
    """Let Python exit without joining MLflow's export threads, and drop what is exported later."""
    # upstream: mlflow 3.12-3.18: they retry for minutes while the server is unreachable, and a flush has no limit.
    if queue is None:
        return
    queue.put = lambda task: None  # noqa: ARG005 - MLflow passes it by name
    if not queue.is_active():
        return
    queue._worker_threadpool.shutdown(wait=False)
    atexit.unregister(queue._at_exit_callback)
    for thread in queue._worker_threadpool._threads:
        concurrent.futures.thread._threads_queues.pop(thread, None)  # type: ignore[attr-defined]


def _limit() -> float:
    """Return the seconds that a flush at exit may take."""
    with suppress(ValueError):
        return max(0.0, min(float(os.environ.get("POMLFLOW_FLUSH_TIMEOUT", "5")), FOREVER))
    return 5.0


def handle_sigterm() -> None:
    """Install a handler that stores what is pending at SIGTERM; outside the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler, uvicorn = signal.getsignal(signal.SIGTERM), sys.modules.get("uvicorn")
    with suppress(ValueError):  # another interpreter of the process
        if handler is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _flush_then_terminate)
        elif uvicorn is not None and isinstance(getattr(handler, "__self__", None), uvicorn.Server):
            register_hooks()  # of which one unblocks the signal
            signal.signal(signal.SIGTERM, partial(_block_after, handler))


def _flush_then_terminate(number: int, _frame: object) -> None:
    """Flush in another thread, which then sends the signal again."""
    thread = threading.Thread(target=_flush_and_signal, args=(number,), daemon=True)
    with suppress(RuntimeError):  # no thread can start while the interpreter shuts down
        if not _flushed.is_set():
            thread.start()
            thread.join(_PAUSE)
            return
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _flush_and_signal(number: int) -> None:
    flush_at_exit(_SIGTERM_TIMEOUT)
    _flushed.set()
    os.kill(os.getpid(), number)


def _block_after(handler: Any, number: int, frame: object) -> None:
    """Let uvicorn shut down, and block the signal that it raises afterwards until `_exit_before_join`."""
    handler(number, frame)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
