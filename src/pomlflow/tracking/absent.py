"""Keeps threads that talk to MLflow's server in the background out of a deadlock of MLflow's.

``mlflow.<flavor>.autolog()``, ``mlflow.genai.evaluate`` and ``optimize_prompts`` (MLflow 3.12 to 3.17) run hooks for
modules that are there already, and hold the lock of all import hooks meanwhile. A hook that imports waits for Python's
import lock; whoever imports at that moment holds that one and waits for the first, and the program stands still for
ever. Each request to a server tries to import three modules that are mostly not there, eleven times: in MLflow's
exporting threads, and in ours. (mlflow/mlflow#23466 mended another way into it, when a module is being imported.)

So for these threads a finder says first that a module is not there: it needs no lock for that.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterable
from typing import Final

from mlflow.tracking.request_header.registry import resolve_request_headers
from mlflow.utils.import_hooks import register_post_import_hook

from pomlflow.tracking.exports import LINKER, WORKER

__all__ = ["say_what_is_absent"]

_NAMES: Final = ("dbruntime", "IPython", "pyspark")
_THREADS: Final = ("pomlflow-", WORKER, LINKER, "MLflowTraceLogging", "MLflowSpanBatcher")


class _Absent:
    """A finder that knows modules which are not there, in the threads of a few names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - the protocol
        if name in self._names and threading.current_thread().name.startswith(_THREADS):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def say_what_is_absent() -> None:
    """Put the finder where it is asked first; again where it is there already, nothing happens."""
    if any(isinstance(finder, _Absent) for finder in sys.meta_path):
        return
    register_post_import_hook(str, __name__)  # with the first hook, MLflow puts a finder of its own in front
    absent = [name for name in _NAMES if name not in sys.modules and importlib.util.find_spec(name) is None]
    sys.meta_path.insert(0, _Absent(absent))
    # Here and now: the first one imports modules that are there.
    resolve_request_headers()  # type: ignore[no-untyped-call]  # MLflow's
