"""Processes of one machine, one after another."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Final

import platformdirs

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["turn"]

_STEP: Final = 0.01  # seconds between looks whether it is our turn


@contextlib.contextmanager
def turn(key: str, patience: float = 5.0) -> Iterator[None]:
    """Keep the processes of this user on this machine from doing the same at once, as far as that can be had.

    It is a courtesy, not a guarantee: after its patience, or where no file can be locked, a process goes ahead, so
    what is done inside must bear being done by two.

    Args:
        key: What is done; threads and processes with the same key take turns.
        patience: Seconds to wait for the turn at most.

    Example:
        >>> with turn("sqlite:///mlflow.db"):
        ...     pass
    """
    file = _lock(key, patience)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                _release(file)
            os.close(file)


def _lock(key: str, patience: float) -> int | None:
    # In the user's own folder: in a shared one, such as /tmp, another user's file may stand in the way.
    try:
        folder = platformdirs.user_cache_path("pomlflow", appauthor=False) / "turns"
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    deadline = time.monotonic() + patience
    while not _acquire(file):
        if time.monotonic() > deadline:
            os.close(file)
            return None
        time.sleep(_STEP)
    return file


def _acquire(file: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _release(file: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
    else:
        # Closing is not enough: a child forked meanwhile has the file open, and with it the lock.
        fcntl.flock(file, fcntl.LOCK_UN)
