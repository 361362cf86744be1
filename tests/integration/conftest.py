"""Fixtures of the tests that need PostgreSQL, Ray or Chromium; `make integration` runs them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator

import pytest
from tests.mlflow_server import MlflowServer, mlflow_server, use_server
from tests.postgres import find_postgres, postgres
from tests.processes import started_with

__all__ = ["mlflow_server", "use_server"]

_MARK = "POMLFLOW_INTEGRATION"


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Assert that no process that a test started is left at the end: servers, Node, Ray, Chromium."""
    os.environ[_MARK] = mark = uuid.uuid4().hex
    yield
    deadline = time.monotonic() + 10
    while (left := started_with(_MARK, mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"left running: {left}"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One ``mlflow server`` on PostgreSQL for all tests that do not stop or change it."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres(programs) as store, MlflowServer(tmp_path_factory.mktemp("server"), store) as server:
        yield server
