"""A template as it is at one moment: its markup, what that takes, and the files that it names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pomlflow.record import PromptFile
from pomlflow.template.inference import Inference

__all__ = ["Origin", "Snapshot", "prompt_files", "sha256", "stamp", "stamps"]


@dataclass(frozen=True)
class Snapshot:
    """A template as it is at one moment.

    Attributes:
        source: The markup.
        digest: What the content is known by: `pomlflow.record.content_digest` of the markup and `files`.
        inference: What it takes.
        folder: The folder that relative sources are resolved against.
        stamps: Of each file, what its metadata said before it was read.
        files: The files that the markup names, includes first.
        path: The markup's own file, absolute; None for markup that is in none.
        relative: The same, relative to the prompt root.
        version: The number of the version in a registry that it is; None for all others.
        uri: The same as ``prompts:/name/version``.
        roots: The only folders that it may read; None for trusted markup, which may read what the user's settings say.
        missing: Why a file that it names is not there, by its absolute path.
        register: False where it must never become a version of its own.
    """

    source: str
    digest: str
    inference: Inference
    folder: Path
    stamps: tuple[tuple[Path, object], ...] = ()
    files: tuple[PromptFile, ...] = ()
    path: Path | None = None
    relative: str | None = None
    version: int | None = None
    uri: str | None = None
    roots: tuple[str, ...] | None = None
    missing: tuple[tuple[str, str], ...] = ()
    register: bool | None = None


class Origin(Protocol):
    """Where a template comes from that is neither a file nor given markup: a prompt in a registry.

    Attributes:
        name: The prompt's name there.
        uri: What was asked for: ``prompts:/name@alias`` or ``prompts:/name/3``.
        refresh: Seconds between looks whether that is another version by now.
    """

    name: str
    uri: str
    refresh: float

    def current(self) -> Snapshot:
        """Give the template as it is now, at once, the same object for as long as it does not change."""


def prompt_files(inference: Inference, folder: Path) -> tuple[PromptFile, ...]:
    """Read what a markup names.

    Args:
        inference: Of the markup.
        folder: Where the markup is at home.

    Returns:
        Its includes, then its other files; a file that is not there has the digest of an empty one.
    """
    return tuple(
        PromptFile(file.as_posix() if file in inference.absolute else _shown(file, folder), sha256(file), file, folder)
        for file in (*inference.includes, *inference.assets)
    )


def stamp(file: Path) -> object:
    """What a file's metadata says; something else when it has changed, and None when it is not there."""
    try:
        at = os.stat(file)  # noqa: PTH116 - half the cost of Path.stat
    except (OSError, ValueError):  # ValueError: a null character in an include's path
        return None
    return at.st_mtime_ns, at.st_ctime_ns, at.st_size, at.st_ino  # the second tells where a copy sets the first back


def stamps(files: Iterable[Path]) -> dict[Path, object]:
    """The stamps of files, by file."""
    return {file: stamp(file) for file in files}


def sha256(file: Path) -> str:
    """SHA-256, in hexadecimal, of what a file holds; of nothing where it is not there, or is a folder."""
    return _sha256(file, stamp(file))


@lru_cache(maxsize=1024)  # frameworks copy templates often, and a document may be large
def _sha256(file: Path, _stamp: object) -> str:
    digest = hashlib.sha256()
    try:
        if file.is_file():  # never a pipe or a device
            with file.open("rb") as content:
                while piece := content.read(1 << 20):
                    digest.update(piece)
    except (OSError, ValueError):
        return hashlib.sha256().hexdigest()
    return digest.hexdigest()


def _shown(file: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive
        return file.name
