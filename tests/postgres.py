"""A PostgreSQL server on loopback, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.mlflow_server import free_port

__all__ = ["find_postgres", "postgres"]

_START = 60.0  # seconds


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None where there are none or Python has no driver for it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders and find_spec("psycopg2") else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Start a server, and yield the URI of an empty database; end it afterwards."""
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"  # a folder that its user can reach
    folder, port = Path(tempfile.mkdtemp(dir=memory)), free_port()
    try:
        if user:
            shutil.chown(folder, user)
        initialise = [programs / "initdb", "-D", folder, "-A", "trust", "-U", "mlflow", "--no-sync"]
        subprocess.run(initialise, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
        command = [programs / "postgres", "-D", folder, "-p", str(port), "-k", "", "-c", "fsync=off"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, user=user, cwd=folder)
        try:
            _wait(programs, port, server)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown, which ends connections
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(programs: Path, port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START
    check = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(check, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("PostgreSQL did not start")
        time.sleep(0.1)
