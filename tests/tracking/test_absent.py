"""MLflow's import hooks, and background threads that import while one runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a program of its own: pytest's time limit cannot end a thread that waits for an import lock.
PROGRAM = """
import json, sys, threading
import mlflow
from mlflow.tracking.request_header.registry import resolve_request_headers
from mlflow.utils.import_hooks import register_post_import_hook
from pomlflow.tracking.absent import say_what_is_absent

resolve_request_headers()  # the first one imports modules of MLflow's
{absent}
asks, asked = threading.Event(), threading.Event()

def ask():  # as each request to a server does
    asks.set()
    resolve_request_headers()
    asked.set()

def hook(module):
    threading.Thread(target=ask, name={thread!r}, daemon=True).start()
    asks.wait()
    asked.wait(2)
    import this_module_is_not_there_either

try:
    register_post_import_hook(hook, "json")
except ModuleNotFoundError:
    print("went on")
"""


def ran(thread: str, *, absent: bool = True, limit: float = 60) -> str:
    code = PROGRAM.format(thread=thread, absent="say_what_is_absent()" if absent else "")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=limit)
    return done.stdout


@pytest.mark.parametrize("thread", ["pomlflow-registry", "MlflowTraceLoggingWorker_0"])
def test_a_request_in_the_background_holds_up_no_import_hook(thread: str) -> None:
    assert ran(thread) == "went on\n"


def test_mlflow_still_needs_it() -> None:
    """When this fails, MLflow runs its hooks without their lock: `pomlflow.tracking.absent` can go."""
    with pytest.raises(subprocess.TimeoutExpired):
        ran("pomlflow-registry", absent=False, limit=20)


def test_other_threads_find_what_has_come_since(tmp_path, monkeypatch) -> None:
    code = f"""
import sys, threading
from pomlflow.tracking.absent import say_what_is_absent
say_what_is_absent()
say_what_is_absent()
print(sum(type(finder).__name__ == "_Absent" for finder in sys.meta_path))
sys.path.insert(0, {str(tmp_path)!r})
import dbruntime
print(dbruntime.here)
"""
    (tmp_path / "dbruntime.py").write_text("here = True")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\nTrue\n"
