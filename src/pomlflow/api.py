"""POML without a framework."""

from __future__ import annotations

import sys

__all__ = ["flush"]


def flush(timeout: float | None = 30.0) -> bool:
    """Finish what is pending: prompt versions to be registered, traces to be exported.

    Args:
        timeout: Seconds to wait for the registry at most; None waits for as long as it takes.

    Returns:
        Whether everything was finished.

    Example:
        >>> import pomlflow
        >>> pomlflow.flush()
        True
    """
    if "pomlflow.tracking.registry" not in sys.modules:
        return True  # nothing was ever traced
    import mlflow

    from pomlflow.tracking.registry import flush as flush_registry

    done = flush_registry(timeout)
    mlflow.flush_trace_async_logging()
    return done
