"""What a template is called: its path from the prompt root, and its name in the registry."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

from pomlflow.settings import settings

__all__ = ["absolute", "from_root", "registry_name", "relative"]

_NAME = 256  # characters of a prompt's name that MLflow takes on every store


@lru_cache(maxsize=256)
def from_root(folder: str, root: str) -> str | None:
    """A folder's path from another; None where no path leads there."""
    try:
        return Path(os.path.relpath(folder, root)).as_posix()
    except ValueError:  # another drive
        return None


def absolute(path: str | os.PathLike[str]) -> Path:
    """A file's path from the root of its disk, with links as they are."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - links stay as they are


def relative(path: Path) -> str:
    """A file's path from the prompt root, else from the working folder; its name where it lies under neither."""
    root = settings().prompt_root
    for folder in (root and root.absolute(), Path.cwd()):
        # The working folder is told without links, a script's own path with them: /tmp on macOS is one.
        for file, home in ((path, folder), (path.resolve(), folder and folder.resolve())):
            if home and file.is_relative_to(home):
                return file.relative_to(home).as_posix()
    return path.name


def registry_name(text: str) -> str | None:
    """Spell a name as MLflow's registry allows: letters, digits, ``_``, ``.`` and ``-``, folders joined by dots."""
    if not text:
        return None
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text.replace("/", ".")).strip(".-")
    if not name or len(name) > _NAME:
        name = (
            f"{name[: _NAME - 13] or 'prompt'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        )
    return name
