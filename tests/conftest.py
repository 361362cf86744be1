"""Fixtures for all tests: MLflow without telemetry, a SQLite store, and state that is reset after each."""

from __future__ import annotations

import os

# Read by the libraries at import, so before any of them is imported.
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    LANGSMITH_TRACING="false",
    LITELLM_LOCAL_MODEL_COST_MAP="True",
)

import gc
import itertools
import queue
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.mlflow_server import empty_store, mlflow_server, use_server
from tests.model_server import ModelServer, model_server
from tests.pending import drop_pending, finish
from tests.recorded_trees import compare, not_compared

if TYPE_CHECKING:
    from mlflow.entities import Trace

__all__ = ["empty_store", "mlflow_server", "use_server"]

_numbers = itertools.count(1)


class _FastQueue(queue.Queue[Any]):
    """A queue whose reader waits 20 ms at most: MLflow's (3.12 to 3.17) checks once a second whether to flush."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block, None if timeout is None else min(timeout, 0.02))


@pytest.fixture(scope="session", autouse=True)
def _fast_flushes() -> Iterator[None]:
    """Flush in milliseconds: every test of traces flushes at least twice."""
    from mlflow.tracing.export import async_export_queue

    from pomlflow.tracking.spans import prepare

    prepare()  # before the first trace of any test
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(async_export_queue, "Queue", _FastQueue)
        yield


@pytest.fixture(scope="session", autouse=True)
def _frozen_imports(_fast_flushes: None) -> Iterator[None]:
    """Exempt the imported packages from garbage collection: with their 400,000 objects it takes half a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_report_header() -> list[str]:
    return [f"recorded trees: not compared, {reason}"] if (reason := not_compared()) else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """After a test that passed, compare its traces with the recorded ones, while the test's store is still set."""
    yield
    compare(item)


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt's name that no other test has; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    return f"{tmp_path.name}-{os.getpid()}"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """A server that answers as the providers of models do."""
    with model_server() as served:
        yield served


@pytest.fixture
def two_workers() -> Iterator[None]:
    """Two Node processes, both running."""
    from pomlflow import configure, engine

    configure(max_workers=2)
    engine.close()
    engine.prewarm(2)
    yield
    engine.close()


@pytest.fixture(autouse=True)
def restore_settings() -> Iterator[None]:
    """Restore the settings of the process after each test."""
    settings = sys.modules.get("pomlflow.settings")
    before = settings and settings._current  # noqa: SLF001 - None where the environment was not read yet
    yield
    if (settings := sys.modules.get("pomlflow.settings")) is not None:
        settings._current = before  # noqa: SLF001


@pytest.fixture(autouse=True)
def reset_prompt_names() -> Iterator[None]:
    """Free the names of prompts after each test."""
    yield
    if (naming := sys.modules.get("pomlflow.template.names")) is not None:
        naming.NAMES.__init__()


@pytest.fixture(autouse=True)
def reset_warnings() -> Iterator[None]:
    """Reset which warnings were logged after each test."""
    yield
    if (log := sys.modules.get("pomlflow._log")) is not None:
        log.logged.clear()


@pytest.fixture(autouse=True)
def reset_active_model() -> Iterator[None]:
    """Reset the active model after each test: MLflow would mark every later trace with it."""
    yield
    if (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.clear_active_model()


@pytest.fixture(autouse=True)
def finish_background_tasks() -> Iterator[None]:
    """Finish background tasks after each test: they would be logged, and waited for, in another one."""
    yield
    if "pomlflow.tracking.background" not in sys.modules:
        return
    if not finish():
        pytest.fail(f"left pending: {drop_pending()}; finish it in the test, or drop it there")
    drop_pending()


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Do not sync SQLite stores to the disk: it took a third of the tests' time."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def connected(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    """The URI of one SQLite store for all tests of this process."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('mlflow') / 'store.db').as_posix()}"


@pytest.fixture
def mlflow_store(mlflow_database: str, tmp_path: Path) -> Iterator[str]:
    """A fresh experiment in a real store, set as MLflow's; return its id, and restore the settings."""
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(mlflow_database)
    mlflow.set_registry_uri(mlflow_database)
    name = f"test-{next(_numbers)}-{os.getpid()}"
    identity = mlflow.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=identity)
    yield identity
    mlflow.flush_trace_async_logging()
    assert mlflow.get_current_active_span() is None, "an active span was left"
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


@pytest.fixture
def sync_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store each trace as it ends, without MLflow's background export."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()


@pytest.fixture
def stored_traces(mlflow_store: str) -> Callable[[], list[Trace]]:
    """Fetch all traces of the test's experiment back from the store, oldest first."""

    def fetch() -> list[Trace]:
        import mlflow

        mlflow.flush_trace_async_logging()
        found: list[Any] = mlflow.search_traces(locations=[mlflow_store], return_type="list")
        # Traces of one millisecond are distinguished by their spans.
        return sorted(
            found,
            key=lambda trace: (
                trace.info.request_time,
                min((span.start_time_ns for span in trace.data.spans), default=0),
            ),
        )

    return fetch
