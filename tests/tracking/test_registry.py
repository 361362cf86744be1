"""One content, one version, linked to every trace; on a real SQLite store."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracing.client import TracingClient
from tests.mlflow_server import until

from pomlflow.exceptions import Problem, RenderError
from pomlflow.tracking import registry as registry_module
from pomlflow.tracking.links import mark
from pomlflow.tracking.registry import PromptRegistry

LINKED = "mlflow.linkedPrompts"
DEAD = "http://127.0.0.1:9"  # the discard port: refuses at once


def versions(name: str) -> list[Any]:
    found = mlflow.MlflowClient().search_model_versions(
        f"name = '{name}' AND tags.`mlflow.prompt.is_prompt` = 'true'", order_by=["version_number ASC"]
    )
    return [mlflow.MlflowClient().get_prompt_version(name, one.version) for one in found]


def trace(record: Any, registry: PromptRegistry, **options: Any) -> str:
    """A trace of one span, as an exporter gets it, with the record linked."""
    with mlflow.start_span("poml") as span:
        registry.link(record, span.trace_id, **options)
    return span.trace_id


def stored(trace_id: str) -> None:
    mlflow.flush_trace_async_logging()
    until(lambda: "mlflow.trace.infoFinalized" in TracingClient().get_trace_info(trace_id).trace_metadata)


def linked(trace_id: str) -> list[str]:
    tag = TracingClient().get_trace_info(trace_id).tags.get(LINKED, "[]")
    return [f"{one['name']}/{one['version']}" for one in json.loads(tag)]


def found_by(prompt: str, experiment: str) -> set[str]:
    """What the prompt's page and a search find: written by a thread of MLflow's, so it is polled for."""
    traces = mlflow.search_traces(locations=[experiment], filter_string=f"prompt = '{prompt}'", return_type="list")
    return {one.info.trace_id for one in traces}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "pomlflow" and r.levelno >= logging.WARNING]


def test_a_first_render_is_linked_to_its_new_version(mlflow_store, registry, record):
    """Registered in the background, linked while the trace is in memory, found by MLflow's own search."""
    greet = record()
    with mlflow.start_span("chain") as span:
        assert registry.link(greet, span.trace_id) is None
        assert registry.flush(30)
    stored(span.trace_id)

    assert linked(span.trace_id) == [f"{greet.name}/1"]
    until(lambda: found_by(f"{greet.name}/1", mlflow_store) == {span.trace_id})


def test_a_known_content_is_linked_at_once(mlflow_store, registry, record):
    trace(record(), registry, wait=30)
    with mlflow.start_span("chain") as span:
        version = registry.link(record(), span.trace_id)
    stored(span.trace_id)

    assert version.uri == f"prompts:/{record().name}/1"
    assert linked(span.trace_id) == [f"{record().name}/1"]


def test_waiting_gives_the_version_of_a_first_render(mlflow_store, registry, record):
    with mlflow.start_span("chain") as span:
        assert registry.link(record(), span.trace_id, wait=30).version == 1


def test_a_thousand_renders_make_one_version(mlflow_store, registry, record):
    greet = record()
    with mlflow.start_span("chain") as span:
        for _ in range(1000):
            registry.link(greet, span.trace_id)
        registry.flush(30)
    stored(span.trace_id)

    assert [version.version for version in versions(greet.name)] == [1]
    assert linked(span.trace_id) == [f"{greet.name}/1"]


def test_another_process_finds_the_version(mlflow_store, registry, record):
    trace(record(), registry, wait=30)
    with mlflow.start_span("chain") as span:
        version = PromptRegistry().link(record(), span.trace_id, wait=30)

    assert version.version == 1
    assert len(versions(record().name)) == 1


def test_a_trace_in_the_store_is_linked_late(mlflow_store, registry, record):
    """The trace is exported before its prompt is registered: a slow registry, a short chain."""
    with mlflow.start_span("chain") as span:
        pass
    stored(span.trace_id)
    registry.link(record(), span.trace_id)
    assert registry.flush(30)

    assert linked(span.trace_id) == [f"{record().name}/1"]
    assert found_by(f"{record().name}/1", mlflow_store) == {span.trace_id}


def test_a_late_link_keeps_the_earlier_ones(mlflow_store, registry, record):
    early, late = record("early"), record("late")
    trace(early, registry, wait=30)
    trace_id = trace(early, registry)
    stored(trace_id)
    registry.link(late, trace_id)
    assert registry.flush(30)

    assert linked(trace_id) == [f"{early.name}/1", f"{early.name}/2"]
    assert found_by(f"{early.name}/2", mlflow_store) == {trace_id}


