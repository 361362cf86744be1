"""What a Node process needs of the operating system: descriptors, limits, and whose error an OSError is."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

if sys.platform == "linux":
    import fcntl
    import resource

__all__ = ["Lifeline", "limit_memory", "private_memory", "raised_by_system", "start_thread"]

# Bytes that a sandboxed process may have: V8's heap has a cap of its own, and buffers lie outside of it, such as what a
# document unpacks to.
_DATA = 2 << 30
_CALLERS = {
    "pomlflow.engine.file_access",
    "pomlflow.engine.process",
    "pomlflow.engine.system",
    "genericpath",
    "ntpath",
    "os",
    "posixpath",
    "subprocess",
}


def start_thread(work: Callable[[], object]) -> threading.Thread:
    """Run something in a daemon thread, which no exit waits for; RuntimeError where none can start, as at an exit."""
    thread = threading.Thread(target=work, name="pomlflow-render", daemon=True)
    thread.start()
    return thread


def raised_by_system(error: OSError) -> bool:
    """Whether a system call of the engine's raised it.

    A user's signal handler may raise any class in the midst of such a call, TimeoutError is an OSError, and it must
    reach the user. Such an error's innermost frame is the handler's.
    """
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") in _CALLERS


class Lifeline:
    """A pipe whose closing kills the worker, also while a template loops and no longer reads its stdin.

    Linux sends SIGIO, which ends a process that does not handle it, to the owner of a pipe's reading end when the
    writing end is closed, as happens when this process ends in whatever way (fcntl(2), F_SETOWN and O_ASYNC).
    PR_SET_PDEATHSIG would do it when the *thread* that started the worker ends. Elsewhere a worker that loops outlives
    a parent that was killed.
    """

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = os.pipe() if sys.platform == "linux" else ()
        self.inherited = self._ends[:1]

    def tie(self, pid: int) -> None:
        """Have the process end when the pipe is closed."""
        if sys.platform == "linux":
            reading = self._ends[0]
            with contextlib.suppress(OSError):  # a kernel without it, such as a sandbox's
                fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
                fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.close(reading)
            self._ends = self._ends[1:]

    def close(self) -> None:
        """Close the ends that are open here."""
        ends, self._ends = self._ends, ()
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def limit_memory(pid: int) -> None:
    """Keep a template from all of the machine's memory; other systems than Linux cannot do this from outside."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):  # it has ended, or has a lower limit already
            resource.prlimit(pid, resource.RLIMIT_DATA, (_DATA, _DATA))


def private_memory(pid: int) -> int:
    """Return the bytes of a process that it shares with no other one; 0 where the system does not report them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
