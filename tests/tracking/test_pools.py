"""SIGTERM ends processes, as those of a `multiprocessing.Pool`: all is stored before, and none is left."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import DEAD
from tests.registry_prompts import linked
from tests.tracking.programs import run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")

# At SIGTERM, only processes of `multiprocessing` may take longer than these 0.2 s: the store is locked for a second.
HEAD = """
import multiprocessing, os, signal, sqlite3, sys, threading, time
from pathlib import Path
import mlflow
import pomlflow
from pomlflow import engine
from pomlflow.tracking import shutdown

shutdown._SIGTERM_TIMEOUT = shutdown._PAUSE = 0.2
context = multiprocessing.get_context("fork")

def start():
    mlflow.set_tracking_uri(URI)
    mlflow.set_registry_uri(URI)
    if EXPERIMENT:
        mlflow.set_experiment(experiment_id=EXPERIMENT)
    pomlflow.autolog()

def render(number):
    pomlflow.render("<p>Why {{n}}?</p>", {"n": number}, name="why")
    return os.getpid(), engine.stats().pids[0]

def lock(seconds=1):
    database = sqlite3.connect(URI.removeprefix("sqlite:///"), check_same_thread=False, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    threading.Timer(seconds, database.close).start()

def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
"""
POOL = """
both = context.Barrier(2)

def render_in_both(number):
    if number < 2:  # one busy process would take all tasks
        both.wait()
    return render(number)

with context.Pool(2, start, maxtasksperchild=TASKS) as pool:
    used = {pid for pids in pool.map(render_in_both, range(8), chunksize=1) for pid in pids}
    processes = list(pool._pool)
    lock()
while any(map(is_running, used)):
    time.sleep(0.01)
print({one.exitcode for one in processes} <= {0, -15}, len(used))
"""


def program(experiment: str, body: str, uri: str | None = None, **values: Any) -> str:
    """A program whose processes trace renders."""
    values |= {"URI": uri or mlflow.get_tracking_uri(), "EXPERIMENT": experiment}
    return "".join(f"{name} = {value!r}\n" for name, value in values.items()) + HEAD + body


def links(experiment: str) -> Counter[tuple[str, ...]]:
    """The links of all traces, which are complete, counted."""
    traces = mlflow.search_traces(locations=[experiment], return_type="list")
    assert {str(trace.info.state) for trace in traces} <= {"OK"}
    return Counter(tuple(linked(trace)) for trace in traces)


@pytest.mark.parametrize(("tasks", "processes"), [(None, 2), (2, 4)], ids=["ended by SIGTERM", "replaced"])
def test_a_pool_stores_all_and_its_processes_end(mlflow_store, tmp_path: Path, tasks: int | None, processes: int):
    """So do their Node processes, however long the store takes."""
    printed = run(program(mlflow_store, POOL, TASKS=tasks), tmp_path)
    assert links(mlflow_store) == {("why/1",): 8}
    assert printed == f"True {2 * processes}\n"


def test_a_pool_ends_without_a_server(tmp_path: Path):
    printed = run(program("", POOL.replace("lock()", "pass"), DEAD, TASKS=None), tmp_path)
    assert printed.count("its traces are lost") == 2, printed
    assert "True 4\n" in printed


def test_what_a_store_takes_too_long_for_is_reported(mlflow_store, tmp_path: Path):
    """Each process logs one line."""
    body = POOL.replace("with context", "shutdown._CHILD_TIMEOUT = 0.2\nwith context")
    printed = run(program(mlflow_store, body, TASKS=None), tmp_path)
    assert printed.count("The process ends before MLflow has stored everything: ") == 2, printed


PROCESS = """
def work():
    start()
    CODE

process = context.Process(target=work)
process.start()
while not Path("ready").exists():
    time.sleep(0.01)
process.terminate()
process.join()
print(process.exitcode)
"""


@pytest.mark.parametrize(
    ("code", "exitcode"),
    [
        ("render(1); Path('ready').touch(); time.sleep(600)", -15),
        # A flush needs this lock, and the signal arrives while it is held.
        ("""render(1)
    with shutdown._exports()[0][2]._queue.mutex:
        Path('ready').touch()
        time.sleep(1)
    time.sleep(600)""", -15),
        # The first trace is of another thread, and this one waits for it.
        ("""threading.Thread(target=lambda: (render(1), Path('ready').touch(), time.sleep(600)), daemon=True).start()
    threading.Event().wait()""", -15),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); render(1); Path('ready').touch(); time.sleep(600)", 3),
    ],
    ids=["idle", "with a lock", "in a thread", "own handler"],
)  # fmt: skip
def test_a_terminated_process_stores_all(mlflow_store, tmp_path: Path, code: str, exitcode: int):
    """Its exit code is that of a process without traces."""
    printed = run(program(mlflow_store, PROCESS.replace("CODE", code)), tmp_path)
    assert links(mlflow_store) == {("why/1",): 1}
    assert printed == f"{exitcode}\n"
