"""A real ``mlflow server`` on loopback, and a port that forwards to it, which can be closed and opened again."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from tests.waiting import until

__all__ = ["DEAD", "MlflowServer", "ServerPort", "empty_store", "free_port", "mlflow_server", "use_server"]

DEAD = "http://127.0.0.1:9"  # the discard port: refuses immediately
_numbers = itertools.count(1)
_START = 100.0  # seconds; a start takes 5 to 40 on a busy machine: migrations and imports


class MlflowServer:
    """One server; its files are in a folder, and its database too where no store is given.

    Example:
        >>> with MlflowServer(tmp_path) as server:  # doctest: +SKIP
        ...     mlflow.set_tracking_uri(server.uri)
    """

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self._folder = folder
        self._store = store or f"sqlite:///{(folder / 'store.db').as_posix()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        artifacts = (self._folder / "artifacts").as_uri()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self._store, "--artifacts-destination", artifacts, "--workers", "1"]
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that outlive SIGTERM
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its import would load a price list from the network
        }
        for inherited in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
            environment.pop(inherited, None)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"mlflow server did not start:\n{(self._folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it and all that it started, at once, as a power cut would."""
        if self._process is None:
            return
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self._process.pid)], check=False, capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


class ServerPort:
    """A port that forwards to a server. Closed, it looks like a killed server to clients; reopening it takes no time.

    Example:
        >>> with ServerPort(server) as port:  # doctest: +SKIP
        ...     mlflow.set_tracking_uri(port.uri)
        ...     port.close()
    """

    def __init__(self, server: MlflowServer) -> None:
        self._server = server
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Accept connections from now on."""
        listener = socket.create_server(("127.0.0.1", self._port))
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Break all connections, and refuse new ones."""
        with self._lock:
            while self._sockets:
                one = self._sockets.pop()
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._lock:
                    if listener not in self._sockets:  # closed since
                        client.close()
                        return
                    self._sockets.append(client)
                    server = socket.create_connection(("127.0.0.1", self._server.port))
                    self._sockets.append(server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store without traces, to copy: one for all processes of a run, since its migrations take seconds."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "mlflow.db"
    try:
        (folder / "empty-store").mkdir()
    except FileExistsError:  # another process makes it
        until(file.exists, 200)
        return file
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = folder / "empty-store" / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{new.as_posix()}", (folder / "artifacts").as_uri())
    new.rename(file)
    return file


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    """One server for all tests that do not stop or change it."""
    folder = tmp_path_factory.mktemp("server")
    store = shutil.copy(empty_store, folder / "store.db")
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'")
        database.commit()
    with MlflowServer(folder) as server:
        yield server


@pytest.fixture
def use_server() -> Iterator[Callable[[MlflowServer | ServerPort], str]]:
    """Set a server as MLflow's, with a new experiment, and return its id; the settings are restored after the test."""
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()

    def use(server: MlflowServer | ServerPort) -> str:
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_registry_uri(server.uri)
        identity = mlflow.create_experiment(f"test-{next(_numbers)}-{os.getpid()}")
        mlflow.set_experiment(experiment_id=identity)
        return str(identity)

    yield use
    mlflow.flush_trace_async_logging()
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
