"""A variable cannot make a prompt read files outside of its folder: from a registry, from a file, and inline."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.frameworks import Framework
from tests.templates import write

import pomlflow
from pomlflow import RenderError, engine
from pomlflow.template import Template
from pomlflow.tracking.versions import register

SECRET = "the secret"
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
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and /proc")
NOT_TRUSTED = "this template is not trusted and may read"
NOT_ALLOWED = r"may not be read.*allow_read=.*sandbox=False"


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
    pomlflow.configure(max_workers=1)
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


@contextmanager
def refused(words: str, way: str = "") -> Iterator[pytest.ExceptionInfo[RenderError]]:
    """Assert that the block's render fails with `words`, and without the secret; POML finds no file at a file: URL."""
    with pytest.raises(RenderError, match="ENOENT: no such file" if way.startswith("file:") else words) as caught:
        yield caught
    assert SECRET not in str(caught.value)


def own(framework: Framework, folder: Path, *, inline: bool = False) -> Any:
    """The prompt of a folder."""
    if inline:
        return framework.prompts.from_template(DOCUMENT, base_dir=folder)
    return framework.prompts.from_file(folder / "prompt.poml")


@pytest.fixture
def registered(framework: Framework, mlflow_store: str, place: Place) -> Any:
    """A prompt from the registry with a file of its own, `note.txt`, and links to the secret next to it."""
    name = f"{place.home.parent.name}-{os.getpid()}"
    source = '<poml><document src="note.txt" parser="txt"/><document src="{{path}}" parser="txt"/></poml>'
    register(Template(source, name=name, base_dir=place.home), alias="production")
    prompt = framework.prompts.from_registry(f"prompts:/{name}@production")
    with refused(NOT_TRUSTED) as refusal:
        framework.text(prompt, path=str(place.home))
    [root] = re.findall(r"may read '(.+?)'", str(refusal.value))
    link(Path(root), place.other)
    return prompt


def test_a_prompt_of_the_registry_reads_no_secret(framework: Framework, registered: Any, place: Place) -> None:
    """Not even where the user allows it to their own prompts."""
    pomlflow.configure(allow_read=[place.other])
    for way in WAYS.values():
        with refused(NOT_TRUSTED, way) as refusal:
            framework.text(registered, path=place.path(way))
        assert refusal.value.line == 1, way


def test_a_prompt_of_the_registry_reads_its_own_files_and_no_others(
    framework: Framework, registered: Any, place: Place
) -> None:
    assert framework.text(registered, path="note.txt").split("\n") == ["the home's note"] * 2
    (Path.cwd() / "here.txt").write_text("of the working folder", encoding="utf-8")
    for path in (Path.cwd() / "here.txt", place.home / "note.txt"):
        with refused(NOT_TRUSTED):
            framework.text(registered, path=str(path))


@pytest.mark.parametrize("inline", [False, True])
def test_a_users_own_prompt_reads_no_secret(framework: Framework, place: Place, inline: bool) -> None:
    prompt = own(framework, place.home, inline=inline)
    assert framework.text(prompt, path="note.txt") == "the home's note"
    for way in WAYS.values():
        with refused(NOT_ALLOWED, way):
            framework.text(prompt, path=place.path(way))


def test_each_prompt_has_its_own_folders_in_a_shared_process(
    framework: Framework, registered: Any, place: Place
) -> None:
    """In turns, in threads and in tasks at once: a prompt reads its own, and is refused every other's."""
    prompts = [
        own(framework, place.home),
        own(framework, place.other, inline=True),
        own(framework, place.other),
        registered,
    ]
    notes = {place.home / "note.txt": "the home's note", place.other / "note.txt": "the other's note"}

    folders = [place.home, place.other, place.other, None]

    def case(number: int) -> tuple[Any, str, Any]:
        """A prompt, a path, and a context that yields the expected text or asserts the refusal."""
        index, (file, note) = number % 4, [*notes.items()][number // 4 % 2]
        allowed = file.parent == folders[index]
        return prompts[index], str(file), nullcontext(note) if allowed else refused("may not be read")

    def one(number: int) -> None:
        prompt, path, expected = case(number)
        with expected as note:
            assert framework.messages(prompt, path=path) == [note]

    async def task(number: int) -> None:
        prompt, path, expected = case(number)
        with expected as note:
            assert await framework.amessages(prompt, path=path) == [note]

    async def tasks() -> None:
        await asyncio.gather(*map(task, range(24)))

    restarted = engine.stats().restarted
    for number in range(8):
        one(number)
    with ThreadPoolExecutor(4) as threads:
        running = threads.submit(asyncio.run, tasks())
        list(threads.map(one, range(24)))
        running.result()
    stats = engine.stats()
    assert stats.workers <= 2  # max_workers is 1; prompts of the registry may have a process of their own
    assert stats.restarted == restarted
