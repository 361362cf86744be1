"""What fails in the background is tried again, told once, and holds nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2
from mlflow.utils.workspace_context import get_request_workspace
from tests.mlflow_server import until

from pomlflow.tracking.background import Errand, Errands
from pomlflow.tracking.versions import RefusedError

STORE = "sqlite:///store.db"
DEAD = "http://127.0.0.1:9"  # the discard port: refuses at once
FORBIDDEN = RestException({"error_code": "PERMISSION_DENIED", "message": "not yours"})
WRONG = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such thing"})
BUSY = RestException({"error_code": "RESOURCE_EXHAUSTED", "message": "too many"})


class Do(Errand):
    """Run what it is given, and note that it was given up."""

    def __init__(self, what: Callable[[], Any], uri: str = STORE, workspace: str | None = None) -> None:
        super().__init__(uri=uri, workspace=workspace)
        self.what = what
        self.over = False

    def run(self) -> bool:
        return self.what() is not False

    def given_up(self) -> None:
        self.over = True


@pytest.fixture
def errands() -> Iterator[Errands]:
    """A thread of its own; what it can never do is dropped at the end."""
    errands = Errands()
    yield errands
    with errands._changed:
        errands._waiting.clear()


def failing(error: Exception, times: int, then: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
    left = [error] * times

    def run() -> Any:
        if left:
            raise left.pop()
        return then()

    return run


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= level]


def test_errands_are_done_in_turn(errands):
    done = []
    for number in range(20):
        errands.send(Do(lambda number=number: done.append(number)))
    assert errands.flush(30)
    assert done == list(range(20))


@pytest.mark.parametrize("error", [FORBIDDEN, BUSY], ids=["forbidden", "busy"])
def test_what_may_pass_is_tried_until_it_does(errands, caplog, error):
    """Many prompts that a server does not take now: one warning, and all are taken later."""
    done = []
    for number in range(5):
        errands.send(Do(failing(error, 4, lambda number=number: done.append(number))))
    assert errands.flush(30)
    assert sorted(done) == list(range(5))
    (warning,) = messages(caplog)
    assert "tried again later" in warning


@pytest.mark.parametrize("error", [WRONG, ZeroDivisionError()], ids=["refused", "our fault"])
def test_what_is_wrong_is_given_up(errands, caplog, error):
    wrong = [Do(failing(error, 100)) for _ in range(5)]
    for one in wrong:
        errands.send(one)
    assert errands.flush(30)
    assert all(one.over for one in wrong)
    (warning,) = messages(caplog)
    assert "given up" in warning


def test_what_can_never_be_is_given_up_at_once(errands, caplog):
    wrong = [Do(failing(RefusedError(f"prompt {number} is too long"), 100)) for number in range(2)]
    for one in wrong:
        errands.send(one)
    assert errands.flush(30)
    assert [one.tries for one in wrong] == [1, 1]
    assert messages(caplog) == [f"Not registered in MLflow: prompt {number} is too long" for number in range(2)]


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("database is locked", error_code=databricks_pb2.TEMPORARILY_UNAVAILABLE),
        ConnectionError("gone"),
        RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "restarting"}),
    ],
    ids=["database", "connection", "gateway"],
)
def test_an_outage_is_told_once_and_its_end_too(errands, caplog, error):
    caplog.set_level(logging.INFO, "pomlflow")
    done = []
    mended = threading.Event()

    def run() -> None:
        if not mended.is_set():
            raise error
        done.append(1)

    for _ in range(5):
        errands.send(Do(run))
    assert not errands.flush(0.5)
    mended.set()
    assert errands.flush(30)
    assert len(done) == 5
    warning, info = messages(caplog, logging.INFO)
    assert "cannot be reached" in warning
    assert info.endswith("is back.")
    assert not errands.away(STORE)


def test_stores_are_away_each_for_itself(errands, caplog):
    done = []
    errands.send(Do(lambda: done.append("dead"), DEAD))
    until(lambda: errands.away(DEAD))
    errands.send(Do(lambda: done.append("there")))
    until(lambda: done == ["there"])
    assert not errands.flush(0.3)


def test_a_store_that_was_left_holds_up_no_flush(errands):
    """A notebook goes on with another store; what waits for the first is still pending, and is said to be."""
    done = []
    errands.send(Do(lambda: done.append("left"), DEAD))
    errands.send(Do(lambda: done.append("there")))
    assert not errands.flush(3600, insist={STORE})
    assert done == ["there"]


def test_a_server_that_is_away_is_told_by_us_alone(errands, caplog):
    """urllib3's own retries would warn at each look whether it is back."""
    errands.send(Do(lambda: None, DEAD))
    assert not errands.flush(1)
    assert [one.name for one in caplog.records if one.levelno >= logging.WARNING] == ["pomlflow"]


def test_no_password_reaches_the_log(errands, caplog):
    errands.send(Do(lambda: None, "http://ada:secret@127.0.0.1:9"))
    until(lambda: messages(caplog))
    assert "http://127.0.0.1:9" in caplog.text
    assert "secret" not in caplog.text
    assert "ada" not in caplog.text


def test_what_is_not_possible_yet_comes_again(errands):
    possible = threading.Event()
    errands.send(Do(possible.is_set))
    assert not errands.flush(0.3)
    possible.set()
    assert errands.flush(30)


def test_an_exit_gives_each_one_more_try(errands):
    """A flush that does not insist ends, however long its limit, when all that is left has just failed."""
    tried = []
    errands.send(Do(lambda: None, DEAD))
    errands.send(Do(lambda: tried.append(1) or False))
    assert not errands.flush(3600, insist=())
    assert tried


def test_where_no_thread_can_start_a_flush_does_the_work(errands, monkeypatch):
    """From Python 3.12 on that is so at the end of the interpreter; and whoever sends meanwhile is not held up."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    done: list[int] = []
    sent, flushing = threading.Event(), threading.Event()
    sender = threading.Thread(
        target=lambda: (flushing.wait(10), errands.send(Do(lambda: done.append(3))), sent.set()), daemon=True
    )
    sender.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    errands.send(Do(failing(BUSY, 1, lambda: done.append(2))))
    errands.send(Do(lambda: (flushing.set(), done.append(1 if sent.wait(10) else 0))))
    assert errands.flush(30)
    assert sorted(done) == [1, 2, 3]
    errands.send(Do(lambda: False))
    assert not errands.flush(0.5)


def test_an_errand_runs_in_the_workspace_of_its_render_and_in_nothing_else(errands):
    seen = []
    errands.send(Do(lambda: seen.append(get_request_workspace()), workspace="team-a"))
    errands.send(Do(lambda: seen.append(get_request_workspace())))
    assert errands.flush(30)
    assert seen == ["team-a", None]
