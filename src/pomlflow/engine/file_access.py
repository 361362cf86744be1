"""What a render may read, and the reading of it.

The sandboxed worker cannot open files: it asks for each one, and is given what lies under the folders of this render.
So the folders hold for one render, though the process is shared with others, and a template that got past all that the
worker itself does against it would still have to ask.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import orjson

from pomlflow.engine.protocol import Request
from pomlflow.engine.roots import is_under, trusted_roots

__all__ = ["Reads"]

_OK, _FAILED, _REFUSED = range(3)
# O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Reads:
    """Answers what one render asks for.

    Args:
        request: The render. Without `Request.roots` it may read its own folder's tree, the prompt root, the working
            folder, and the folders of `pomlflow.configure`'s ``allow_read``; a root of the file system counts only
            where ``allow_read`` names it.

    Attributes:
        refused: The paths that it asked for and may not read, and the folder of each.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._roots: tuple[str, ...] | None = None
        self.refused: dict[str, str] = {}

    def answer(self, question: bytes) -> bytes:
        """Answer one question.

        Args:
            question: ``{"ask": "read" | "stat" | "list" | "exists", "path": …}`` as JSON.

        Returns:
            A status (0: here it is, 1: an errno's name, 2: refused, and why) and a length, 64 bits each, little
            endian, and as many bytes: the file's, or JSON for ``stat`` and ``list``.
        """
        asked = orjson.loads(question)
        what, path = str(asked["ask"]), str(asked["path"])
        try:
            real = self._permitted(path)
            if real is None:
                # POML looks for a .env beside each template; that it may not is nobody's concern.
                if what != "exists" or not path.endswith(".env"):
                    self.refused[path] = path if what == "list" else os.path.dirname(path)  # noqa: PTH120
                return _answer(_REFUSED, f"reading {path!r} is not allowed".encode(errors="replace"))
            return _answer(_OK, _ANSWERS[what](real))
        except OSError as error:
            return _answer(_FAILED, errno.errorcode.get(error.errno or 0, "EIO").encode())
        except ValueError:  # a null character
            return _answer(_FAILED, b"EINVAL")

    def text(self, path: str) -> str | None:
        """The text of a file, for an error's message; None where there is none that it may read."""
        try:
            real = self._permitted(path)
            return None if real is None else _read(real).decode("utf-8", "replace")
        except (OSError, ValueError):
            return None

    @property
    def remedy(self) -> str | None:
        """What to do about what was refused; None where nothing was."""
        if not self.refused:
            return None
        names = ", ".join(map(repr, self.refused))
        folders = ", ".join(map(repr, self.roots)) or "nothing"
        if self._request.roots is not None:
            return f"{names} may not be read: this template is not trusted and may read {folders} only"
        wanted = ", ".join(map(repr, dict.fromkeys(self.refused.values())))
        return (
            f"{names} may not be read: this template may read {folders}. Allow more with "
            f"pomlflow.configure(allow_read=[{wanted}]), or lift the sandbox with pomlflow.configure(sandbox=False)"
        )

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that it may read, without links."""
        if self._roots is None:
            given = self._request.roots
            path = self._request.path
            allowed = trusted_roots(path and os.path.dirname(path)) if given is None else given  # noqa: PTH120
            self._roots = tuple(dict.fromkeys(os.path.realpath(folder) for folder in allowed))
        return self._roots

    def _permitted(self, path: str) -> str | None:
        """The path without links, if it lies under a root.

        A path that does not exist is looked at as far as it does, so that nobody learns what is there elsewhere.
        """
        if sys.platform == "win32" and not is_under(os.path.abspath(path), self.roots):  # noqa: PTH100
            return None  # before another machine is asked: \\server\share sends it this user's credentials
        real = os.path.realpath(path)
        return real if is_under(real, self.roots) else None


def _read(path: str) -> bytes:
    descriptor = os.open(path, _FLAGS)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        at = os.fstat(descriptor)
        if stat.S_ISDIR(at.st_mode):
            raise IsADirectoryError(errno.EISDIR, "")
        if not stat.S_ISREG(at.st_mode):  # a pipe, a device: they may never end
            raise PermissionError(errno.EACCES, "")
        # A folder on the way may have become a link since the path was looked at.
        if os.path.realpath(path) != path or not os.path.samestat(at, os.lstat(path)):
            raise PermissionError(errno.EACCES, "")
        return file.readall()


def _stat(path: str) -> bytes:
    at = os.lstat(path)
    return orjson.dumps({"kind": _kind(at.st_mode), "size": at.st_size, "mtimeMs": at.st_mtime_ns / 1e6})


def _list(path: str) -> bytes:
    with os.scandir(path) as entries:
        found = sorted((os.fsencode(entry.name), entry.stat(follow_symlinks=False).st_mode) for entry in entries)
    return orjson.dumps([{"name": name.decode("utf-8", "replace"), "kind": _kind(mode)} for name, mode in found])


def _exists(path: str) -> bytes:
    os.lstat(path)
    return b""


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISREG(mode):
        return "file"
    return "link" if stat.S_ISLNK(mode) else "other"


_ANSWERS = {"read": _read, "stat": _stat, "list": _list, "exists": _exists}


def _answer(status: int, content: bytes) -> bytes:
    return status.to_bytes(8, "little") + len(content).to_bytes(8, "little") + content
