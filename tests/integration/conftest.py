"""What the tests that need PostgreSQL, Ray or Chromium share; `make integration` runs them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.mlflow_server import MlflowServer, mlflow_server, use_server
from tests.postgres import find_postgres, postgres

__all__ = ["mlflow_server", "use_server"]

_MARK = "POMLFLOW_INTEGRATION"


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """No process that a test started, directly or not, is left at the end: servers, Node, Ray, Chromium."""
    os.environ[_MARK] = mark = uuid.uuid4().hex
    yield
    deadline = time.monotonic() + 10
    while (left := processes_with(f"{_MARK}={mark}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"left running: {left}"


def processes_with(variable: str) -> list[str]:
    """The command lines of all other processes with that variable in the environment that they started with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.name != str(os.getpid()) and variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is another user's
            continue
    return [line for line in found if line]  # one that has ended and was not waited for has none


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One ``mlflow server`` on PostgreSQL for all tests that leave it as it is."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres(programs) as store, MlflowServer(tmp_path_factory.mktemp("server"), store) as server:
        yield server
