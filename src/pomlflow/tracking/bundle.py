"""The files that are stored with a prompt version: packed into its tags, and extracted to a folder.

A version's text is the prompt's source as its author wrote it. The files that it names with ``src=`` are stored in
tags, since MLflow has no artifacts for prompt versions (mlflow 3.12 to 3.18), and storage outside of the version would
have permissions, backups and a lifetime of its own.

================  ====================================================================================================
``poml_files``    a JSON object: ``folder`` (see `Bundle`) and ``files``, in the order of the digest, each with ``path``
                  and ``sha256``. A stored file has ``size`` in bytes, ``tags``, the names of the tags with its content,
                  and ``text``, whether that is plain text. An omitted file has ``left``, the reason.
``poml_file_<n>`` the content of a file: plain text, which MLflow's page shows, or a piece of the base64 of its
                  zlib-compressed bytes
================  ====================================================================================================
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pomlflow.engine.file_access import is_under, read_file, trusted_roots
from pomlflow.record import PromptFile
from pomlflow.settings import settings
from pomlflow.tracking.background import RejectedError

FILES_TAG: Final = "poml_files"
_CONTENT_TAG: Final = "poml_file_"
# Characters of one tag. MLflow's limit is 100,000 (mlflow.utils.validation), MySQL's TEXT 65,535 bytes.
_MAX_TAG: Final = 60_000
# Characters of all files of one version: MLflow sends all tags with every version that it lists or finds.
_MAX_PACKED: Final = 500_000
_MAX_UNPACKED: Final = 20_000_000  # bytes of all files of a version, uncompressed
_NOT_PORTABLE: Final = frozenset('\\:*?"<>|\0')  # characters that Windows allows in no name
_NOWHERE: Final = Path(os.sep).absolute() / "<no files>"


@dataclass(frozen=True)
class BundledFile:
    """A file of a prompt version: its path relative to the markup's folder, and the content or why it is omitted."""

    path: str
    sha256: str
    content: bytes | None = None
    omitted: str = ""


@dataclass(frozen=True)
class Bundle:
    """All files of a prompt version, in the order of the digest."""

    files: tuple[BundledFile, ...] = ()
    folder: str = ""  # the markup's folder below the root of the extracted files, which a ``..`` must not leave

    @property
    def contents(self) -> dict[str, bytes]:
        """The contents of the stored files, by path."""
        return {file.path: file.content for file in self.files if file.content is not None}

    @property
    def omitted(self) -> dict[str, str]:
        """Why the other files were omitted, by path."""
        return {file.path: file.omitted for file in self.files if file.content is None}


class ExtractedFiles:
    """The files of a prompt version in a temporary folder, which is made only if there may be files.

    A file that was not stored is copied from `base_dir`, which has the layout of `root`, when it is looked up.
    """

    def __init__(self, bundle: Bundle, base_dir: Path | None) -> None:
        # Without files, a folder that does not exist: else relative sources would be read from the working folder.
        self.root = _temporary_folder() if bundle.contents or base_dir else _NOWHERE
        self.folder = self.root / bundle.folder
        self.files: dict[Path, PromptFile] = {}
        self._base_dir = base_dir
        self._stored = {file.path: file for file in bundle.files}
        for path, content in bundle.contents.items():
            self._write(Path(os.path.normpath(self.folder / path)), path, content)
        if self.files:
            self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, file: Path) -> str | None:
        """Return the text of one of the files; None for any other file of this machine."""
        with contextlib.suppress(OSError):
            return None if self.provide(file) else file.read_bytes().decode("utf-8-sig", "replace")
        return None

    def provide(self, file: Path) -> str:
        """Provide a file that the markup names, from `base_dir` if it was not stored; return why that failed, or ""."""
        if file in self.files:
            return ""
        path = Path(os.path.relpath(file, self.folder)).as_posix()
        stored = self._stored.get(path) or self._stored.get(file.as_posix())  # the markup may name it absolutely
        why = "the version was registered without it" if stored is None else stored.omitted or "it was not stored"
        if self._base_dir is None or not file.is_relative_to(self.root):
            return why
        source = self._base_dir / file.relative_to(self.root)
        # A version may name any file of this machine.
        if not _is_within(source, [self._base_dir]) or (content := read_file(source)) is None:
            return f"{why}, and {source} is not a file in {self._base_dir}"
        if stored is not None and stored.sha256 != _digest(content):
            return f"{why}, and {source} is another file, with another digest"
        self._write(file, path, content)
        return ""

    def _write(self, file: Path, path: str, content: bytes) -> None:
        if file.is_relative_to(self.root):  # `unpack` refuses a version with other paths already
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            self.files[file] = PromptFile(path, _digest(content), file)


