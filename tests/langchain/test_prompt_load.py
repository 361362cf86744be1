"""An async batch of any size is rendered, and each item has its own config and result."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.runnables import RunnableConfig, RunnablePassthrough
from tests.langchain.prompts import RunRecorder

import pomlflow
from pomlflow import engine
from pomlflow.exceptions import MissingVariableError
from pomlflow.langchain import PomlPromptTemplate

pytestmark = pytest.mark.usefixtures("two_workers")
MANY = [{"n": number} for number in range(200)]
SHOWN = [f"Item {number}" for number in range(200)]


@pytest.fixture
def prompt() -> PomlPromptTemplate:
    return PomlPromptTemplate.from_template("<p>Item {{n}}</p>")


@pytest.mark.parametrize("way", ["prompt", "chain", "bound", "retried"])
async def test_an_async_batch_of_more_than_may_wait_is_rendered(prompt: PomlPromptTemplate, way: str) -> None:
    """LangChain awaits all items at once; another render comes between."""
    pomlflow.configure(max_queue=20)
    ways = {
        "chain": prompt | RunnablePassthrough(),
        "bound": prompt.with_config(tags=["x"]),
        "retried": prompt.with_retry(),
    }
    batch = asyncio.create_task(ways.get(way, prompt).abatch(MANY, {"max_concurrency": 1000}))
    while not (engine.stats().waiting or batch.done()):  # noqa: ASYNC110 - what is waited for happens in another thread
        await asyncio.sleep(0)
    assert (await prompt.ainvoke({"n": "between"})).to_messages()[0].content == "Item between"
    assert [value.to_messages()[0].content for value in await batch] == SHOWN
    assert engine.stats().refused == 0


async def test_each_item_of_an_async_batch_has_its_own_config(prompt: PomlPromptTemplate) -> None:
    seen = RunRecorder()
    configs: list[RunnableConfig] = [{"tags": [str(n)], "callbacks": [seen]} for n in range(20)]
    results = await prompt.abatch([*MANY[:19], {}], configs, return_exceptions=True)
    assert [value.to_messages()[0].content for value in results[:19]] == SHOWN[:19]
    assert isinstance(results[19], MissingVariableError)
    assert sorted(run["tags"] for run in seen.started) == sorted([str(n)] for n in range(20))
