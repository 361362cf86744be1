"""Operating system functions for Node processes: threads, a pipe that ends them, memory."""

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

_OWN = {"pomlflow", "subprocess", "pathlib", "genericpath", os.path.__name__}
# The maximum bytes of data of a sandboxed process. V8's heap has its own limit, but buffers are outside of it, such as
# the unpacked content of a document.
_DATA = 2 << 30


def start_thread(work: Callable[[], object]) -> threading.Thread:
    """Run a function in a daemon thread, which does not delay an exit; raise RuntimeError if no thread can start."""
    thread = threading.Thread(target=work, name="pomlflow-render", daemon=True)
    thread.start()
    return thread


def is_of_system(error: Exception) -> bool:
    """Return whether a call in this package or in Python's library raised an error, and not the user's signal handler.

    A handler runs in whatever function waits, and its error may have any class and any errno.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not frames or frames[-1].f_globals.get("__name__", "").split(".")[0] in _OWN


class Lifeline:
    """A pipe that kills the worker when this process ends, even while a template loops and stdin is not read.

    The kernel closes the pipe's writing end when this process ends, for whatever reason. Linux then sends SIGIO to the
    owner of the reading end, the worker, which ends it (fcntl(2), F_SETOWN and O_ASYNC). PR_SET_PDEATHSIG is no
    alternative: it applies when the *thread* that started the worker ends. On other systems, a worker that loops
    survives a parent that was killed.
    """

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = os.pipe() if sys.platform == "linux" else ()
        self.inherited = self._ends[:1]

    def tie(self, pid: int) -> None:
        """Make the process end when the pipe is closed."""
        if sys.platform == "linux":
            reading = self._ends[0]
            with contextlib.suppress(OSError):  # a kernel without this feature, such as that of a sandbox
                fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
                fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.close(reading)
            self._ends = self._ends[1:]

    def close(self) -> None:
        """Close the ends that are open in this process."""
        ends, self._ends = self._ends, ()
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def limit_memory(pid: int) -> None:
    """Limit the memory of a process; only on Linux, since other systems cannot limit another process."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):  # it has ended, or has a lower limit already
            resource.prlimit(pid, resource.RLIMIT_DATA, (_DATA, _DATA))


def private_memory(pid: int) -> int:
    """Return the bytes that a process takes for itself; 0 if the system does not report them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    # Not the clean pages: most are of Node's program, which all its processes share.
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))
