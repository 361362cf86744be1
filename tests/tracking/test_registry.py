"""One content, one version, linked to every trace; on a real SQLite store."""

from __future__ import annotations

import shutil
import socket
import threading
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracing.client import TracingClient
from mlflow.tracing.trace_manager import InMemoryTraceManager
from tests.mlflow_server import DEAD
from tests.pending import drop_pending, waiting_publisher
from tests.registry_prompts import found_by, linked, versions, warnings_of
from tests.waiting import until

import pomlflow
from pomlflow.exceptions import Problem, RenderError
from pomlflow.tracking import background, links, publish
from pomlflow.tracking.background import worker
from pomlflow.tracking.links import TraceLink


def trace(record: Any, publisher: Any, **options: Any) -> str:
    """Make a trace of one span that is linked to the record; return its id."""
    with mlflow.start_span("poml") as span:
        publisher.link(record, span.trace_id, **options)
    return span.trace_id


def wait_until_stored(trace_id: str) -> None:
    mlflow.flush_trace_async_logging()
    until(lambda: "mlflow.trace.infoFinalized" in TracingClient().get_trace_info(trace_id).trace_metadata)


def test_a_known_content_is_linked_at_once(mlflow_store, publisher, record):
    trace(record(), publisher, wait=30)
    with mlflow.start_span("chain") as span:
        version = publisher.link(record(), span.trace_id)
    wait_until_stored(span.trace_id)

    assert version.uri == f"prompts:/{record().name}/1"
    assert linked(span.trace_id) == [f"{record().name}/1"]


def test_a_thousand_renders_make_one_version(mlflow_store, publisher, record):
    greet = record()
    with mlflow.start_span("chain") as span:
        for _ in range(1000):
            publisher.link(greet, span.trace_id)
        publisher.flush(30)
    wait_until_stored(span.trace_id)

    assert [version.version for version in versions(greet.name)] == [1]
    assert linked(span.trace_id) == [f"{greet.name}/1"]


def test_a_new_publisher_finds_the_version(mlflow_store, publisher, record):
    trace(record(), publisher, wait=30)
    with mlflow.start_span("chain") as span:
        version = waiting_publisher().link(record(), span.trace_id, wait=30)

    assert version.version == 1
    assert len(versions(record().name)) == 1


def test_a_trace_in_the_store_is_linked_late(mlflow_store, publisher, record, lookups_allowed):
    """The trace is exported before its prompt is registered: a slow registry, a short chain."""
    trace_id = trace(record(), publisher)
    wait_until_stored(trace_id)
    lookups_allowed.set()
    assert publisher.flush(30)

    assert linked(trace_id) == [f"{record().name}/1"]
    assert found_by(f"{record().name}/1", mlflow_store) == {trace_id}


def test_a_trace_that_mlflow_evicted_is_counted_as_lost(mlflow_store, publisher, record, caplog):
    """Its buffer is full where many root spans are open at once."""
    with mlflow.start_span("chain") as span:
        InMemoryTraceManager.get_instance().pop_trace(int(span.trace_id.removeprefix("tr-"), 16))
        assert publisher.link(record(), span.trace_id) is None
    assert worker.take_lost() == 1
    [warning] = warnings_of(caplog)
    assert "set MLFLOW_TRACE_BUFFER_MAX_SIZE" in warning


def test_a_trace_that_mlflow_drops_is_counted_as_lost(mlflow_store, publisher, record):
    """Its queue is full, for example."""
    with mlflow.start_span("chain") as span:
        publisher.link(record(), span.trace_id)
        assert publisher.flush(30)
        InMemoryTraceManager.get_instance().pop_trace(int(span.trace_id.removeprefix("tr-"), 16))
        assert not publisher.flush(30)


def test_an_exported_trace_is_linked_without_a_flush(mlflow_store, publisher, record, monkeypatch):
    trace(record(), publisher, wait=30)
    monkeypatch.setattr(background, "_PAUSE", 0.1)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    trace_id = trace(record(), publisher)
    mlflow.tracing.reset()
    until(lambda: trace_id in found_by(f"{record().name}/1", mlflow_store))
    assert linked(trace_id) == [f"{record().name}/1"]


def test_a_late_link_keeps_the_earlier_ones(mlflow_store, publisher, record, lookups_allowed):
    early, late = record("early"), record("late")
    lookups_allowed.set()
    trace(early, publisher, wait=30)
    lookups_allowed.clear()
    with mlflow.start_span("chain") as span:
        publisher.link(early, span.trace_id)
        publisher.link(late, span.trace_id)
    trace_id = span.trace_id
    wait_until_stored(trace_id)
    lookups_allowed.set()
    assert publisher.flush(30)

    assert linked(trace_id) == [f"{early.name}/1", f"{early.name}/2"]
    assert found_by(f"{early.name}/2", mlflow_store) == {trace_id}


