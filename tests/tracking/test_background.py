"""Background tasks are retried, an outage is one warning, and nothing blocks the caller."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2
from mlflow.utils.workspace_context import get_request_workspace
from tests.mlflow_server import DEAD
from tests.waiting import until

from pomlflow.tracking import background
from pomlflow.tracking.background import FIRST, RejectedError, Task, Worker
from pomlflow.tracking.stores import check_reachable

STORE = "sqlite:///store.db"
FORBIDDEN = RestException({"error_code": "PERMISSION_DENIED", "message": "not yours"})
WRONG = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such thing"})
BUSY = RestException({"error_code": "RESOURCE_EXHAUSTED", "message": "too many"})


class Job(Task):
    """Run a function, and note that the task was dropped."""

    def __init__(
        self, what: Callable[[], Any], uri: str = STORE, workspace: str | None = None, *, is_periodic: bool = False
    ) -> None:
        def run() -> bool:
            check_reachable(uri)
            return what() is not False

        super().__init__(uri=uri, workspace=workspace, run=run, on_dropped=self.drop, is_periodic=is_periodic)
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


@pytest.fixture
def worker() -> Worker:
    """A worker of its own."""
    return Worker()


def failing_function(error: Exception, times: int, then: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
    left = [error] * times

    def run() -> Any:
        if left:
            raise left.pop()
        return then()

    return run


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= level]


def test_tasks_run_in_order(worker):
    """A flush returns how many are still pending."""
    done = []
    for number in range(20):
        worker.submit(Job(lambda number=number: done.append(number)))
    assert worker.flush(30) == 0
    assert done == list(range(20))


@pytest.mark.parametrize("error", [FORBIDDEN, BUSY], ids=["forbidden", "busy"])
def test_transient_errors_are_retried(worker, caplog, error):
    """Several tasks fail at once: one warning is logged, and all of them succeed later."""
    done = []
    for number in range(5):
        worker.submit(Job(failing_function(error, 4, lambda number=number: done.append(number))))
    assert worker.flush(30) == 0
    assert sorted(done) == list(range(5))
    (warning,) = messages(caplog)
    assert "it will be retried" in warning
    assert worker.take_lost() == 0


@pytest.mark.parametrize("error", [WRONG, ZeroDivisionError()], ids=["refused", "faulty"])
def test_refused_and_faulty_tasks_are_dropped_and_counted(worker, caplog, error):
    """All failing tasks together log one warning."""
    wrong = [Job(failing_function(error, 100)) for _ in range(5)]
    for one in wrong:
        worker.submit(one)
    assert worker.flush(30) == 0
    assert all(one.dropped for one in wrong)
    assert (worker.take_lost(), worker.take_lost()) == (5, 0)
    (warning,) = messages(caplog)
    assert "it is dropped" in warning


def test_permanent_errors_drop_the_task(worker, caplog):
    """A rejected task is tried once, and each has a warning of its own."""
    wrong = [Job(failing_function(RejectedError(f"prompt {number} is too long"), 100)) for number in range(2)]
    for one in wrong:
        worker.submit(one)
    assert worker.flush(30) == 0
    assert [one.tries for one in wrong] == [1, 1]
    assert messages(caplog) == [f"Not registered in MLflow: prompt {number} is too long" for number in range(2)]


def test_a_periodic_task_does_not_delay_a_flush(worker):
    worker.submit(Job(lambda: None, is_periodic=True), after=3600)
    assert worker.flush(3600) == 0


def test_reads_run_before_a_backlog_of_writes(worker):
    """A moved alias does not wait for a hundred registrations."""
    done, started, finish = [], threading.Event(), threading.Event()
    worker.submit(Job(lambda: (started.set(), finish.wait(30))))
    assert started.wait(30)
    for number in range(3):
        worker.submit(Job(lambda number=number: done.append(number)))
    worker.submit(Job(lambda: done.append("read"), is_periodic=True))
    finish.set()
    assert worker.flush(30) == 0
    assert done == ["read", 0, 1, 2]


def test_a_lookup_runs_before_a_backlog_of_links(worker):
    """To link a trace that ended before its version is known takes more requests."""
    done, started, finish = [], threading.Event(), threading.Event()
    worker.submit(Job(lambda: (started.set(), finish.wait(30))))
    assert started.wait(30)
    worker.submit(Job(lambda: done.append("link")))
    worker.submit(Job(lambda: done.append("lookup")), after=FIRST)
    finish.set()
    assert worker.flush(30) == 0
    assert done[0] == "lookup"


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("database is locked", error_code=databricks_pb2.TEMPORARILY_UNAVAILABLE),
        ConnectionError("gone"),
        RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "restarting"}),
    ],
    ids=["database", "connection", "gateway"],
)
def test_an_outage_is_one_warning_and_its_end_a_message(worker, caplog, error):
    """Whatever the number of tasks that wait."""
    caplog.set_level(logging.INFO, "pomlflow")
    done = []
    reachable = threading.Event()

    def run() -> None:
        if not reachable.is_set():
            raise error
        done.append(1)

    for _ in range(5):
        worker.submit(Job(run))
    assert worker.flush(3600) == 5
    reachable.set()
    assert worker.flush(30) == 0
    assert len(done) == 5
    warning, info = messages(caplog, logging.INFO)
    assert "is unreachable" in warning
    assert info.endswith("is reachable again.")


def test_each_store_has_its_own_outage(worker, caplog):
    """A notebook switches to another store: tasks for the first one stay pending, and delay no flush."""
    done = []
    worker.submit(Job(lambda: done.append("dead"), DEAD))
    until(lambda: messages(caplog))
    worker.submit(Job(lambda: done.append("there")))
    assert worker.flush(3600) == 1
    assert done == ["there"]


def test_an_unreachable_server_is_logged_by_pomlflow_alone(worker, caplog):
    """With its own retries, urllib3 would log a warning at each check of whether the server is reachable."""
    worker.submit(Job(lambda: None, DEAD))
    assert worker.flush(1) == 1
    assert [one.name for one in caplog.records if one.levelno >= logging.WARNING] == ["pomlflow"]


def test_a_connection_that_the_server_closes_is_no_outage():
    """It may close one that is kept open at the moment of the next request."""
    requests = []

    def serve() -> None:
        for is_first in (True, False):
            connection, _ = server.accept()
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
                if is_first:
                    requests.append(connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        for _ in range(2):
            check_reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
        serving.join()
    assert len(requests) == 3


def test_no_password_reaches_the_log(worker, caplog):
    """URIs hold them, and errors quote URIs."""
    worker.submit(Job(lambda: None, "http://ada:secret@127.0.0.1:9"))
    until(lambda: messages(caplog))
    assert "http://***@127.0.0.1:9" in caplog.text
    assert "secret" not in caplog.text
    assert "ada" not in caplog.text


def test_each_flush_tries_what_is_not_possible_yet_once(worker):
    """A trace that is still open has no links to store."""
    possible = threading.Event()
    worker.submit(Job(possible.is_set))
    assert (worker.flush(3600), worker.pending()) == (0, 1)
    possible.set()
    assert (worker.flush(30), worker.pending()) == (0, 0)


def no_new_thread(_: object) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def test_where_no_thread_can_start_a_flush_does_the_work(worker, monkeypatch):
    """As at exit since Python 3.12; a task that another thread submits during the flush runs too."""
    done: list[int] = []
    sent, flushing = threading.Event(), threading.Event()
    sender = threading.Thread(
        target=lambda: (flushing.wait(10), worker.submit(Job(lambda: done.append(3))), sent.set()), daemon=True
    )
    sender.start()
    monkeypatch.setattr(threading.Thread, "start", no_new_thread)
    worker.submit(Job(failing_function(BUSY, 1, lambda: done.append(2))))

    def wait_for_the_other() -> None:
        flushing.set()
        done.append(1 if sent.wait(10) else 0)

    worker.submit(Job(wait_for_the_other))
    assert worker.flush(30) == 0
    assert sorted(done) == [1, 2, 3]
    worker.submit(Job(failing_function(BUSY, 100)))
    assert worker.flush(0.5) == 1


def test_memory_is_bounded_and_what_is_dropped_is_counted(worker, monkeypatch):
    """The thread does not start: a task that it has just taken would be in no queue, and not be counted."""
    monkeypatch.setattr(background, "_MAX_TASKS", 3)
    monkeypatch.setattr(threading.Thread, "start", no_new_thread)
    taken = [worker.submit(Job(lambda: None, DEAD), after=3600) for _ in range(5)]
    assert taken == [True] * 3 + [False] * 2
    assert worker.take_lost() == 2


def test_a_task_runs_in_the_workspace_of_its_render_and_in_nothing_else(worker):
    """MLflow's `set_workspace` would set it for the process."""
    seen = []
    worker.submit(Job(lambda: seen.append(get_request_workspace()), workspace="team-a"))
    worker.submit(Job(lambda: seen.append(get_request_workspace())))
    assert worker.flush(30) == 0
    assert seen == ["team-a", None]
