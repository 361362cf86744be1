"""The files of a prompt version on disk, where POML can read them: this process's own copy."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pomlflow.record import PromptFile
from pomlflow.template.inference import infer
from pomlflow.template.source import sha256
from pomlflow.tracking.contents import PromptContent

__all__ = ["Unpacked", "unpack"]


@dataclass(frozen=True)
class Unpacked:
    """Where the files of a version are.

    Attributes:
        root: The folder that holds all of them, and nothing else.
        folder: The markup's own folder, under it.
        files: Those that are there, by their absolute path.
        left: Why the others are not, by theirs.
    """

    root: Path
    folder: Path
    files: Mapping[Path, PromptFile]
    left: Mapping[Path, str]

    @property
    def whole(self) -> bool:
        """Whether it is still there: a system may clean up what a long-lived process has in its temporary folder."""
        return not self.files or self.folder.is_dir()

    def read(self, file: Path) -> str | None:
        """The text of one of its files; None for any other file of this machine."""
        if file not in self.files:
            return None
        with contextlib.suppress(OSError):
            return file.read_bytes().decode("utf-8", "replace")
        return None


def unpack(content: PromptContent, text: str, base_dir: Path | None) -> Unpacked:
    """Write the files of a version into a folder of their own.

    Args:
        content: The version.
        text: The markup; it may name files that the version tells nothing of.
        base_dir: Where files that did not travel are looked for; it stands for `Unpacked.root`. One that the version
            has a digest of must have it.

    Returns:
        Where they are. Nothing is written where there are none.

    Raises:
        OSError: They cannot be written.
    """
    enclosed = content.enclosures
    digests = {file.path: file.sha256 for file in enclosed.files}
    contents: dict[str, bytes] = dict(content.files)
    left: dict[str, str] = dict(content.left)
    for path in _named(text, enclosed.folder, base_dir):
        if path not in digests:
            left[path] = "the version was registered without it"
    if base_dir is not None:
        for path in list(left):
            found, why = _found(base_dir, enclosed.folder, path, digests.get(path))
            if found is None:
                left[path] += f", and {why}"
            else:
                contents[path] = found
                del left[path]
    # Absolute, and nowhere, where there are no files: a relative source must not lead to the working folder.
    root = Path(tempfile.mkdtemp(dir=_folder(), prefix="")) if contents else _folder() / "nothing"
    folder = root / enclosed.folder
    files = {}
    for path, held in contents.items():
        file = _joined(folder, path)
        if not file.is_relative_to(root):  # `opened` refuses such a version: this is the second lock
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(held)
        files[file] = PromptFile(path, digests.get(path) or sha256(file), file)
    if contents:
        folder.mkdir(parents=True, exist_ok=True)
    return Unpacked(root, folder, files, {_joined(folder, path): why for path, why in left.items()})


def _named(text: str, folder: str, base_dir: Path | None) -> list[str]:
    """The paths of the files that a markup names, relative to its folder, as far as they can be followed."""
    root = Path(os.path.abspath(os.sep)) if base_dir is None else base_dir  # noqa: PTH100
    home = root / folder
    found = infer(text, home, read=lambda file: None if base_dir is None else _text(file, base_dir))
    return [
        file.as_posix() if file in found.absolute else Path(os.path.relpath(file, home)).as_posix()
        for file in (*found.includes, *found.assets)
    ]


def _found(base_dir: Path, folder: str, path: str, digest: str | None) -> tuple[bytes | None, str]:
    """A file that did not travel, or why it is not taken from here."""
    file = _joined(base_dir / folder, path)
    # A version from elsewhere names what it likes, and is not to get this user's other files.
    if not file.resolve().is_relative_to(base_dir.resolve()):
        return None, f"{file} is not in {base_dir}"
    if not file.is_file():
        return None, f"{file} is not there"
    if digest is not None and sha256(file) != digest:
        return None, f"{file} is another file, with another digest"
    return file.read_bytes(), ""


def _text(file: Path, base_dir: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        if file.resolve().is_relative_to(base_dir.resolve()) and file.is_file():
            return file.read_bytes().decode("utf-8", "replace")
    return None


def _joined(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))


_root: tuple[int, Path] | None = None  # with the process that made it: a forked child makes its own


def _folder() -> Path:
    """This process's folder for such files."""
    global _root
    if _root is None or _root[0] != os.getpid() or not _root[1].is_dir():
        _root = os.getpid(), Path(tempfile.mkdtemp(prefix="pomlflow-prompts-")).resolve()
        atexit.register(_remove, *_root)
    return _root[1]


def _remove(owner: int, folder: Path) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
