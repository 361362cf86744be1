"""Concurrent renders use all allowed Node processes, and each result is its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.adapters.frameworks import Framework

pytestmark = pytest.mark.usefixtures("two_workers")
# Each process by its start time: the second started after the first was ready.
ITEM = "<p>Item {{n}}</p><p>{{ Date.now() - globalThis.process.uptime() * 1000 }}</p>"


def assert_two_processes(texts: list[str]) -> None:
    items, starts = zip(*(text.split("\n\n") for text in texts), strict=True)
    assert list(items) == [f"Item {n}" for n in range(200)]
    assert max(map(float, starts)) - min(map(float, starts)) > 50


def test_renders_of_many_threads_use_the_whole_pool(framework: Framework) -> None:
    prompt = framework.prompts.from_template(ITEM)
    with ThreadPoolExecutor(8) as threads:
        assert_two_processes([text for [text] in threads.map(lambda n: framework.messages(prompt, n=n), range(200))])


async def test_renders_of_many_tasks_use_the_whole_pool(framework: Framework) -> None:
    prompt = framework.prompts.from_template(ITEM)
    found = await asyncio.gather(*(framework.amessages(prompt, n=n) for n in range(200)))
    assert_two_processes([text for [text] in found])