def test_a_trace_on_its_way_to_the_store_is_linked_when_it_is_there(
    mlflow_store, publisher, record, lookups_allowed, monkeypatch
):
    """MLflow stores the spans before the trace; a link that is made in between would be overwritten."""
    lookups_allowed.set()
    trace(record("early"), publisher, wait=30)
    lookups_allowed.clear()
    late = record("late")
    arrived = threading.Event()
    start_trace = TracingClient.start_trace

    def slowly(self, info):
        arrived.wait(30)
        return start_trace(self, info)

    monkeypatch.setattr(TracingClient, "start_trace", slowly)
    with mlflow.start_span("chain") as span:
        publisher.link(record("early"), span.trace_id)
        publisher.link(late, span.trace_id)
    exporting = threading.Thread(target=mlflow.flush_trace_async_logging)
    exporting.start()
    until(lambda: not _in_memory(span.trace_id))
    lookups_allowed.set()
    assert not pomlflow.flush(0.5)
    arrived.set()
    exporting.join()
    assert publisher.flush(30)

    assert linked(span.trace_id) == [f"{late.name}/1", f"{late.name}/2"]
    assert found_by(f"{late.name}/2", mlflow_store) == {span.trace_id}


def test_a_trace_on_its_way_to_unity_catalog_is_linked_when_it_is_there(mlflow_store, publisher, record, monkeypatch):
    """Its client hides that a trace is missing."""
    start_trace, arrived, requested, linked_to = TracingClient.start_trace, threading.Event(), threading.Event(), []

    class UnityCatalog:
        @property
        def store(self):
            return self

        def get_trace_info(self, trace_id):
            requested.set()
            if not arrived.is_set():
                raise MlflowException(f"no {trace_id}", error_code=RESOURCE_DOES_NOT_EXIST)

        def link_prompt_versions_to_trace(self, versions, trace_id):
            linked_to.extend(trace_id for _ in versions if arrived.is_set())

    monkeypatch.setattr(TracingClient, "start_trace", lambda *given: arrived.wait(30) and start_trace(*given))
    monkeypatch.setattr(links, "is_databricks_uri", lambda _: True)
    for client in ("_tracking_client", "TracingClient"):
        monkeypatch.setattr(links, client, lambda _: UnityCatalog())
    trace_id = trace(record(), publisher, wait=30)
    until(lambda: pomlflow.flush(0.5) or requested.is_set())
    assert linked_to == []
    arrived.set()
    assert pomlflow.flush()
    assert linked_to == [trace_id]


def _in_memory(trace_id: str) -> bool:
    with InMemoryTraceManager.get_instance().get_trace(trace_id) as live:
        return live is not None


def test_a_link_that_fails_is_counted_and_does_not_affect_others(
    mlflow_store, publisher, record, lookups_allowed, monkeypatch, caplog
):
    add, failures = TraceLink.add, [RuntimeError("no link")]

    def fail_once(link, version):
        if failures:
            raise failures.pop()
        return add(link, version)

    monkeypatch.setattr(TraceLink, "add", fail_once)
    traces = [trace(record(), publisher) for _ in range(2)]
    wait_until_stored(traces[1])
    lookups_allowed.set()
    assert not publisher.flush(30)

    assert [linked(one) for one in traces] == [[], [f"{record().name}/1"]]
    assert ["no link" in warning for warning in warnings_of(caplog)] == [True]
    assert publisher.link(record(), trace(record(), publisher)).version == 1  # a new attempt succeeds


def test_a_source_too_long_is_warned_of_once(mlflow_store, publisher, record, caplog):
    long = record(source="x" * 100_001)
    ids = [trace(long, publisher, wait=30) for _ in range(3)]
    wait_until_stored(ids[-1])

    assert versions(long.name) == []
    assert linked(ids[-1]) == []
    (warning,) = warnings_of(caplog)
    assert "100,001" in warning
    assert "100,000" in warning


def test_a_failed_render_links_to_a_version_that_exists(mlflow_store, publisher, record):
    trace(record(), publisher, wait=30)
    failed = record(output=None, error=RenderError([Problem("x is not defined")]))
    ids = [trace(failed, publisher), trace(failed, waiting_publisher(), wait=30)]
    wait_until_stored(ids[-1])
    assert [linked(one) for one in ids] == [[f"{failed.name}/1"]] * 2


