"""Read files for a render, within its permissions.

The sandboxed worker cannot open files. It requests each file from Python, which reads it if it is under one of the
render's folders. So the permission is per render, although renders share a process. Without the sandbox, files are read
in the same way, and every file is allowed.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from pomlflow.engine.protocol import Request
from pomlflow.exceptions import Problem
from pomlflow.settings import settings

_OK, _FAILED, _DENIED = range(3)
_UTF16_MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
_LAST_READ = 3  # how many of the files read last an error names if the render's process ended
_LARGEST = 500_000_000  # maximum bytes of a file: V8's strings are limited to 512 MB
_MAX_OPENS = 3  # attempts to open a file that is being replaced
# O_NONBLOCK: opening a pipe that has no writer would wait for ever.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def trusted_roots(folder: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    """Yield the folders whose trees a trusted template may read, those of ``allow_read`` among them."""
    now = settings()
    folders: list[str | os.PathLike[str]] = [] if folder is None else [folder]
    if now.prompt_root is not None:
        folders.append(now.prompt_root)
    with contextlib.suppress(OSError):  # it was removed
        folders.append(os.getcwd())  # noqa: PTH109
    # In a container the working folder is often /, and /proc/self/environ lies under it.
    yield from (one for one in folders if os.fspath(one) and Path(one).parent != Path(one))
    yield from now.allow_read


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Return whether a path is one of these folders or under one of them; none of the paths may have links."""
    normal = os.path.normcase(path)
    return any(normal == root or normal.startswith(os.path.join(root, "")) for root in map(os.path.normcase, roots))  # noqa: PTH118