def test_a_trace_on_its_way_to_the_store_is_linked_when_it_is_there(mlflow_store, registry, record, monkeypatch):
    """MLflow stores spans first and the trace afterwards; a link made in between would be overwritten."""
    trace(record("early"), registry, wait=30)
    late = record("late")
    arrived = threading.Event()
    start_trace = TracingClient.start_trace

    def slowly(self, info):
        arrived.wait(30)
        return start_trace(self, info)

    monkeypatch.setattr(TracingClient, "start_trace", slowly)
    with mlflow.start_span("chain") as span:
        registry.link(record("early"), span.trace_id)
    exporting = threading.Thread(target=mlflow.flush_trace_async_logging)
    exporting.start()
    until(lambda: not _in_memory(span.trace_id))
    registry.link(late, span.trace_id)
    assert not registry.flush(0.5)
    arrived.set()
    exporting.join()
    assert registry.flush(30)

    assert linked(span.trace_id) == [f"{late.name}/1", f"{late.name}/2"]
    assert found_by(f"{late.name}/2", mlflow_store) == {span.trace_id}


def _in_memory(trace_id: str) -> bool:
    from mlflow.tracing.trace_manager import InMemoryTraceManager

    with InMemoryTraceManager.get_instance().get_trace(trace_id) as live:
        return live is not None


def test_the_version_is_told_once_now_or_later(mlflow_store, registry, record):
    told = []
    with mlflow.start_span("chain") as span:
        registry.link(record(), span.trace_id, on_version=told.append)
        registry.flush(30)
        assert [version.version for version in told] == [1]
        registry.link(record(), span.trace_id, on_version=told.append)
        registry.link(record("new"), span.trace_id, wait=30, on_version=told.append)

    assert [version.version for version in told] == [1, 1, 2]


def test_a_listener_that_fails_hurts_nobody(mlflow_store, registry, record, caplog):
    with mlflow.start_span("chain") as span:
        registry.link(record(), span.trace_id, on_version=lambda _: 1 / 0)
        registry.link(record(), span.trace_id)
        registry.flush(30)
        assert registry.link(record(), span.trace_id, on_version=lambda _: 1 / 0).version == 1
    stored(span.trace_id)

    assert linked(span.trace_id) == [f"{record().name}/1"]
    assert len(warnings_in(caplog)) == 1


def test_a_span_is_marked_as_mlflow_marks_it(mlflow_store, registry, record):
    """The attribute is what `mlflow.genai.load_prompt` writes on the active span."""
    with mlflow.start_span("ours") as ours:
        mark(ours, registry.link(record(), ours.trace_id, wait=30))
    with mlflow.start_span("theirs") as theirs:
        mlflow.genai.load_prompt(record().name, version=1)
    stored(theirs.trace_id)

    attributes = [mlflow.get_trace(s.trace_id).data.spans[0].attributes[LINKED] for s in (ours, theirs)]
    assert attributes[0] == attributes[1]


def test_a_source_too_long_is_warned_of_once(mlflow_store, registry, record, caplog):
    long = record(source="x" * 100_001)
    ids = [trace(long, registry, wait=30) for _ in range(3)]
    stored(ids[-1])

    assert versions(long.name) == []
    assert linked(ids[-1]) == []
    (warning,) = warnings_in(caplog)
    assert "100,001" in warning
    assert "100,000" in warning


def test_a_failed_render_makes_no_version(mlflow_store, registry, record):
    failed = record(output=None, error=RenderError([Problem("x is not defined")]))
    ids = [trace(failed, registry, wait=30) for _ in range(2)]
    stored(ids[-1])
    assert versions(failed.name) == []
    assert linked(ids[-1]) == []

    trace(record(), registry, wait=30)
    assert [version.version for version in versions(failed.name)] == [1]


def test_a_failed_render_links_to_a_version_that_exists(mlflow_store, registry, record):
    trace(record(), registry, wait=30)
    failed = record(output=None, error=RenderError([Problem("x is not defined")]))
    ids = [trace(failed, registry), trace(failed, PromptRegistry(), wait=30)]
    stored(ids[-1])
    assert [linked(one) for one in ids] == [[f"{failed.name}/1"]] * 2


