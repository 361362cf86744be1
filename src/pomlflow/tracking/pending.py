"""What is pending, finished: traces on their way to MLflow's store, versions to be registered, links to be made."""

from __future__ import annotations

import threading
import time
from typing import Final

import mlflow

from pomlflow.tracking.registry import PromptRegistry

__all__ = ["flush"]

_LINKER: Final = "link_prompts_from_exporter"  # MLflow's threads that link what it has exported (mlflow 3.12 to 3.17)

_lock = threading.Lock()
_export: threading.Thread | None = None  # MLflow's own flush; in an outage it lasts for minutes


def flush(timeout: float | None) -> bool:
    """Finish all that is pending in this process: MLflow's part and ours at once, since some of ours waits for it.

    Args:
        timeout: Seconds to wait at most; None waits for as long as it takes.

    Returns:
        Whether everything was finished.
    """
    deadline = time.monotonic() + (threading.TIMEOUT_MAX / 2 if timeout is None else timeout)
    export, is_new = _exporting()
    done = PromptRegistry.shared().flush(_left(deadline))
    export.join(_left(deadline))
    if not is_new and not export.is_alive():  # it had begun before this call
        export, _ = _exporting()
        export.join(_left(deadline))
    linkers = [thread for thread in threading.enumerate() if thread.name.startswith(_LINKER)]
    for thread in linkers:
        thread.join(_left(deadline))
    return done and not any(thread.is_alive() for thread in (export, *linkers))


def _exporting() -> tuple[threading.Thread, bool]:
    """The thread in which MLflow exports all, and whether it has just begun: never two at once."""
    global _export
    with _lock:
        is_new = _export is None or not _export.is_alive()
        if is_new:
            _export = threading.Thread(target=mlflow.flush_trace_async_logging, name="pomlflow-export", daemon=True)
            _export.start()
        assert _export is not None  # noqa: S101
        return _export, is_new


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
