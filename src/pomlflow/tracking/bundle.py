"""The files that travel with a prompt version: the tags that they become, and what a version's tags hold of them.

A prompt's text in the registry is its source, as its author wrote it: the page shows and compares it, ``pomlflow pull``
and MLflow's own clients get it back, MLflow's optimisers change it. So what it names with ``src=`` is not written into
it. MLflow keeps no artifacts of a prompt version (mlflow 3.12 to 3.17: its source is a placeholder that the server
checks), and anything outside of the version has other rights, other backups and another end of life. What is left are
the version's tags: made with it in one call, read with it in one call, deleted with it.

================  ====================================================================================================
``poml_files``    a JSON object: ``folder`` (see `Enclosures.folder`) and ``files``, in the order of the digest, each
                  with ``path``, ``sha256``, ``size`` in bytes, and either ``tags``, the names of those that hold its
                  content, or ``left``, why it did not travel
``poml_file_<n>`` the content of a file: a text as it is, so that it can be read in MLflow's page (``"text": true``), or
                  a piece of the base64 of its zlib-compressed bytes
================  ====================================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from pomlflow.engine.roots import is_under, trusted_roots
from pomlflow.record import PromptFile
from pomlflow.settings import settings

__all__ = ["FILES", "Enclosed", "Enclosures", "FileChangedError", "opened", "tags_of"]

FILES: Final = "poml_files"
_FILE: Final = "poml_file_"
# Characters of one tag. MLflow takes 100,000 (mlflow.utils.validation), MySQL's TEXT 65,535 bytes.
_LONGEST: Final = 60_000
# Characters of all files of one version: MLflow sends all tags with every version that it lists or finds.
_MOST: Final = 500_000
_LARGEST: Final = 20_000_000  # bytes of all files when they are unpacked, whatever a tag says
_NOT_PLAIN: Final = frozenset('\\:*?"<>|\0')  # what Windows takes in no name


class FileChangedError(Exception):
    """A file is not any more what it was when it was rendered."""


@dataclass(frozen=True)
class Enclosed:
    """One file of a prompt version.

    Attributes:
        path: Relative to the markup's folder, with forward slashes.
        sha256: Of its content, in hexadecimal.
        content: The content; None where it did not travel.
        left: Why it did not.
    """

    path: str
    sha256: str
    content: bytes | None = None
    left: str = ""


@dataclass(frozen=True)
class Enclosures:
    """All files of a prompt version.

    Attributes:
        files: In the order of the digest.
        folder: Where the markup's folder lies under the folder that holds all of them, with forward slashes: ``..`` in
            a path leads up through it. Empty where no path has one.
    """

    files: tuple[Enclosed, ...] = ()
    folder: str = ""


def tags_of(files: Sequence[PromptFile], folder: str | None) -> dict[str, str]:
    """Pack what travels.

    Args:
        files: What the markup names.
        folder: The markup's folder, relative to the prompt root.

    Returns:
        The tags; none where there are no files.

    Raises:
        FileChangedError: A file is not what it was when it was rendered.
    """
    if not files:
        return {}
    tags: dict[str, str] = {}
    packed: list[dict[str, Any]] = []
    room = _MOST
    for file in files:
        entry: dict[str, Any] = {"path": file.path, "sha256": file.sha256}
        packed.append(entry)
        content, left = _read(file)
        is_text, pieces = _pieces(content)
        if not left and (len(content) > _LARGEST or sum(map(len, pieces)) > room):
            left = f"it has {len(content):,} bytes, and all files of a version get {_MOST:,} characters in the registry"
        if left:
            entry["left"] = left
            continue
        names = [f"{_FILE}{len(tags) + number}" for number in range(1, len(pieces) + 1)]
        tags.update(zip(names, pieces, strict=True))
        entry |= {"size": len(content), "text": is_text, "tags": names}
        room -= sum(map(len, pieces))
    told = {
        "folder": _above([file.path for file in files if _is_plain(file.path, sys.maxsize)], folder),
        "files": packed,
    }
    return {FILES: json.dumps(told, ensure_ascii=False), **tags}


def opened(tags: Mapping[str, str]) -> Enclosures:
    """Unpack what travelled with a version.

    Args:
        tags: The version's.

    Returns:
        Its files.

    Raises:
        ValueError: The tags do not hold what they say: somebody changed them, or they are none of ours.
    """
    if FILES not in tags:
        return Enclosures()
    try:
        told = json.loads(tags[FILES])
        folder, files, room = str(told["folder"]), [], _LARGEST
        for entry in told["files"]:
            file = _unpacked(entry, tags, room)
            room -= len(file.content or b"")
            files.append(file)
    except (KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"the tag {FILES} cannot be read: {error!r}") from error
    depth = len(PurePosixPath(folder).parts)
    paths = [file.path for file in files if file.content is not None]
    for path, up in ((folder or "_", 0), *((path, depth) for path in paths)):
        if not _is_plain(path, up):
            raise ValueError(f"the path {path!r} in the tag {FILES} leads out of its place")
    return Enclosures(tuple(files), folder)


def _read(file: PromptFile) -> tuple[bytes, str]:
    """The content, and why it does not travel where it does not."""
    if PurePosixPath(file.path).is_absolute():
        return b"", "its path is absolute, and so holds on one machine only: name it relative to the prompt"
    if not _is_plain(file.path, sys.maxsize):
        return b"", "its name has characters that not every system takes"
    content = b""
    # Else the author of a prompt would get at any file of whoever registers it, though no render reads that.
    if settings().sandbox and not _is_open(file):
        return b"", "no template may read it there (pomlflow.configure(allow_read=…))"
    with contextlib.suppress(OSError, ValueError):
        if file.location.is_dir():
            return b"", "it is a folder"
        if file.location.is_file():
            content = file.location.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise FileChangedError(f"{file.path} changed while its prompt was being registered")
    return content, "" if content or file.location.is_file() else "it was not there"


def _is_open(file: PromptFile) -> bool:
    """Whether a render of the prompt could read it."""
    with contextlib.suppress(OSError, ValueError):
        return is_under(os.path.realpath(file.location), map(os.path.realpath, trusted_roots(file.home)))
    return False


def _pieces(content: bytes) -> tuple[bool, list[str]]:
    """A content in tags' values: as it is, where it is a text of one tag; else compressed, in base64."""
    if not content:
        return False, []
    with contextlib.suppress(UnicodeDecodeError):
        if len(content) <= _LONGEST and b"\0" not in content:  # PostgreSQL takes no null character
            return True, [content.decode()]
    packed = base64.b64encode(zlib.compress(content, 9)).decode()
    return False, [packed[at : at + _LONGEST] for at in range(0, len(packed), _LONGEST)]