def test_inline_markup_is_registered_only_where_asked(mlflow_store, registry, record):
    with mlflow.start_span("chain") as span:
        assert registry.link(record(name=None), span.trace_id, wait=30) is None
        assert registry.link(record(register=False), span.trace_id, wait=30) is None
        asked = registry.link(record(name=None, register=True), span.trace_id, wait=30)

    assert asked.name == f"inline-{record().digest[:12]}"
    assert versions(record().name) == []


def test_without_tracing_nothing_is_registered(mlflow_store, registry, record):
    mlflow.tracing.disable()
    try:
        trace(record(), registry, wait=1)
    finally:
        mlflow.tracing.enable()
    registry.flush(30)
    assert versions(record().name) == []


def test_the_prompt_is_listed_in_each_experiment_that_uses_it(mlflow_store, registry, record):
    other = mlflow.create_experiment(f"other-{record().name}")
    trace(record(), registry, wait=30)
    mlflow.set_experiment(experiment_id=other)
    trace(record(), registry, wait=30)
    registry.flush(30)

    for experiment in (mlflow_store, other):
        found = mlflow.MlflowClient().search_prompts(f"experiment_id = '{experiment}'")
        assert record().name in [prompt.name for prompt in found]


def test_each_registry_gets_the_prompt(mlflow_store, registry, record, tmp_path):
    """What counts is the registry that is set when a render is linked."""
    before = mlflow.get_registry_uri()
    trace(record("first"), registry, wait=30)
    mlflow.set_registry_uri(f"sqlite:///{(tmp_path / 'other.db').as_posix()}")
    try:
        trace(record(), registry, wait=60)
        assert [version.template for version in versions(record().name)] == [record().source]
        mlflow.set_registry_uri("")  # back to the tracking store, while the environment still has the other
        trace(record("second"), registry, wait=30)
    finally:
        mlflow.set_registry_uri(before)
    assert [v.template for v in versions(record().name)] == [record("first").source, record("second").source]


def test_link_never_raises(registry, caplog):
    assert registry.link(object(), "tr-1") is None
    assert registry.link(object(), "tr-1") is None
    assert len(warnings_in(caplog)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="eight starts of MLflow take minutes where nothing can be forked")
def test_eight_processes_at_once_make_one_version(mlflow_store, record, tmp_path):
    """They start together, with a prompt that the registry has never seen, and then with a new content of it."""
    first, second = record("first"), record("second")
    program = _program(
        mlflow_store,
        [first, second],
        """
        import mlflow.pyfunc, multiprocessing  # what the first span imports
        ready = multiprocessing.get_context("fork").Barrier(8)
        children = []
        for _ in range(8):
            if (child := os.fork()) == 0:
                ready.wait(60)
                got = []
                for record in records:
                    with mlflow.start_span("chain") as span:
                        got.append(PromptRegistry.shared().link(record, span.trace_id, wait=60).uri)
                print(*got, flush=True)
                os._exit(not flush(60))
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        """,
    )
    done = _run(program, tmp_path)
    name = first.name
    assert [line for line in done.splitlines() if name in line] == [f"prompts:/{name}/1 prompts:/{name}/2"] * 8
    assert [version.template for version in versions(name)] == [first.source, second.source]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_registers_on_its_own(mlflow_store, record, tmp_path):
    """A pre-fork server: the parent has linked, so it has a thread and locks; each child links on.

    Only our own flush: MLflow's hangs in a child whose parent has traced (mlflow 3.17.2, its export queue).
    """
    known, new = record("known"), record("new")
    program = _program(
        mlflow_store,
        [known, new],
        """
        with mlflow.start_span("parent") as span:
            PromptRegistry.shared().link(records[0], span.trace_id, wait=60)
        flush(60)
        child = os.fork()
        with mlflow.start_span("child" if child == 0 else "parent") as span:
            got = [PromptRegistry.shared().link(record, span.trace_id, wait=60).uri for record in records]
        assert flush(60)
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(*got, flush=True)
        os._exit(0)
        """,
    )
    done = _run(program, tmp_path)
    assert f"prompts:/{known.name}/1 prompts:/{known.name}/2\n" in done
    assert [version.template for version in versions(known.name)] == [known.source, new.source]


def test_what_is_pending_is_finished_at_exit(mlflow_store, record, tmp_path):
    program = _program(
        mlflow_store,
        [record()],
        """
        with mlflow.start_span("chain") as span:
            PromptRegistry.shared().link(records[0], span.trace_id)
        """,
    )
    _run(program, tmp_path)
    assert [version.template for version in versions(record().name)] == [record().source]


