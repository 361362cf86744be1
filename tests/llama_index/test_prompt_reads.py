"""LlamaIndex's prompts read what they may, whatever a variable names: out of a registry, of a file, and inline."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from tests.llama_index.traces import FOREIGN_WARNINGS
from tests.reading import DOCUMENT, Place, link, place, posix, publish_reader, refused, ways

import pomlflow
from pomlflow import engine
from pomlflow.llama_index import PomlPromptTemplate

__all__ = ["place"]
pytestmark = [*FOREIGN_WARNINGS, posix]
NOT_TRUSTED = "this template is not trusted and may read"
NOT_ALLOWED = r"may not be read.*allow_read=.*sandbox=False"


def own(folder: Path, *, inline: bool = False) -> PomlPromptTemplate:
    """The prompt of a folder."""
    if inline:
        return PomlPromptTemplate.from_template(DOCUMENT, base_dir=folder)
    return PomlPromptTemplate.from_file(folder / "prompt.poml")


def text(prompt: PomlPromptTemplate, path: str) -> str:
    """Render to one text."""
    return "\n".join(str(message.content) for message in prompt.format_messages(path=path))


async def atext(prompt: PomlPromptTemplate, path: str) -> str:
    """Render to one text, on an event loop."""
    return "\n".join(str(message.content) for message in await prompt.aformat_messages(path=path))


@pytest.fixture
def registered(mlflow_store: str, place: Place) -> PomlPromptTemplate:
    """A prompt out of the registry, with links to the secret among its files, should anybody have put them there."""
    name = f"{place.home.parent.name}-{os.getpid()}"
    publish_reader(name, place.home)
    prompt = PomlPromptTemplate.from_registry(f"prompts:/{name}@production")
    [root] = prompt._core.current().roots
    link(Path(root), place.other)
    return prompt


@ways
def test_a_prompt_of_the_registry_reads_no_secret(registered: Any, place: Place, way: str) -> None:
    """Not even where the user allows it to prompts of his own."""
    pomlflow.configure(allow_read=[place.other])
    with refused(NOT_TRUSTED, way):
        text(registered, place.path(way))


def test_a_prompt_of_the_registry_reads_what_came_along_and_nothing_that_lies_here(
    registered: Any, place: Place
) -> None:
    assert text(registered, "note.txt").split("\n") == ["the home's note"] * 2
    (Path.cwd() / "here.txt").write_text("of the working folder", encoding="utf-8")
    for path in (Path.cwd() / "here.txt", place.home / "note.txt"):
        with refused(NOT_TRUSTED):
            text(registered, str(path))


@ways
@pytest.mark.parametrize("inline", [False, True])
def test_a_prompt_of_ones_own_reads_no_secret(place: Place, way: str, inline: bool) -> None:
    prompt = own(place.home, inline=inline)
    assert text(prompt, "note.txt") == "the home's note"
    with refused(NOT_ALLOWED, way):
        text(prompt, place.path(way))


def test_each_prompt_has_its_own_folders_in_one_process(registered: Any, place: Place) -> None:
    """In turns, in threads and in tasks at once: a prompt reads its own, and is refused every other's."""
    prompts = [own(place.home), own(place.other, inline=True), own(place.other), registered]
    notes = {place.home / "note.txt": "the home's note", place.other / "note.txt": "the other's note"}

    def allowed(prompt: Any, file: Path) -> bool:
        return prompt is not registered and (file.parent == place.home) == (prompt is prompts[0])

    def one(number: int) -> None:
        prompt, (file, note) = prompts[number % 4], [*notes.items()][number // 4 % 2]
        if allowed(prompt, file):
            assert text(prompt, str(file)) == note
        else:
            with refused("may not be read"):
                text(prompt, str(file))

    async def task(number: int) -> None:
        prompt, (file, note) = prompts[number % 4], [*notes.items()][number // 4 % 2]
        if allowed(prompt, file):
            assert await atext(prompt, str(file)) == note
        else:
            with refused("may not be read"):
                await atext(prompt, str(file))

    async def tasks() -> None:
        await asyncio.gather(*map(task, range(24)))

    one(0)
    [process] = engine._engine.pool._all
    for number in range(8):
        one(number)
    with ThreadPoolExecutor(4) as threads:
        running = threads.submit(asyncio.run, tasks())
        list(threads.map(one, range(24)))
        running.result()
    assert engine._engine.pool._all == {process}