def pack(files: Sequence[PromptFile], folder: str | None) -> dict[str, str]:
    """Return the tags that store a markup's files; raise a `RejectedError` if one has changed since the render."""
    if not files:
        return {}
    tags: dict[str, str] = {}
    entries: list[dict[str, Any]] = []
    remaining_bytes = _MAX_UNPACKED
    for file in files:
        entry: dict[str, Any] = {"path": file.path, "sha256": file.sha256}
        entries.append(entry)
        content, omitted = _read(file)
        is_text, pieces = _split(content)
        if not omitted and (len(content) > remaining_bytes or sum(map(len, (*tags.values(), *pieces))) > _MAX_PACKED):
            omitted = (
                f"it has {len(content):,} bytes; all files of a version are limited to {_MAX_UNPACKED:,}, and to "
                f"{_MAX_PACKED:,} characters as they are stored"
            )
        if omitted:
            entry["left"] = omitted
            continue
        remaining_bytes -= len(content)
        names = [f"{_CONTENT_TAG}{len(tags) + number}" for number in range(1, len(pieces) + 1)]
        tags.update(zip(names, pieces, strict=True))
        entry |= {"size": len(content), "text": is_text, "tags": names}
    paths = [file.path for file in files if _is_portable(file.path, sys.maxsize)]
    index = {"folder": _parent_folders(paths, folder), "files": entries}
    return {FILES_TAG: json.dumps(index, ensure_ascii=False), **tags}


def unpack(tags: Mapping[str, str]) -> Bundle:
    """Return the files that a version's tags hold; raise a ValueError if the tags are damaged."""
    if FILES_TAG not in tags:
        return Bundle()
    try:
        index = json.loads(tags[FILES_TAG])
        folder, files, remaining_bytes = str(index["folder"]), [], _MAX_UNPACKED
        for entry in index["files"]:
            file = _bundled(entry, tags, remaining_bytes)
            remaining_bytes -= len(file.content or b"")
            files.append(file)
    except (KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"the tag {FILES_TAG} cannot be read: {error!r}") from error
    bundle, depth = Bundle(tuple(files), folder), len(PurePosixPath(folder).parts)
    for path, levels in ((folder or "_", 0), *((path, depth) for path in bundle.contents)):
        if not _is_portable(path, levels):
            raise ValueError(f"the path {path!r} in the tag {FILES_TAG} leads out of its folder")
    return bundle


def _read(file: PromptFile) -> tuple[bytes, str]:
    """Return a file's content, and the reason why it must be omitted, or ""."""
    if PurePosixPath(file.path).is_absolute():
        return b"", "its path is absolute, and valid on one machine only: write it relative to the prompt"
    if not _is_portable(file.path, sys.maxsize):
        return b"", "its name has characters that are not valid on every system"
    # Without this, a prompt could put any file of the user who registers it into the registry.
    if settings().sandbox and not _is_within(file.location, trusted_roots(file.folder)):
        return b"", "templates may not read this folder (pomlflow.configure(allow_read=…))"
    content = read_file(file.location)
    if _digest(content or b"") != file.sha256:  # the next render has the new content, with another digest
        raise RejectedError(f"{file.path} changed while its prompt was being registered")
    return content or b"", "it was not there, or is a folder" if content is None else ""


def _is_within(file: Path, folders: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether a file is under one of the folders, with links resolved."""
    with contextlib.suppress(OSError, ValueError):
        return is_under(os.path.realpath(file), [os.path.realpath(folder) for folder in folders])
    return False


def _split(content: bytes) -> tuple[bool, list[str]]:
    """Return whether a content is stored as plain text, and its tag values: that text, or pieces of packed base64."""
    if not content:
        return False, []
    with contextlib.suppress(UnicodeDecodeError):
        if len(content) <= _MAX_TAG and b"\0" not in content:  # PostgreSQL refuses null characters
            return True, [content.decode()]
    packed = base64.b64encode(zlib.compress(content, 9)).decode()
    return False, [packed[at : at + _MAX_TAG] for at in range(0, len(packed), _MAX_TAG)]


def _bundled(entry: Mapping[str, Any], tags: Mapping[str, str], remaining_bytes: int) -> BundledFile:
    path, digest = str(entry["path"]), str(entry["sha256"])
    if "tags" not in entry:
        return BundledFile(path, digest, None, str(entry.get("left") or "it was not stored"))
    content = "".join(tags[name] for name in entry["tags"]).encode()
    if content and not entry.get("text"):
        # A kilobyte may unpack to a megabyte: stop one byte above the limit.
        content = zlib.decompressobj().decompress(base64.b64decode(content, validate=True), remaining_bytes + 1)
    if len(content) > remaining_bytes:
        raise ValueError(f"the files have more than {_MAX_UNPACKED:,} bytes")
    if _digest(content) != digest:
        raise ValueError(f"the content of {path} does not match its digest")
    return BundledFile(path, digest, content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parent_folders(paths: Sequence[str], folder: str | None) -> str:
    """Return `Bundle.folder` for these paths: the last parts of the folder, one for each ``..``; ``_`` if unknown."""
    levels = max((PurePosixPath(path).parts.count("..") for path in paths), default=0)
    names = [name for name in PurePosixPath(folder or "").parts if _is_portable(name, 0)]
    return "/".join([*["_"] * (levels - len(names)), *names[max(0, len(names) - levels) :]])


def _is_portable(path: str, levels: int) -> bool:
    """Whether a path is valid and relative on every system, and has at most `levels` leading ``..``."""
    parts = path.split("/")
    while parts and parts[0] == "..":
        parts.pop(0)
        levels -= 1
    return (
        levels >= 0 and parts != [] and not any(part in {"", ".", ".."} or set(part) & _NOT_PORTABLE for part in parts)
    )


def _temporary_folder() -> Path:
    """Make a folder that this process removes at its exit; a forked child leaves it to its parent."""
    folder = Path(tempfile.mkdtemp(prefix="pomlflow-prompt-")).resolve()
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
