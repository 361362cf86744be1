"""A program that ends without a flush: all is stored and linked, and no server delays its end."""

from __future__ import annotations

import os
import socket
import sys

import mlflow
import pytest
from mlflow.tracing.client import TracingClient
from tests.mlflow_server import DEAD
from tests.registry_prompts import found_by, versions
from tests.tracking.programs import program, run

TRACE = """
import threading
from pomlflow.tracking.spans import log_render
def trace(times=12):
    for _ in range(times):
        log_render(records[0], parent=None)
        os.write(1, f"trace {mlflow.get_last_active_trace_id()}\\n".encode())
"""
# MLflow exports every five seconds; a test does not wait for that.
BUSY = {"MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "50"}
EXPORTING = """
while not any(thread.name.startswith("MlflowTraceLoggingWorker") for thread in threading.enumerate()):
    time.sleep(0.01)
"""


def traces_in(printed: str) -> set[str]:
    return {line.split()[1] for line in printed.splitlines() if line.startswith("trace ")}


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 2), reason="MLflow starts no thread then, and loses its own")
def test_a_thread_that_outlives_main_may_be_the_first_to_trace(mlflow_store, tmp_path):
    body = f"""
import threading
import mlflow
import pomlflow
mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})
mlflow.set_experiment(experiment_id={mlflow_store!r})
pomlflow.autolog()
def work():
    threading.main_thread().join()
    for number in range(2):
        pomlflow.render("<p>Hello {{{{n}}}}</p>", {{"n": number}})
threading.Thread(target=work).start()
"""
    printed = run(body, tmp_path)
    assert "could not be traced" not in printed
    assert len(mlflow.search_traces(locations=[mlflow_store], return_type="list")) == 2


@pytest.mark.parametrize(
    "body",
    [
        "trace(); sys.exit(3)",
        f"trace(){EXPORTING}trace()",
        "trace(); threading.Thread(target=lambda: (threading.main_thread().join(), trace())).start()",
    ],
    ids=["at once", "while MLflow exports", "also in a thread that outlives main"],
)
def test_all_traces_are_stored_linked_and_found(mlflow_store, record, tmp_path, body):
    """MLflow alone links none of them from Python 3.12 on, and stores none in 3.12.1. The exit code is kept."""
    text, code = program(mlflow_store, [record()], TRACE + body), 3 if "sys.exit" in body else 0
    printed = run(text, tmp_path, code=code, **(BUSY if EXPORTING in body else {}))

    traces = traces_in(printed)
    assert len(traces) in (12, 24)
    assert found_by(f"{record().name}/1", mlflow_store) == traces
    assert "mlflow.linkedPrompts" in TracingClient().get_trace_info(traces.pop()).tags
    assert [version.template for version in versions(record().name)] == [record().source]
    assert "WARNING" not in printed


def test_a_refusing_server_does_not_delay_the_exit(record, tmp_path):
    """Nor do many prompts and a long limit.

    The program's time limit fails the test: MLflow's retries take four minutes by default.
    """
    body = """
for record in records:
    with mlflow.start_span("chain") as span:
        assert link(record, span.trace_id) is None
"""
    text = program("0", [record(str(number)) for number in range(20)], TRACE + "trace()" + body, uri=DEAD)
    printed = run(text, tmp_path, POMLFLOW_FLUSH_TIMEOUT="600")
    assert printed.count("its traces are lost") == 1
    assert printed.count("is unreachable. Calls go on") == 1
    assert "Traceback" not in printed


def test_a_server_that_never_answers_does_not_delay_the_exit(record, tmp_path):
    """Also while MLflow's threads, for which Python would wait, are exporting."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        printed = run(program("0", [record()], TRACE + "trace()" + EXPORTING, uri=uri), tmp_path, **BUSY)
    assert printed.count("its traces are lost") == 1
    assert "Traceback" not in printed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_children_register_on_their_own_and_store_their_traces(mlflow_store, record, tmp_path):
    """A child inherits MLflow's queue without its threads, and would wait for them for ever.

    The second child has no task for the registry until its end, when Python 3.12.1 starts no more threads.
    """
    body = f"""
trace(3)
{EXPORTING}
import pomlflow
assert pomlflow.flush()
trace(1)
assert pomlflow.flush()
child = os.fork()
with mlflow.start_span("child" if child == 0 else "parent") as span:
    got = [link(record, span.trace_id, wait=60).uri for record in records]
assert pomlflow.flush(60)
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os.write(1, f"{{got}}\\n".encode())
child = os.fork()
trace(4)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    first, second = record(), record("second")
    printed = run(program(mlflow_store, [first, second], TRACE + body), tmp_path, **BUSY)
    traces = traces_in(printed)
    assert len(traces) == 12
    assert found_by(f"{first.name}/1", mlflow_store) >= traces
    assert str([f"prompts:/{first.name}/{number}" for number in (1, 2)]) in printed
    assert [version.template for version in versions(first.name)] == [first.source, second.source]
