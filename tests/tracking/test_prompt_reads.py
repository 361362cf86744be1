"""Both frameworks' prompts read what they may, whatever a variable names: out of a registry, of a file, and inline."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.langchain.trees import QUIET
from tests.llama_index.traces import FOREIGN_WARNINGS
from tests.reading import DOCUMENT, Place, link, place, posix, publish_reader, refused, ways

import pomlflow
from pomlflow import engine

__all__ = ["place"]
pytestmark = [*QUIET, *FOREIGN_WARNINGS, posix]
NOT_TRUSTED = "this template is not trusted and may read"
NOT_ALLOWED = r"may not be read.*allow_read=.*sandbox=False"


class Framework(NamedTuple):
    """A framework's prompts, and how one is rendered to its messages."""

    prompts: Any
    messages: Callable[[Any, str], list[Any]]
    amessages: Callable[[Any, str], Awaitable[list[Any]]]

    def own(self, folder: Path, *, inline: bool = False) -> Any:
        """The prompt of a folder."""
        if inline:
            return self.prompts.from_template(DOCUMENT, base_dir=folder)
        return self.prompts.from_file(folder / "prompt.poml")

    def text(self, prompt: Any, path: str) -> str:
        """Render to one text."""
        return "\n".join(str(message.content) for message in self.messages(prompt, path))

    async def atext(self, prompt: Any, path: str) -> str:
        """Render to one text, on an event loop."""
        return "\n".join(str(message.content) for message in await self.amessages(prompt, path))


@pytest.fixture(params=["langchain", "llama_index"])
def framework(request: pytest.FixtureRequest) -> Framework:
    if request.param == "llama_index":
        from pomlflow.llama_index import PomlPromptTemplate as LlamaIndex

        return Framework(
            LlamaIndex,
            lambda prompt, path: prompt.format_messages(path=path),
            lambda prompt, path: prompt.aformat_messages(path=path),
        )
    from pomlflow.langchain import PomlPromptTemplate as LangChain

    async def ainvoke(prompt: Any, path: str) -> list[Any]:
        return list((await prompt.ainvoke({"path": path})).to_messages())

    return Framework(LangChain, lambda prompt, path: prompt.invoke({"path": path}).to_messages(), ainvoke)


@pytest.fixture
def registered(framework: Framework, mlflow_store: str, place: Place) -> Any:
    """A prompt out of the registry, with links to the secret among its files, should anybody have put them there."""
    name = f"{place.home.parent.name}-{os.getpid()}"
    publish_reader(name, place.home)
    prompt = framework.prompts.from_registry(f"prompts:/{name}@production")
    [root] = prompt._core.current().roots
    link(Path(root), place.other)
    return prompt


@ways
def test_a_prompt_of_the_registry_reads_no_secret(
    framework: Framework, registered: Any, place: Place, way: str
) -> None:
    """Not even where the user allows it to prompts of his own."""
    pomlflow.configure(allow_read=[place.other])
    with refused(NOT_TRUSTED, way):
        framework.text(registered, place.path(way))


def test_a_prompt_of_the_registry_reads_what_came_along_and_nothing_that_lies_here(
    framework: Framework, registered: Any, place: Place
) -> None:
    assert framework.text(registered, "note.txt").split("\n") == ["the home's note"] * 2
    (Path.cwd() / "here.txt").write_text("of the working folder", encoding="utf-8")
    for path in (Path.cwd() / "here.txt", place.home / "note.txt"):
        with refused(NOT_TRUSTED):
            framework.text(registered, str(path))


@ways
@pytest.mark.parametrize("inline", [False, True])
def test_a_prompt_of_ones_own_reads_no_secret(framework: Framework, place: Place, way: str, inline: bool) -> None:
    prompt = framework.own(place.home, inline=inline)
    assert framework.text(prompt, "note.txt") == "the home's note"
    with refused(NOT_ALLOWED, way):
        framework.text(prompt, place.path(way))


def test_each_prompt_has_its_own_folders_in_one_process(framework: Framework, registered: Any, place: Place) -> None:
    """In turns, in threads and in tasks at once: a prompt reads its own, and is refused every other's."""
    prompts = [
        framework.own(place.home),
        framework.own(place.other, inline=True),
        framework.own(place.other),
        registered,
    ]
    notes = {place.home / "note.txt": "the home's note", place.other / "note.txt": "the other's note"}

    def allowed(prompt: Any, file: Path) -> bool:
        return prompt is not registered and (file.parent == place.home) == (prompt is prompts[0])

    def one(number: int) -> None:
        prompt, (file, note) = prompts[number % 4], [*notes.items()][number // 4 % 2]
        if allowed(prompt, file):
            assert framework.text(prompt, str(file)) == note
        else:
            with refused("may not be read"):
                framework.text(prompt, str(file))

    async def task(number: int) -> None:
        prompt, (file, note) = prompts[number % 4], [*notes.items()][number // 4 % 2]
        if allowed(prompt, file):
            assert await framework.atext(prompt, str(file)) == note
        else:
            with refused("may not be read"):
                await framework.atext(prompt, str(file))

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
