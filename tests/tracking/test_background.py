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
from tests.mlflow_server import DEAD, until

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
def tasks() -> Worker:
    """A worker of its own."""
    return Worker()


def failing(error: Exception, times: int, then: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
    left = [error] * times

    def run() -> Any:
        if left:
            raise left.pop()
        return then()

    return run


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= level]


def test_tasks_run_in_order(tasks):
    """A flush returns how many are still pending."""
    done = []
    for number in range(20):
        tasks.submit(Job(lambda number=number: done.append(number)))
    assert tasks.flush(30) == 0
    assert done == list(range(20))


@pytest.mark.parametrize("error", [FORBIDDEN, BUSY], ids=["forbidden", "busy"])
def test_transient_errors_are_retried(tasks, caplog, error):
    """Many prompts that a server does not take now: one warning, and all are taken later."""
    done = []
    for number in range(5):
        tasks.submit(Job(failing(error, 4, lambda number=number: done.append(number))))
    assert tasks.flush(30) == 0
    assert sorted(done) == list(range(5))
    (warning,) = messages(caplog)
    assert "it will be retried" in warning
    assert tasks.take_lost() == 0


@pytest.mark.parametrize("error", [WRONG, ZeroDivisionError()], ids=["refused", "our fault"])
def test_what_is_wrong_is_dropped_and_counted(tasks, caplog, error):
    """Also while other tasks wait."""
    wrong = [Job(failing(error, 100)) for _ in range(5)]
    for one in wrong:
        tasks.submit(one)
    assert tasks.flush(30) == 0
    assert all(one.dropped for one in wrong)
    assert (tasks.take_lost(), tasks.take_lost()) == (5, 0)
    (warning,) = messages(caplog)
    assert "it is dropped" in warning


def test_permanent_errors_drop_the_task(tasks, caplog):
    """Each of them has a warning of its own."""
    wrong = [Job(failing(RejectedError(f"prompt {number} is too long"), 100)) for number in range(2)]
    for one in wrong:
        tasks.submit(one)
    assert tasks.flush(30) == 0
    assert [one.tries for one in wrong] == [1, 1]
    assert messages(caplog) == [f"Not registered in MLflow: prompt {number} is too long" for number in range(2)]


def test_a_periodic_task_does_not_delay_a_flush(tasks):
    tasks.submit(Job(lambda: None, is_periodic=True), after=3600)
    assert tasks.flush(3600) == 0


def test_reads_run_before_a_backlog_of_writes(tasks):
    """A moved alias does not wait for a hundred registrations."""
    done, started, go_on = [], threading.Event(), threading.Event()
    tasks.submit(Job(lambda: (started.set(), go_on.wait(30))))
    assert started.wait(30)
    for number in range(3):
        tasks.submit(Job(lambda number=number: done.append(number)))
    tasks.submit(Job(lambda: done.append("read"), is_periodic=True))
    go_on.set()
    assert tasks.flush(30) == 0
    assert done == ["read", 0, 1, 2]


def test_a_lookup_runs_before_a_backlog_of_links(tasks):
    """A trace that ends before its version is known costs more."""
    done, started, go_on = [], threading.Event(), threading.Event()
    tasks.submit(Job(lambda: (started.set(), go_on.wait(30))))
    assert started.wait(30)
    tasks.submit(Job(lambda: done.append("link")))
    tasks.submit(Job(lambda: done.append("lookup")), after=FIRST)
    go_on.set()
    assert tasks.flush(30) == 0
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
def test_an_outage_is_one_warning_and_its_end_a_message(tasks, caplog, error):
    """However many tasks wait."""
    caplog.set_level(logging.INFO, "pomlflow")
    done = []
    mended = threading.Event()

    def run() -> None:
        if not mended.is_set():
            raise error
        done.append(1)

    for _ in range(5):
        tasks.submit(Job(run))
    assert tasks.flush(3600) == 5
    mended.set()
    assert tasks.flush(30) == 0
    assert len(done) == 5
    warning, info = messages(caplog, logging.INFO)
    assert "is unreachable" in warning
    assert info.endswith("is reachable again.")
    assert STORE not in tasks._outages


def test_each_store_has_its_own_outage(tasks):
    """A notebook continues with another store; what waits for the first is still pending, and delays no flush."""
    done = []
    tasks.submit(Job(lambda: done.append("dead"), DEAD))
    until(lambda: DEAD in tasks._outages)
    tasks.submit(Job(lambda: done.append("there")))
    assert tasks.flush(3600) == 1
    assert done == ["there"]


def test_an_unreachable_server_is_our_warning_alone(tasks, caplog):
    """urllib3's own retries would warn at each check whether it is reachable."""
    tasks.submit(Job(lambda: None, DEAD))
    assert tasks.flush(1) == 1
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


def test_no_password_reaches_the_log(tasks, caplog):
    """URIs hold them, and errors quote URIs."""
    tasks.submit(Job(lambda: None, "http://ada:secret@127.0.0.1:9"))
    until(lambda: messages(caplog))
    assert "http://***@127.0.0.1:9" in caplog.text
    assert "secret" not in caplog.text
    assert "ada" not in caplog.text


def test_each_flush_runs_what_was_not_possible_yet_and_does_not_wait_for_it(tasks):
    """A trace that is still open has no links to store."""
    possible = threading.Event()
    tasks.submit(Job(possible.is_set))
    assert (tasks.flush(3600), tasks.pending()) == (0, 1)
    possible.set()
    assert (tasks.flush(30), tasks.pending()) == (0, 0)


def refuse(_: object) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def test_where_no_thread_can_start_a_flush_does_the_work(tasks, monkeypatch):
    """As at exit since Python 3.12; a task that another thread submits during the flush runs too."""
    done: list[int] = []
    sent, flushing = threading.Event(), threading.Event()
    sender = threading.Thread(
        target=lambda: (flushing.wait(10), tasks.submit(Job(lambda: done.append(3))), sent.set()), daemon=True
    )
    sender.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    tasks.submit(Job(failing(BUSY, 1, lambda: done.append(2))))

    def wait_for_the_other() -> None:
        flushing.set()
        done.append(1 if sent.wait(10) else 0)

    tasks.submit(Job(wait_for_the_other))
    assert tasks.flush(30) == 0
    assert sorted(done) == [1, 2, 3]
    tasks.submit(Job(failing(BUSY, 100)))
    assert tasks.flush(0.5) == 1


def test_memory_is_bounded_and_what_is_dropped_is_counted(tasks, monkeypatch):
    """The thread does not start: a task that it has just taken would be in no queue, and not be counted."""
    monkeypatch.setattr(background, "_MAX_TASKS", 3)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    taken = [tasks.submit(Job(lambda: None, DEAD), after=3600) for _ in range(5)]
    assert taken == [True] * 3 + [False] * 2
    assert tasks.take_lost() == 2


def test_a_task_runs_in_the_workspace_of_its_render_and_in_nothing_else(tasks):
    """MLflow's `set_workspace` would set it for the process."""
    seen = []
    tasks.submit(Job(lambda: seen.append(get_request_workspace()), workspace="team-a"))
    tasks.submit(Job(lambda: seen.append(get_request_workspace())))
    assert tasks.flush(30) == 0
    assert seen == ["team-a", None]
