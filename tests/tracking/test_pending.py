"""`pomlflow.flush()` stores traces, versions and links within its time limit, and returns whether all are stored."""

from __future__ import annotations

import socket
import threading
from typing import Any

import mlflow
from mlflow.tracing.client import TracingClient
from mlflow.tracing.export.async_export_queue import AsyncTraceExportQueue
from tests.pending import drop_pending

import pomlflow
from pomlflow.tracking import shutdown
from pomlflow.tracking.background import worker
from pomlflow.tracking.publish import publisher
from pomlflow.tracking.versions import Registry


def trace(record: Any) -> str:
    with mlflow.start_span("poml") as span:
        publisher.link(record, span.trace_id)
    return span.trace_id


def test_mlflows_own_flush_finishes_links_too(mlflow_store, record, monkeypatch):
    """No version is registered until the flush waits for it."""
    waited, flush, find = threading.Event(), worker.flush, Registry.find
    monkeypatch.setattr(worker, "flush", lambda *given: (waited.set(), flush(*given))[1])
    monkeypatch.setattr(Registry, "find", lambda *given, **named: waited.wait(30) and find(*given, **named))
    for number in range(2):
        trace_id = trace(record(str(number)))
        mlflow.flush_trace_async_logging()
        assert waited.is_set()
        assert "mlflow.linkedPrompts" in TracingClient().get_trace_info(trace_id).tags
        waited.clear()
    waited.set()


def test_a_queue_that_another_thread_starts_at_exit_is_not_stopped(monkeypatch):
    """MLflow's exit hook would wait for ever for the tasks of a stopped queue."""
    exports, started, proceed = AsyncTraceExportQueue(), threading.Event(), threading.Event()
    set_up = exports._set_up_threads

    def slowly() -> None:
        set_up()
        started.set()
        proceed.wait(30)

    monkeypatch.setattr(exports, "_set_up_threads", slowly)
    starting = threading.Thread(target=exports.activate)
    starting.start()
    started.wait(30)
    preparing = threading.Thread(target=shutdown._export_without_threads, args=(exports,))
    preparing.start()
    preparing.join(0.2)  # it waits for the other thread
    proceed.set()
    starting.join()
    preparing.join()
    assert exports.is_active()
    assert not exports._stop_event.is_set()
    exports.flush(terminate=True)


def test_a_flush_keeps_its_limit(mlflow_store, record, monkeypatch):
    """MLflow's own flush lasts minutes while its server is away."""
    reachable = threading.Event()
    start_trace = TracingClient.start_trace

    def slowly(self: TracingClient, info: Any) -> Any:
        reachable.wait(60)
        return start_trace(self, info)

    monkeypatch.setattr(TracingClient, "start_trace", slowly)
    trace_id = trace(record())
    assert not pomlflow.flush(0.1)
    reachable.set()
    assert pomlflow.flush(30)
    assert "mlflow.linkedPrompts" in TracingClient().get_trace_info(trace_id).tags


def test_a_flush_falls_back_on_mlflows_own(mlflow_store, record, monkeypatch):
    """A future MLflow may have no such queues."""
    trace_id, flush = trace(record()), mlflow.flush_trace_async_logging
    monkeypatch.delattr(shutdown.provider, "_get_span_processor")
    monkeypatch.setattr(mlflow, "flush_trace_async_logging", lambda: (monkeypatch.undo(), flush()))
    assert pomlflow.flush()
    assert "mlflow.linkedPrompts" in TracingClient().get_trace_info(trace_id).tags


def test_an_unreachable_former_store_does_not_delay_a_flush(mlflow_store, record):
    """A notebook switches from an unreachable server to another store: tasks for the store are finished at once."""
    store = mlflow.get_registry_uri()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    mlflow.set_registry_uri(address)
    trace(record("for the server"))
    mlflow.set_registry_uri(store)
    late = trace(record("for the store"))
    assert not pomlflow.flush(timeout=3600)
    assert "mlflow.linkedPrompts" in TracingClient().get_trace_info(late).tags
    drop_pending()
    assert pomlflow.flush()