def _unpacked(entry: Mapping[str, Any], tags: Mapping[str, str], room: int) -> Enclosed:
    path, sha256 = str(entry["path"]), str(entry["sha256"])
    if "tags" not in entry:
        return Enclosed(path, sha256, None, str(entry.get("left") or "it did not travel"))
    content = "".join(tags[name] for name in entry["tags"]).encode()
    if content and not entry.get("text"):
        # A megabyte of zeros is a kilobyte packed: never unpack more than was ever packed.
        content = zlib.decompressobj().decompress(base64.b64decode(content, validate=True), room + 1)
    if len(content) > room:
        raise ValueError(f"the files have more than {_LARGEST:,} bytes")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"the content of {path} is not what its digest says")
    return Enclosed(path, sha256, content)


def _above(paths: Sequence[str], folder: str | None) -> str:
    """The names of as many folders, the markup's own last, as the paths lead up through."""
    levels = max((PurePosixPath(path).parts.count("..") for path in paths), default=0)
    names = [name for name in PurePosixPath(folder or "").parts if _is_plain(name, 0)]
    return "/".join([*["_"] * (levels - len(names)), *names[max(0, len(names) - levels) :]] if levels else [])


def _is_plain(path: str, depth: int) -> bool:
    """Whether a path stays in its place on every system: relative, and up through no more than so many folders."""
    parts = path.split("/")
    while parts and parts[0] == "..":
        parts.pop(0)
        depth -= 1
    return depth >= 0 and parts != [] and not any(part in {"", ".", ".."} or set(part) & _NOT_PLAIN for part in parts)
