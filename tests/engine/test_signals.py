"""Exceptions of a host program's signal handlers end a render that waits, whatever their class."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tests import rendering

from pomlflow import engine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


class AlarmError(TimeoutError):
    """As a host program's own time limit raises it."""


SLOW = "<p>{{ (() => { const end = Date.now() + 3000; while (end > Date.now()); })() }}</p>"
BUSY = SLOW.replace("3000", "1000")


# Each wait of the engine, with the errors that it might handle as its own.
CASES = [("render", error) for error in (AlarmError, BrokenPipeError, EOFError, subprocess.TimeoutExpired)]
CASES += [("start", AlarmError), ("start", EOFError), ("queue", AlarmError)]


@pytest.mark.parametrize(("where", "error"), CASES)
def test_an_exception_of_a_signal_handler_passes_through(where: str, error: type[Exception]) -> None:
    """Of any class, OSErrors and TimeoutErrors among them, in every wait of the engine; the next render works."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    raised = error() if error is not subprocess.TimeoutExpired else error(["x"], 1)

    def handler(*_: object) -> None:
        raise raised

    engine.close()
    if where != "start":
        rendering.render("<p>a</p>", {})
    work: dict[str, Callable[[], object]] = {
        "render": lambda: rendering.render(SLOW, {}),
        "start": lambda: engine.prewarm(1),
        "queue": lambda: rendering.render("<p>a</p>", {}),
    }
    busy = threading.Thread(target=rendering.render, args=(BUSY, {}))
    if where == "queue":
        busy.start()
        while not engine.stats().running:
            time.sleep(0.001)
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1 if where == "start" else 0.3)
    try:
        with pytest.raises(error) as failed:
            work[where]()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert failed.value is raised
    if where == "queue":
        busy.join()
    assert rendering.render("<p>{{who}}</p>", {"who": "next"})["messages"][0]["content"] == "next"
    assert engine.stats().running == 0


@pytest.mark.parametrize("has_traceback", [True, False])
@pytest.mark.parametrize("error", [AlarmError, ValueError, KeyboardInterrupt])
def test_an_exception_of_a_signal_handler_passes_through_a_conversion_of_values(
    error: type[BaseException], has_traceback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal can arrive while a user's object is converted; orjson on Python 3.11 drops the error's traceback."""
    raised, encode = error(), orjson.dumps

    def without_traceback(*args: Any, **options: Any) -> bytes:
        try:
            return encode(*args, **options)
        except orjson.JSONEncodeError as failure:
            if failure.__cause__ is not None:
                failure.__cause__.__traceback__ = None
            raise

    if not has_traceback:
        monkeypatch.setattr(orjson, "dumps", without_traceback)

    class Interrupted:
        """A value whose first conversion raises, as a signal handler would."""

        calls = 0

        def model_dump(self) -> str:
            self.calls += 1
            if self.calls == 1:
                raise raised
            return "value"

    with pytest.raises(error) as failed:
        rendering.render("<p>{{x}}</p>", {"x": Interrupted()})
    assert failed.value is raised
