"""The registry in processes that start together, fork, and end without a word; on a real SQLite store."""

from __future__ import annotations

import os

import pytest
from tests.tracking.programs import program, run, versions


@pytest.mark.skipif(not hasattr(os, "fork"), reason="eight starts of MLflow take minutes where nothing can be forked")
def test_eight_processes_at_once_make_one_version(mlflow_store, record, tmp_path):
    """They start together, with a prompt that the registry has never seen, and then with a new content of it."""
    first, second = record("first"), record("second")
    text = program(
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
                        got.append(link(record, span.trace_id, wait=60).uri)
                os.write(1, (" ".join(got) + "\\n").encode())  # in one piece, among eight
                os._exit(not flush(60))
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        """,
    )
    done = run(text, tmp_path)
    name = first.name
    lines = [line for line in done.splitlines() if name in line]
    assert len(lines) == 8
    assert len(set(lines)) == 1
    assert lines[0].startswith(f"prompts:/{name}/1 prompts:/{name}/")
    assert [version.template for version in versions(name)] == [first.source, second.source]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_registers_on_its_own(mlflow_store, record, tmp_path):
    """A pre-fork server: the parent has linked, so it has a thread and locks; each child links on.

    Only our own flush: MLflow's hangs in a child whose parent has traced (mlflow 3.17.2, its export queue).
    """
    known, new = record("known"), record("new")
    text = program(
        mlflow_store,
        [known, new],
        """
        with mlflow.start_span("parent") as span:
            link(records[0], span.trace_id, wait=60)
        flush(60)
        child = os.fork()
        with mlflow.start_span("child" if child == 0 else "parent") as span:
            got = [link(record, span.trace_id, wait=60).uri for record in records]
        assert flush(60)
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(*got, flush=True)
        os._exit(0)
        """,
    )
    done = run(text, tmp_path)
    assert f"prompts:/{known.name}/1 prompts:/{known.name}/2\n" in done
    assert [version.template for version in versions(known.name)] == [known.source, new.source]
