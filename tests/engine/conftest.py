"""Fixtures of the engine's tests: markup that runs JavaScript, and the processes that it runs in."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import rendering, waiting

from pomlflow import engine
from pomlflow.settings import settings

ROOT = str(Path(__file__).parents[2])
DEADLINE = 60.0  # seconds; only a failing test waits so long


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, so that the tests know which one renders; tests of the pool raise the limit."""
    monkeypatch.setenv("POMLFLOW_MAX_WORKERS", "1")
    monkeypatch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), max_workers=1))
    if engine.stats().workers > 1:
        engine.close()


@pytest.fixture
def js() -> Callable[[str], str]:
    """Markup that runs JavaScript statements and shows what they return."""

    def markup(code: str) -> str:
        assert not set("<&\n") & set(code), "no XML in it"
        assert "}}" not in code, "it would end the expression"
        return f"<p>{{{{ (() => {{ {code}; }})() }}}}</p>"

    return markup


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait until a condition is true, and return its value."""
    return waiting.until


@pytest.fixture
def fresh() -> Iterator[None]:
    """Close the engine before and after the test."""
    engine.close()
    yield
    engine.close()


@pytest.fixture
def no_sandbox(one_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the sandbox off: templates write files, or end their process."""
    monkeypatch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), sandbox=False))


@pytest.fixture
def hello() -> Callable[[], str]:
    """Render, and return the text: the engine works."""

    def text() -> str:
        return str(rendering.render("<p>Hello {{name}}</p>", {"name": "Ada"})["messages"][0]["content"])

    return text


@pytest.fixture
def worker(hello: Callable[[], str]) -> Callable[[], int]:
    """The process id of the warm Node process, started where there is none."""

    def number() -> int:
        hello()
        [pid] = engine.stats().pids
        return pid

    return number


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process runs; one that has ended and waits for its parent does not."""

    def check(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
        except OSError:
            return False

    return check


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python process that runs a program, with its output in pipes."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        file = tmp_path / f"program{len(started)}.py"
        # A shell that starts the tests in the background has Ctrl-C ignored, and children inherit that.
        restored = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        file.write_text(f"{restored}\n{program}", encoding="utf-8")
        paths = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", str(file), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def script_without_sandbox(script: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """As `script`, without the sandbox in there."""
    return functools.partial(script, POMLFLOW_SANDBOX="0")


@pytest.fixture
def finish() -> Callable[[subprocess.Popen[str]], str]:
    """Wait until a program exits with 0 and an empty stderr, and return its stdout."""

    def result(process: subprocess.Popen[str]) -> str:
        output, errors = process.communicate(timeout=DEADLINE)
        assert (process.returncode, errors) == (0, "")
        return output

    return result
