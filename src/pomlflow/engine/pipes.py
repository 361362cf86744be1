"""The descriptors between Python and a Node process, beside the three that `subprocess` makes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["Lifeline", "standard_streams_taken", "widen"]


@contextlib.contextmanager
def standard_streams_taken() -> Iterator[None]:
    """Let no pipe that is made in the block have the number of a standard stream that was closed, as services do.

    What somebody then writes to stderr, number 2, would reach the worker as a request; and a pipe that the worker is to
    inherit by its number would be replaced by its own standard stream there.
    """
    with contextlib.ExitStack() as stack:
        while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stdin, stdout, stderr
            stack.callback(os.close, taken)
        os.close(taken)
        yield


def widen(*pipes: Any) -> None:
    """Let a pipe hold a megabyte, not 64 KB: a large context then crosses it in one turn of each side, not in 16."""
    if sys.platform == "linux":
        import fcntl

        for pipe in pipes:
            with contextlib.suppress(OSError):  # the system's limit, or the user's for all pipes
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


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
            import fcntl

            reading = self._ends[0]
            with contextlib.suppress(OSError):  # a kernel without it, such as a sandbox's
                fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
                fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.close(reading)
            self._ends = self._ends[1:]

    def close(self) -> None:
        """Give back what there is of the pipe."""
        ends, self._ends = self._ends, ()
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)
