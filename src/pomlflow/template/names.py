"""What a prompt is called in the registry, and where its file is said to be."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Final

from pomlflow.settings import settings

__all__ = ["absolute", "from_root", "name_and_place", "registry_name", "working_folder"]

_log = logging.getLogger("pomlflow")
_LONGEST: Final = 256  # characters of a prompt's name that MLflow takes on every store

_lock = threading.Lock()
_files: dict[str, Path] = {}  # by name, the file that has it in this process
_told: set[tuple[Path, Path]] = set()


def name_and_place(path: Path, name: str | None) -> tuple[str | None, str]:
    """Name a file's prompt, and say where the file is, in words that hold on every machine.

    A file outside of the prompt root and of the working folder is known by its own name alone; where two such files
    have the same, the second is known by its folder's too: ``/a/q.poml`` is ``q``, ``/b/q.poml`` is ``b.q``.

    Args:
        path: The file, absolute.
        name: What the user calls it; None for a name from its place.

    Returns:
        The name in the registry's spelling, and the path relative to the prompt root, with forward slashes.
    """
    relative = _relative(path)
    own = path.name if relative is None else relative
    with _lock:
        if name:
            if (other := _claim(registry_name(name), path)) is not None and (other, path) not in _told:
                _told.add((other, path))
                _log.warning(
                    "The files %s and %s are both given the prompt name %r: their contents are versions of one prompt. "
                    "Give each its own, unless one of them replaces the other",
                    *(other, path, name),
                )
            return registry_name(name), own
        above = path.parts[-2::-1] if relative is None else ()  # the folders, the nearest first
        for folder in above:
            if _claim(registry_name(_stem(own)), path) is None:
                break
            own = f"{folder.strip('/') or 'root'}/{own}"
    return registry_name(_stem(own)), own


def _claim(name: str | None, path: Path) -> Path | None:
    """Take a name for a file; gives the file that has it, where that is another and still there."""
    if name is None:
        return None
    other = _files.setdefault(name, path)
    if other == path:
        return None
    if not other.exists() or _same(other, path):  # it moved; or it is a link
        _files[name] = path
        return None
    return other


def _same(one: Path, two: Path) -> bool:
    try:
        return one.samefile(two)
    except OSError:
        return False


def _stem(relative: str) -> str:
    return relative.removesuffix(".poml")


@lru_cache(maxsize=256)
def from_root(folder: str, root: str) -> str | None:
    """A folder relative to another, with forward slashes; None on another drive."""
    try:
        return Path(os.path.relpath(folder, root)).as_posix()
    except ValueError:
        return None


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path from the working folder as it is now; links stay as they are."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def working_folder() -> Path | None:
    """The working folder; None where it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return None


def _relative(path: Path) -> str | None:
    root = settings().prompt_root
    for folder in filter(None, (root, working_folder())):
        # The working folder's path has no links, a script's own path may have: /tmp on macOS is one.
        for file, home in ((path, folder), (path.resolve(), folder.resolve())):
            if file.is_relative_to(home):
                return file.relative_to(home).as_posix()
    return None


def registry_name(text: str) -> str | None:
    """Spell a name as MLflow's registry allows: letters, digits, ``_``, ``.`` and ``-``, folders joined by dots.

    Letters lose their accents. What has other letters than Latin ones ends in a digest of all of it, so that two names
    stay two.

    Args:
        text: A name, or a path with forward slashes.

    Returns:
        The name; None for an empty text.

    Example:
        >>> registry_name("support/what now?")
        'support.what-now'
    """
    if not text:
        return None
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain.replace("/", ".")).strip(".-")
    lossy = any(char.isalnum() and not char.isascii() for char in plain)
    if lossy or not name or len(name) > _LONGEST:
        end = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = f"{name[: _LONGEST - 13] or 'prompt'}-{end}"
    return name
