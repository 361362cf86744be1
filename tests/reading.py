"""A secret file that no prompt may read, and paths that try to reach it, for the tests of both frameworks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.templates import write

from pomlflow import RenderError, engine, settings
from pomlflow.template import Template
from pomlflow.tracking.versions import register

SECRET = "the neighbour's secret"
DOCUMENT = '<poml><document src="{{path}}" parser="txt"/></poml>'
# {home} is the prompt's own folder, {other} the one with the secret.
WAYS = {
    "an absolute path": "{other}/secret.txt",
    "two dots": "../other/secret.txt",
    "two dots within": "{home}/../other/secret.txt",
    "a link to the file": "link.txt",
    "a link to its folder": "folder/secret.txt",
    "a link in another folder": "{other}/link.txt",
    "a URL": "file://{other}/secret.txt",
    "a URL of a host": "file://localhost{other}/secret.txt",
    "a URL with escapes": "file://{other}/%73ecret.txt",
    "the process": "/proc/self/cwd/../other/secret.txt",
    "the process's environment": "/proc/self/environ",
    "a descriptor": "/dev/fd/0",
}
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and /proc")


@dataclass(frozen=True)
class Place:
    """Where the tests' files are.

    Attributes:
        home: A prompt's own folder, with `note.txt`, and links that lead out of it.
        other: The folder with the secret, and a `note.txt` of its own.
    """

    home: Path
    other: Path

    def path(self, way: str) -> str:
        """Return the value of a variable that leads to the secret in this way."""
        return way.format(home=self.home, other=self.other)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The files, a working folder next to them, and one Node process for all prompts."""
    monkeypatch.setenv("POMLFLOW_MAX_WORKERS", "1")
    monkeypatch.setattr(settings, "_current", None)
    if engine.stats().workers > 1:
        engine.close()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    home, other = tmp_path / "home", tmp_path / "other"
    write(home / "note.txt", "the home's note")
    write(home / "prompt.poml", DOCUMENT)
    write(other / "note.txt", "the other's note")
    write(other / "prompt.poml", DOCUMENT)
    write(other / "secret.txt", SECRET)
    link(home, other)
    (other / "link.txt").symlink_to(other / "secret.txt")
    return Place(home, other)


def link(folder: Path, other: Path) -> None:
    """Put links into a folder that lead to the secret."""
    (folder / "link.txt").symlink_to(other / "secret.txt")
    (folder / "folder").symlink_to(other)


def publish_reader(name: str, home: Path) -> None:
    """Register a prompt that takes `note.txt` along, and reads what a variable names."""
    source = '<poml><document src="note.txt" parser="txt"/><document src="{{path}}" parser="txt"/></poml>'
    register(Template(source, name=name, base_dir=home), alias="production")


@contextmanager
def refused(words: str, way: str = "") -> Iterator[None]:
    """Assert that reading fails with `words`, and without the secret. A file: URL is not found."""
    with pytest.raises(RenderError, match="ENOENT: no such file" if way.startswith("file:") else words) as caught:
        yield
    assert SECRET not in str(caught.value)
