"""Concurrent renders use all allowed Node processes, and each result is its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pomlflow import engine
from pomlflow.llama_index import PomlPromptTemplate
from pomlflow.settings import settings


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), max_workers=2))
    engine.close()
    engine.prewarm(2)
    yield
    engine.close()


def test_queries_of_many_threads_use_the_whole_pool() -> None:
    # When its process was started, in milliseconds: one was started after the other was ready.
    prompt = PomlPromptTemplate("<p>Item {{n}}</p><p>{{ Date.now() - globalThis.process.uptime() * 1000 }}</p>")
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda n: prompt.format_messages(n=n)[0].content, range(200)))
    shown, births = zip(*(text.split("\n\n") for text in texts), strict=True)
    assert list(shown) == [f"Item {n}" for n in range(200)]
    assert max(map(float, births)) - min(map(float, births)) > 50
