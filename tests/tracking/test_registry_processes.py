"""The registry in processes that start together, fork, and end without a word; on a real SQLite store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import mlflow
import pytest

DEAD = "http://127.0.0.1:9"  # the discard port: refuses at once


def versions(name: str) -> list[Any]:
    found = mlflow.MlflowClient().search_model_versions(
        f"name = '{name}' AND tags.`mlflow.prompt.is_prompt` = 'true'", order_by=["version_number ASC"]
    )
    return [mlflow.MlflowClient().get_prompt_version(name, one.version) for one in found]


def found_by(prompt: str, experiment: str) -> set[str]:
    """What the prompt's page and a search find: written by a thread of MLflow's, so it is polled for."""
    traces = mlflow.search_traces(locations=[experiment], filter_string=f"prompt = '{prompt}'", return_type="list")
    return {one.info.trace_id for one in traces}


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