class FileAccess:
    """Read files for one render, under `Request.roots`; if that is None, under `trusted_roots`."""

    def __init__(self, request: Request, *, restricted: bool = True) -> None:
        self._request = request
        self._restricted = restricted
        self._roots: tuple[str, ...] | None = None
        self.denied: dict[str, str] = {}  # requested paths that the render may not read, each with its folder
        self._opened: dict[str, None] = {}  # the paths of the files that the render has read, in order

    def respond(self, line: bytes) -> bytes:
        """Respond to one request, ``{"op": …, "path": …}`` as JSON; `_OPERATIONS` has the operations.

        The response is a status, the length of a body, and the body. Status and length are 64-bit integers, little
        endian. The body is, by status, 0: the file's content, why it is not UTF-8, or JSON for ``stat`` and ``list``;
        1: the name of an errno; 2: the reason why the request was denied.
        """
        request = orjson.loads(line)
        operation, path = str(request["op"]), str(request["path"])
        try:
            real = self._permitted(path)
            if real is None:
                # POML looks for a .env file next to each template, which must not be reported to the user.
                if operation != "exists" or not path.endswith(".env"):
                    self.denied[path] = path if operation == "list" else os.path.dirname(path)  # noqa: PTH120
                return _response(_DENIED, f"reading {path!r} is not allowed".encode(errors="replace"))
            if operation == "read" and (why := _unreadable(real)):
                return _response(_DENIED, f"cannot read {path!r}: {why}".encode(errors="replace"))
            if operation == "read":
                self._opened[path] = None
            return _response(_OK, _OPERATIONS[operation](real))
        except OSError as error:
            return _response(_FAILED, errno.errorcode.get(error.errno or 0, "EIO").encode())
        except ValueError:  # a null character
            return _response(_FAILED, b"EINVAL")

    def text(self, path: str) -> str | None:
        """Return the text of a file for an error's message; None if it does not exist or may not be read."""
        try:
            real = self._permitted(path)
            return None if real is None else _read(real).decode("utf-8-sig", "replace")
        except (OSError, ValueError):  # ValueError: a null character
            return None

    @property
    def last_read(self) -> str:
        """A note of the last files that the render read, one of which may have ended its process; empty if none."""
        names = [*self._opened][-_LAST_READ:]
        return f"; it had read {', '.join(map(repr, names))}" if names else ""

    @property
    def remedy(self) -> str | None:
        """The remedy for denied requests; None if there were none."""
        if not self.denied:
            return None
        folders = ", ".join(map(repr, self.roots)) or "nothing"
        if self._request.roots is not None:
            names = ", ".join(map(repr, self.denied))
            return f"{names} may not be read: this template is not trusted and may read {folders} only"
        allowed, parts = [], []
        for path, folder in self.denied.items():
            target = os.path.realpath(path)
            is_link = is_under(path, self.roots)
            parts.append(f"{path!r}, a link to {target!r}," if is_link else repr(path))
            allowed.append(os.path.dirname(target) if is_link else folder)  # noqa: PTH120
        names = ", ".join(parts)
        wanted = ", ".join(map(repr, dict.fromkeys(allowed)))
        return (
            f"{names} may not be read: this template may read {folders}. Allow more with "
            f"pomlflow.configure(allow_read=[{wanted}]), or disable the sandbox with pomlflow.configure(sandbox=False)"
        )

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that the render may read, with links resolved."""
        if self._roots is None:
            given = self._request.roots
            path = self._request.path
            allowed = trusted_roots(path and os.path.dirname(path)) if given is None else given  # noqa: PTH120
            self._roots = tuple(dict.fromkeys(os.path.realpath(folder) for folder in allowed))
        return self._roots

    def _permitted(self, path: str) -> str | None:
        """Return the path with links resolved if the render may read it, else None.

        The part of a path that exists is resolved, so that a denial does not reveal whether a file elsewhere exists.
        """
        if not self._restricted:
            return os.path.realpath(path)
        if sys.platform == "win32" and not is_under(os.path.abspath(path), self.roots):  # noqa: PTH100
            return None  # before resolving it: \\server\share would send this user's credentials to another machine
        real = os.path.realpath(path)
        return real if is_under(real, self.roots) else None


def decode(content: bytes, file: str) -> tuple[str, Problem | None]:
    """Decode UTF-8 and drop a byte-order mark. Invalid bytes are replaced, and the first is returned as a problem."""
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    head = content[:2]
    is_wide = head in _UTF16_MARKS or (len(head) == 2 and head.count(0) == 1)  # noqa: PLR2004
    try:
        text = content.decode("utf-8-sig")
        if not is_wide:
            return text, None
        wrong = 0
    except UnicodeDecodeError as error:
        text, wrong = content.decode("utf-8-sig", "replace"), 0 if is_wide else mark + error.start
    begin = max(mark, content.rfind(b"\n", 0, wrong) + 1)
    line = content[begin:].split(b"\n", 1)[0].rstrip(b"\r").decode("utf-8", "replace")
    column = len(content[begin:wrong].decode("utf-8", "replace")) + 1
    message = (
        f"the file is not UTF-8: its byte {wrong + 1} is {content[wrong]:#04x}"
        f"{' (it looks like UTF-16)' if is_wide else ''}. Save it as UTF-8"
    )
    number = content.count(b"\n", 0, wrong) + 1
    return text, Problem(message, "EncodingError", file, number, column, line.replace("\0", "\ufffd"))


def read_file(file: Path) -> bytes | None:
    """Return the content of a regular file; None if it is missing, or a pipe or a device, which may never end."""
    try:
        return file.read_bytes() if file.is_file() else None
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None


def _unreadable(path: str) -> str:
    """Return the reason why a file cannot be read; empty if it can."""
    at = os.lstat(path)
    if stat.S_ISREG(at.st_mode):
        size = f"it has {at.st_size / 1e6:.0f} MB, and a render reads at most {_LARGEST / 1e6:.0f} MB"
        return size if at.st_size > _LARGEST else ""
    return "" if stat.S_ISDIR(at.st_mode) or stat.S_ISLNK(at.st_mode) else "it is a pipe or a device, not a file"


def _read(path: str) -> bytes:
    for _ in range(_MAX_OPENS):
        descriptor = os.open(path, _FLAGS)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            at = os.fstat(descriptor)
            if stat.S_ISDIR(at.st_mode):
                raise IsADirectoryError(errno.EISDIR, "")
            # It may have become a pipe or a device since the check, a folder of the path may have become a link since
            # it was resolved, and an editor may have replaced the file since it was opened: then it is opened again.
            is_same = os.path.realpath(path) == path and os.path.samestat(at, os.lstat(path))
            if is_same and stat.S_ISREG(at.st_mode):
                return file.readall()
    raise PermissionError(errno.EACCES, "")


def _explain_encoding(path: str) -> bytes:
    """Return where and why a file is not UTF-8."""
    _, problem = decode(_read(path), path)
    if problem is None:
        return b"1:1: the file changed while it was read"
    return f"{problem.line}:{problem.column}: {problem.message}".encode()


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


_OPERATIONS = {"read": _read, "explain": _explain_encoding, "stat": _stat, "list": _list, "exists": _exists}


def _response(status: int, content: bytes) -> bytes:
    return status.to_bytes(8, "little") + len(content).to_bytes(8, "little") + content
