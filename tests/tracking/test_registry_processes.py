"""The registry in processes that start together; on a real SQLite store."""

from __future__ import annotations

import os

import pytest
from tests.registry_prompts import versions
from tests.tracking.programs import program, run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="four starts of MLflow take minutes where nothing can be forked")
def test_four_processes_at_once_make_one_version(mlflow_store, record, tmp_path):
    """They start together, with a prompt that the registry has never seen, and then with a new content of it."""
    first, second = record("first"), record("second")
    text = program(
        mlflow_store,
        [first, second],
        """
        import mlflow.pyfunc, multiprocessing  # what the first span imports
        ready = multiprocessing.get_context("fork").Barrier(4)
        children = []
        for _ in range(4):
            if (child := os.fork()) == 0:
                ready.wait(60)
                got = []
                for record in records:
                    with mlflow.start_span("chain") as span:
                        got.append(link(record, span.trace_id, wait=60).uri)
                os.write(1, (" ".join(got) + "\\n").encode())  # in one piece, among four
                os._exit(not flush(60))
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        """,
    )
    done = run(text, tmp_path)
    name = first.name
    lines = [line for line in done.splitlines() if name in line]
    assert len(lines) == 4
    assert len(set(lines)) == 1
    assert lines[0].startswith(f"prompts:/{name}/1 prompts:/{name}/")
    assert [version.template for version in versions(name)] == [first.source, second.source]
