"""Runs programs in forks of one process that has already imported the large packages.

A start takes milliseconds instead of seconds. Tests of imports, and of a fresh interpreter, start Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

__all__ = ["run_program", "serve"]

ROOT = Path(__file__).parents[1]
_PACKAGES = (
    "mlflow", "mlflow.genai", "mlflow.pyfunc", "mlflow.langchain", "mlflow.langchain.langchain_tracer",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracing.provider", "sqlalchemy", "pandas", "openai", "poml",
    "langchain_core.runnables", "langchain_core.language_models.fake_chat_models", "langchain.agents",
    "langgraph.graph", "llama_index.core", "llama_index.core.agent.workflow", "pomlflow.cli", "pomlflow.langchain",
    "pomlflow.llama_index", "pomlflow.tracking.spans", "pomlflow.tracking.publish",
)  # fmt: skip
_MAIN = "from tests.programs import serve\nprogram = serve()\nif program is not None:\n    exec(program)"


def run_program(
    program: str | Path,
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 100,
) -> subprocess.CompletedProcess[str]:
    """Run the text or the file of a program to its end, and return its exit code, output and errors.

    Raises:
        subprocess.TimeoutExpired: It had not ended in time; it is killed with all that it started.
    """
    given = dict(os.environ if environment is None else environment)
    if not hasattr(os, "fork"):
        command = [sys.executable, *([str(program)] if isinstance(program, Path) else ["-c", program]), *arguments]
        return subprocess.run(
            command, cwd=folder, env=given, timeout=timeout, capture_output=True, text=True, check=False
        )
    with tempfile.TemporaryDirectory() as scratch:
        output, errors = Path(scratch, "output"), Path(scratch, "errors")
        task = {
            "program": program if isinstance(program, str) else None,
            "file": str(program) if isinstance(program, Path) else None,
            "arguments": arguments,
            "folder": str(folder),
            "environment": given,
            "output": str(output),
            "errors": str(errors),
        }
        code = _server().run(task, timeout)
        shown = [file.read_text(encoding="utf-8") if file.exists() else "" for file in (output, errors)]
    if code is None:
        raise subprocess.TimeoutExpired(str(program), timeout, *shown)
    return subprocess.CompletedProcess([str(program), *arguments], code, *shown)


class _Server:
    """The process that forks; it runs one program at a time."""

    def __init__(self) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "POMLFLOW_"))
        }
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        atexit.register(self.close)
        self._answer(200)

    def run(self, task: Mapping[str, Any], timeout: float) -> int | None:
        """Return the exit code of a program; None if it had to be killed."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            process = self._answer(60)
            code = self._answer(timeout)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)  # with all that it started
            if code is None:
                self._answer(60)
            return code

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self, timeout: float) -> Any:
        """Return the next line, or None after the timeout."""
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], timeout)[0]:
            return None
        return json.loads(output.readline())


_server = functools.cache(_Server)


def serve() -> CodeType | None:
    """Fork for each program that stdin names; return the program in its fork, and None at the end of stdin."""
    for name in _PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    _report(0)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            return _become(json.loads(line))
        _report(process)
        _report(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    return None


def _report(number: int) -> None:
    os.write(1, f"{number}\n".encode())


def _become(task: dict[str, Any]) -> CodeType:
    """Give this fork the folder, environment, arguments and files of a new process of the program."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for file, descriptor in ((task["output"], 1), (task["errors"], 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    file = task["file"]
    sys.argv = [file or "-c", *task["arguments"]]
    sys.path[0] = str(Path(file).parent) if file else ""
    if file:
        sys.modules["__main__"].__file__ = file
        return compile(Path(file).read_bytes(), file, "exec")
    return compile(task["program"], "<string>", "exec")
