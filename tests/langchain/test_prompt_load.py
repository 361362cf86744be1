"""A batch of prompts uses as many Node processes as are allowed, and each item is its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from pomlflow import engine
from pomlflow.langchain import PomlPromptTemplate
from pomlflow.settings import settings

MANY = [{"n": number} for number in range(200)]
SHOWN = [f"Item {number}" for number in range(200)]


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), max_workers=2))
    engine.close()
    engine.prewarm(2)
    yield
    engine.close()


@pytest.fixture
def prompt() -> PomlPromptTemplate:
    return PomlPromptTemplate.from_template("<p>Item {{n}}</p>")


def lent() -> set[int]:
    """The processes that have rendered: only they have told their memory."""
    return {process.pid for process in engine._engine.pool._all if process.memory}


def test_a_batch_uses_the_whole_pool(prompt: PomlPromptTemplate) -> None:
    assert [value.to_messages()[0].content for value in prompt.batch(MANY, {"max_concurrency": 8})] == SHOWN
    assert len(lent()) == 2


async def test_an_async_batch_uses_the_whole_pool(prompt: PomlPromptTemplate) -> None:
    assert [value.to_messages()[0].content for value in await prompt.abatch(MANY)] == SHOWN
    assert len(lent()) == 2