def test_inline_markup_is_registered_only_where_wanted(mlflow_store, publisher, record):
    with mlflow.start_span("chain") as span:
        assert publisher.link(record(name=None), span.trace_id, wait=30) is None
        assert publisher.link(record(register=False), span.trace_id, wait=30) is None
        registered = publisher.link(record(name=None, register=True), span.trace_id, wait=30)

    assert registered.name == f"inline-{record().digest[:12]}"
    assert versions(record().name) == []


def test_without_tracing_nothing_is_registered(mlflow_store, publisher, record):
    mlflow.tracing.disable()
    try:
        trace(record(), publisher, wait=1)
    finally:
        mlflow.tracing.enable()
    publisher.flush(30)
    assert versions(record().name) == []


def test_the_prompt_is_listed_in_each_experiment_that_uses_it(mlflow_store, publisher, record):
    other = mlflow.create_experiment(f"other-{record().name}")
    trace(record(), publisher, wait=30)
    mlflow.set_experiment(experiment_id=other)
    trace(record(), publisher, wait=30)
    publisher.flush(30)

    for experiment in (mlflow_store, other):
        found = mlflow.MlflowClient().search_prompts(f"experiment_id = '{experiment}'")
        assert record().name in [prompt.name for prompt in found]


def test_a_flush_waits_until_the_prompt_is_listed(mlflow_store, publisher, record, monkeypatch):
    """MLflow hides a failure of the store: the prompt seems to be missing."""
    get_prompt, failures = mlflow.MlflowClient.get_prompt, [None]
    monkeypatch.setattr(
        mlflow.MlflowClient, "get_prompt", lambda *given: failures.pop() if failures else get_prompt(*given)
    )
    trace(record(), publisher)
    assert pomlflow.flush()
    assert not failures
    found = mlflow.MlflowClient().search_prompts(f"experiment_id = '{mlflow_store}'")
    assert record().name in [prompt.name for prompt in found]


def test_each_registry_gets_the_prompt(mlflow_store, publisher, record, tmp_path, empty_store):
    """What counts is the registry that is set when a render is linked."""
    before = mlflow.get_registry_uri()
    trace(record("first"), publisher, wait=30)
    mlflow.set_registry_uri(f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db').as_posix()}")
    try:
        trace(record(), publisher, wait=60)
        assert [version.template for version in versions(record().name)] == [record().source]
        mlflow.set_registry_uri("")  # back to the tracking store, while the environment still has the other
        trace(record("second"), publisher, wait=30)
    finally:
        mlflow.set_registry_uri(before)
    assert [v.template for v in versions(record().name)] == [record("first").source, record("second").source]


def test_link_never_raises(mlflow_store, publisher, caplog):
    with mlflow.start_span("chain") as span:
        assert publisher.link(object(), span.trace_id) is None
        assert publisher.link(object(), span.trace_id) is None
    assert len(warnings_of(caplog)) == 1
    assert worker.take_lost() == 2


@pytest.fixture
def connecting(monkeypatch) -> set[threading.Thread]:
    """The threads that connected to a server."""
    threads, connect = set(), socket.socket.connect

    def note(*given: Any) -> None:
        threads.add(threading.current_thread())
        connect(*given)

    monkeypatch.setattr(socket.socket, "connect", note)
    return threads


def test_a_dead_server_is_warned_of_once_and_blocks_no_call(mlflow_store, publisher, record, caplog, connecting):
    """One warning for many prompts and renders; all requests are made in the background."""
    mlflow.set_registry_uri(DEAD)
    for number in range(50):
        trace(record(str(number % 5)), publisher, wait=0.005)
    assert not publisher.flush(0.5)
    (warning,) = warnings_of(caplog)
    assert DEAD in warning
    assert connecting
    assert threading.current_thread() not in connecting

    # The same thread then works for a registry that is reachable.
    mlflow.set_registry_uri(mlflow.get_tracking_uri())
    with mlflow.start_span("chain") as span:
        assert publisher.link(record(), span.trace_id, wait=60).version == 1
    drop_pending()


def test_memory_is_bounded_while_a_server_is_away(mlflow_store, publisher, record, monkeypatch):
    """What is dropped is counted as lost."""
    monkeypatch.setattr(background, "_MAX_TASKS", 4)  # three lookups, and the links of the trace
    monkeypatch.setattr(publish, "_MAX_TRACES", 10)
    mlflow.set_registry_uri(DEAD)
    with mlflow.start_span("chain") as span:
        for number in range(10):
            publisher.link(record(str(number)), span.trace_id)
        assert worker.take_lost() == 7
        for _ in range(20):
            publisher.link(record("0"), span.trace_id)
        assert worker.take_lost() == 11
    drop_pending()
