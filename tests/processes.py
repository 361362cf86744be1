"""The processes that a test started, directly or not; and how to stop Node for a while (SIGSTOP)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pomlflow import engine

__all__ = ["Process", "children", "descendants", "started_with", "stopped_node"]


@dataclass(frozen=True)
class Process:
    """A running process, as /proc shows it."""

    pid: int
    parent: int
    start: int
    command: str

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        now = _read(Path("/proc") / str(self.pid))
        return now is not None and now.start == self.start


@contextlib.contextmanager
def stopped_node() -> Iterator[None]:
    """Stop the Node processes of the engine during the block (SIGSTOP)."""
    pids = engine.stats().pids
    assert pids, "render once before, so that there is one"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def children() -> set[int]:
    """Return the process ids of this process's children, of all its threads, dead ones too."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(map(int, file.read_text(encoding="utf-8").split()))
    return found


def started_with(name: str, value: str) -> list[Process]:
    """Return the running processes that started with that environment variable, and their descendants.

    Descendants need not have the variable: Node has none of its parent's, and Ray's processes overwrite theirs.
    """
    found = []
    for process in (processes := _all()):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if f"{name}={value}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return _with_descendants(found, processes)


def descendants(pid: int) -> list[Process]:
    """Return a running process and all that it has started, directly or not."""
    processes = _all()
    return _with_descendants([process for process in processes if process.pid == pid], processes)


def _with_descendants(found: list[Process], processes: list[Process]) -> list[Process]:
    pids = {process.pid for process in found}
    while children := [process for process in processes if process.parent in pids and process.pid not in pids]:
        found += children
        pids |= {process.pid for process in children}
    return found


def _all() -> list[Process]:
    return [process for folder in Path("/proc").glob("[0-9]*") if (process := _read(folder)) is not None]


def _read(folder: Path) -> Process | None:
    try:
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return None
    if stat[0] == "Z":  # it has ended, and was not waited for
        return None
    return Process(int(folder.name), int(stat[1]), int(stat[19]), command)