def test_traces_that_mlflow_exports_at_exit_are_found_by_their_prompt(mlflow_store, record, tmp_path):
    """MLflow alone links those in threads that the exit ends, or never starts."""
    program = _program(
        mlflow_store,
        [record()],
        """
        for _ in range(12):
            with mlflow.start_span("chain") as span:
                PromptRegistry.shared().link(records[0], span.trace_id, wait=60)
            print("trace", span.trace_id)
        while mlflow.tracing.provider._get_trace_exporter()._async_queue.is_active() is False:
            time.sleep(0.01)  # on Python 3.12 MLflow cannot even export at exit, unless it has begun before
        """,
    )
    printed = _run(program, tmp_path)
    expected = {line.split()[1] for line in printed.splitlines() if line.startswith("trace ")}
    assert len(expected) == 12
    assert found_by(f"{record().name}/1", mlflow_store) == expected


def test_a_dead_server_does_not_hold_an_exit(record, tmp_path):
    """No test of time here but the limit on the run: MLflow's client alone would hold it for minutes."""
    program = _program(
        "0",
        [record(str(number)) for number in range(20)],
        """
        for record in records:
            with mlflow.start_span("chain") as span:
                assert PromptRegistry.shared().link(record, span.trace_id, wait=0.005) is None
        """,
        uri=DEAD,
    )
    done = _run(program, tmp_path, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", POMLFLOW_FLUSH_TIMEOUT="600")
    assert done.count("cannot be reached") == 1


def test_a_dead_server_is_warned_of_once_and_holds_nobody(mlflow_store, registry, record, caplog):
    """One warning for many prompts and renders; nothing of it on the user's thread; a flush within its bound."""
    mlflow.set_registry_uri(DEAD)
    for number in range(50):
        trace(record(str(number % 5)), registry, wait=0.005)
    assert not registry.flush(0.5)
    (warning,) = warnings_in(caplog)
    assert DEAD in warning

    # The same thread goes on with a registry that is there.
    mlflow.set_registry_uri(mlflow.get_tracking_uri())
    with mlflow.start_span("chain") as span:
        assert registry.link(record(), span.trace_id, wait=60).version == 1
    registry._start_afresh()  # forget what can never be done


def test_a_server_that_never_answers_holds_nobody(mlflow_store, registry, record):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_registry_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(10):
            trace(record(), registry, wait=0.005)
        assert not registry.flush(0.1)
    registry._start_afresh()  # forget what can never be done


def test_memory_is_bounded_while_a_server_is_away(mlflow_store, registry, record, monkeypatch):
    monkeypatch.setattr(registry_module, "_MOST_PENDING", 3)
    mlflow.set_registry_uri(DEAD)
    for number in range(10):
        for _ in range(3):
            registry.link(record(str(number)), "tr-1")
    for _ in range(registry_module._MOST_TRACES + 10):
        registry.link(record("0"), "tr-1")

    assert len(registry._pending) == 3
    assert {len(one.traces) for one in registry._pending.values()} == {3, registry_module._MOST_TRACES}
    registry._start_afresh()


def _program(experiment: str, records: list[Any], body: str, uri: str | None = None) -> str:
    """A program that links records as a user's process would."""
    fields = [
        {name: getattr(record, name) for name in ("source", "digest", "variables", "start_ns", "end_ns", "name")}
        for record in records
    ]
    head = f"""
        import json, os, sys, time
        import mlflow
        from pomlflow.record import RenderRecord
        from pomlflow.tracking.registry import PromptRegistry, flush
        mlflow.set_tracking_uri({uri or mlflow.get_tracking_uri()!r})
        mlflow.set_registry_uri({uri or mlflow.get_registry_uri()!r})
        if {experiment!r} != "0":
            mlflow.set_experiment(experiment_id={experiment!r})
        records = [RenderRecord(**one, output={{"messages": []}}) for one in json.loads({json.dumps(fields)!r})]
    """
    return textwrap.dedent(head) + textwrap.dedent(body)


def _environment() -> dict[str, str]:
    # MLflow passes the experiment on to child processes, where a dead server then makes every span a no-op.
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_ID"}


def _run(program: str, folder: Path, **environment: str) -> str:
    """Run it to its end, with all that it forked; gives what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],  # forking in threads, from Python 3.12 on
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**_environment(), **environment},
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=100)
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, printed
    return printed
