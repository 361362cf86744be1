"""What is pending, finished in a flush and at the end of the program: traces, versions, links.

Left to itself, MLflow (3.12 to 3.17) exports at the end in its ``atexit`` hooks. There Python 3.12 and later start no
thread: what MLflow exports then it does not link, and what it would begin to export then is lost. And while its server
is away, MLflow's threads try again for minutes, and Python waits for them.

So all is finished one step earlier, before Python waits for the program's threads (``threading._register_atexit``,
which ``concurrent.futures`` uses too, Python 3.9 to 3.14), and once more behind them. What is for a server that does
not answer then is given up. One that answers, however slowly, gets everything: MLflow goes on where our limit ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Final

import mlflow

from pomlflow.tracking.exports import Export, exports, give_up, hear_flush, let_go, linked

__all__ = ["finish_at_the_end", "finish_with_mlflow", "flush"]

_log = logging.getLogger("pomlflow")

_ANSWER: Final = 2.0  # seconds that a server may take at the end to say that it is there
_AGAIN: Final = 0.1  # seconds for what is left, behind all threads, where a server was found away before them
_hooked = False
_found_away: set[str] = set()  # before the threads were joined: asking again would double the time that an end takes


def flush(timeout: float | None) -> bool:
    """Finish all that is pending in this process.

    Args:
        timeout: Seconds to wait at most; None waits for as long as it takes.

    Returns:
        Whether everything was finished.
    """
    deadline = time.monotonic() + (threading.TIMEOUT_MAX / 2 if timeout is None else timeout)
    # MLflow's first: some links wait for the store to have the trace.
    try:
        drained = [way.drain(deadline) for way in exports()]
    except Exception as error:  # noqa: BLE001 - an MLflow that has other private parts than those known
        _log.debug("MLflow flushes by itself", exc_info=error)
        here, _flushing.here = getattr(_flushing, "here", False), True
        try:
            mlflow.flush_trace_async_logging()
        finally:
            _flushing.here = here
        drained = []
    registry = sys.modules.get("pomlflow.tracking.publish")  # not there where no prompt is registered
    registered = registry is None or registry.flush(max(0.0, deadline - time.monotonic()))
    return linked(deadline) and registered and all(drained)


_flushing = threading.local()


def finish_with_mlflow() -> None:
    """Have MLflow's ``flush_trace_async_logging`` finish it all too, within the limit that holds at the end."""
    with suppress(Exception):  # an MLflow that has other private parts than those known
        hear_flush(_with_mlflow)


def _with_mlflow(timeout: float) -> bool:
    if getattr(_flushing, "here", False):  # our own flush has left it to MLflow
        return True
    _flushing.here = True
    try:
        return flush(min(timeout, _limit()))
    finally:
        _flushing.here = False


def finish_at_the_end() -> None:
    """Hook into the end of the program; once is enough for a process and its children."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    try:
        threading._register_atexit(_before_threads_are_joined)  # type: ignore[attr-defined] # private
    except (AttributeError, RuntimeError):  # another Python; or a thread that outlives main is the first to trace
        atexit.register(_behind_all_threads)


def _before_threads_are_joined() -> None:
    atexit.register(_behind_all_threads)  # registered last, called first
    if away := _finish():
        with suppress(Exception):  # as in `_finish`
            let_go(away, threads=_threads_start())


def _behind_all_threads() -> None:
    if (away := _finish()) and give_up(away):
        _log.warning("The program ends while MLflow's store %s is away: traces that wait for it are lost", away[0].uri)


def _finish() -> list[Export]:
    """Finish all that can be, within the limit; gives what is for servers that are away."""
    deadline = time.monotonic() + (_AGAIN if _found_away else _limit())
    away: list[Export] = []
    is_linked = False
    try:
        threads = _threads_start()
        if not threads:
            logging.getLogger("mlflow.tracing.export.mlflow_v3").addFilter(_is_news)
        answers = dict.fromkeys(_found_away, False)
        for way in exports():
            if way.uri not in answers:
                answers[way.uri] = _answers(way.uri)
            if answers[way.uri]:
                way.drain(deadline, threads=threads)
            else:
                away.append(way)
                _found_away.add(way.uri)
        is_linked = threads and (bool(away) or linked(deadline))
    except Exception as error:  # noqa: BLE001 - a version of MLflow or Python that is other than those known
        _log.debug("What MLflow has not exported is left to MLflow", exc_info=error)
    if (registry := sys.modules.get("pomlflow.tracking.publish")) is not None:
        registry.finish_at_exit(max(0.1, deadline - time.monotonic()), linked=is_linked)
    return away


def _limit() -> float:
    try:
        return float(os.environ.get("POMLFLOW_FLUSH_TIMEOUT", "5"))
    except ValueError:
        return 5.0


def _threads_start() -> bool:
    """Whether a thread can still be started: from Python 3.12 on not behind all threads, in 3.12.0 and 3.12.1 never."""
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return True


def _answers(uri: str) -> bool:
    from pomlflow.tracking.background import knock

    try:
        knock(uri, _ANSWER)
    except Exception as error:  # noqa: BLE001 - whatever is wrong, it takes nothing
        _log.debug("%s does not answer", uri, exc_info=error)
        return False
    return True


def _is_news(record: logging.LogRecord) -> bool:
    """Not MLflow's word that it could start no thread to link: then the registry's own thread does it."""
    return not record.getMessage().startswith("Failed to link prompts to trace: can't")
