"""A prompt on event loops other than asyncio's own, as far as LlamaIndex supports them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

import anyio.to_thread
from tests.llama_index.traces import FOREIGN_WARNINGS

from pomlflow.llama_index import PomlPromptTemplate

pytestmark = FOREIGN_WARNINGS


@pytest.fixture
def prompt() -> PomlPromptTemplate:
    return PomlPromptTemplate("<p>{{context_str}} {{query_str}}</p>", name="qa")


def test_a_query_under_trio_runs_in_a_thread(index: Any, scripted: Any, prompt: PomlPromptTemplate) -> None:
    engine = index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt)

    async def main() -> tuple[str, str]:
        messages = await anyio.to_thread.run_sync(partial(prompt.format_messages, context_str="a", query_str="b"))
        return str(messages[0].content), str(await anyio.to_thread.run_sync(engine.query, "What?"))

    assert anyio.run(main, backend="trio") == ("a b", "Fine.")


def test_a_query_under_uvloop(index: Any, scripted: Any, prompt: PomlPromptTemplate) -> None:
    uvloop = pytest.importorskip("uvloop")
    engine = index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt)

    async def main() -> list[str]:
        return [str(await engine.aquery("What?")) for _ in range(3)]

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(main()) == ["Fine."] * 3
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
