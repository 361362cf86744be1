"""Read the files of a template, and detect changes to them."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from pomlflow.engine.system import is_of_system


def stamp(file: Path) -> object:
    """Return metadata of a file that changes whenever the file does; None for a missing file."""
    try:
        at = os.stat(file)  # noqa: PTH116 - half the cost of Path.stat
    except (OSError, ValueError):  # ValueError: a null character in an include's path
        return None
    return at.st_mtime_ns, at.st_ctime_ns, at.st_size, at.st_ino  # a copy can restore mtime, but not ctime


def read_file(file: Path) -> bytes | None:
    """Return the content of a regular file; None if it is missing, or a pipe or a device, which may never end."""
    try:
        return file.read_bytes() if file.is_file() else None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if not is_of_system(error):
            raise
        return None


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; that of no bytes for a missing file or a folder."""
    return _sha256(file, stamp(file))


@lru_cache(maxsize=1024)  # frameworks copy templates often, and a document may be large
def _sha256(file: Path, _stamp: object) -> str:
    return hashlib.sha256(read_file(file) or b"").hexdigest()
