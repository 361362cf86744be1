"""What may take as long as MLflow's client retries, waited for no longer than somebody has time."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["bounded"]

_T = TypeVar("_T")


def bounded(call: Callable[[], _T], timeout: float) -> _T:
    """Do something that may take as long as MLflow's client retries, and wait for it no longer than this.

    Args:
        call: What is to be done; it goes on in a thread of its own where it takes longer.
        timeout: Seconds to wait at most.

    Returns:
        What it gives.

    Raises:
        TimeoutError: It takes longer.
        Exception: As it raises.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failure.append(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="pomlflow-registry-load", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # from Python 3.12 on no thread can start while the interpreter ends
        run()
    else:
        thread.join(timeout)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {timeout:g} s")
    return outcome[0]
