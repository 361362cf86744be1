"""`pomlflow.flush()` finishes MLflow's part and ours, within its limit, and tells the truth."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import mlflow
from mlflow.tracing.client import TracingClient
from tests.pending import forget_pending

import pomlflow
from pomlflow.tracking import pending
from pomlflow.tracking.registry import PromptRegistry


def trace(record: Any) -> str:
    with mlflow.start_span("poml") as span:
        PromptRegistry.shared().link(record, span.trace_id)
    return span.trace_id


def test_after_a_flush_traces_are_stored_linked_and_found(mlflow_store, record):
    traces = {trace(record(str(number % 2))) for number in range(6)}
    assert pomlflow.flush()
    found = set()
    for version in (1, 2):
        where = f"prompt = '{record().name}/{version}'"
        found |= {one.info.trace_id for one in mlflow.search_traces([mlflow_store], where, return_type="list")}
    assert found == traces
    tags = [TracingClient().get_trace_info(trace_id).tags["mlflow.linkedPrompts"] for trace_id in traces]
    assert {one["name"] for tag in tags for one in json.loads(tag)} == {record().name}


def test_a_flush_keeps_its_limit_while_mlflow_does_not(mlflow_store, monkeypatch):
    """MLflow's own flush lasts minutes while its server is away. Not a second one beside it, and nothing is skipped."""
    begun, ended, calls = threading.Event(), threading.Event(), []

    def slowly() -> None:
        calls.append(1)
        begun.set()
        ended.wait(60)

    monkeypatch.setattr(mlflow, "flush_trace_async_logging", slowly)
    assert not pomlflow.flush(0.1)
    assert begun.wait(30)
    assert not pomlflow.flush(0.1)
    assert len(calls) == 1
    ended.set()
    assert pomlflow.flush(30)
    assert len(calls) >= 2
    assert not pending._export.is_alive()


def test_a_store_that_was_left_makes_no_flush_wait(mlflow_store, record):
    """The server was away, and the notebook goes on with another store: what can be finished is, at once."""
    there = mlflow.get_registry_uri()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    mlflow.set_registry_uri(address)
    trace(record("for the server"))
    mlflow.set_registry_uri(there)
    late = trace(record("for the store"))
    assert not pomlflow.flush(timeout=3600)
    assert "mlflow.linkedPrompts" in TracingClient().get_trace_info(late).tags
    forget_pending(PromptRegistry.shared())
    assert pomlflow.flush()
