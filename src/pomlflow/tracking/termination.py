"""Store what is pending when SIGTERM ends the program, as container runtimes do: Python runs no exit hooks then.

It works in programs without a handler for SIGTERM, and under uvicorn, which raises the signal again at the end of its
own shutdown. Other handlers are not changed. `multiprocessing.Pool` ends its processes by SIGTERM, and waits for them.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pomlflow.tracking.shutdown import count_pending, flush_at_exit

_LIMIT: Final = 20.0  # seconds; most container runtimes kill after 30
_STUCK: Final = 5.0  # seconds without a stored trace until main goes on, since it may hold a lock that the flush needs
_POLL: Final = 0.05  # seconds
_flushed: Final = threading.Event()


def finish_at_sigterm() -> None:
    """Store what is pending before SIGTERM ends the program. In another thread than main, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # another interpreter of the process
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _finish_and_end)
        elif _is_of_uvicorn(before) and hasattr(signal, "pthread_sigmask"):
            atexit.register(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
            signal.signal(signal.SIGTERM, partial(_finish_after, before))


def _is_of_uvicorn(handler: Any) -> bool:
    uvicorn = sys.modules.get("uvicorn")
    return uvicorn is not None and isinstance(getattr(handler, "__self__", None), uvicorn.Server)


def _finish_and_end(number: int, _frame: object) -> None:
    """Flush in another thread, which sends the signal again; hold the main thread for as long as traces are stored."""
    thread = threading.Thread(target=_flush_and_signal, args=(number,), daemon=True)
    with suppress(RuntimeError):  # no thread can start while the interpreter shuts down
        if not _flushed.is_set():
            thread.start()
            pending = None
            while thread.is_alive() and pending != (pending := count_pending()):
                thread.join(_STUCK)
            return
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _flush_and_signal(number: int) -> None:
    flush_at_exit(_LIMIT)
    _flushed.set()
    os.kill(os.getpid(), number)


def _finish_after(before: Any, number: int, frame: object) -> None:
    """Let uvicorn shut down, and block the signal that it raises at the end until everything is stored."""
    mine = signal.getsignal(number)
    threading.Thread(target=_finish_when_restored, args=(mine, number), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})  # in the main thread only; the new thread can still receive it
    before(number, frame)


def _finish_when_restored(mine: Any, number: int) -> None:
    """Wait until uvicorn has restored the handler that was set before its own, and end the program then."""
    while signal.getsignal(number) is mine:
        time.sleep(_POLL)
    _flush_and_signal(number)
