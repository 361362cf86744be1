"""A prompt on event loops other than asyncio's own, as far as LangChain itself runs there."""

from __future__ import annotations

import anyio.to_thread
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable
from tests.langchain.trees import GIVEN, greeting, model

from pomlflow.exceptions import EngineError


@pytest.fixture
def chain() -> Runnable[dict[str, str], str]:
    return greeting() | model() | StrOutputParser()


def test_a_chain_under_trio_runs_in_a_thread(chain: Runnable[dict[str, str], str]) -> None:
    async def main() -> tuple[str, list[str]]:
        return await anyio.to_thread.run_sync(chain.invoke, GIVEN), await anyio.to_thread.run_sync(chain.batch, [GIVEN])

    assert anyio.run(main, backend="trio") == ("Hi!", ["Hi!"])


def test_an_async_render_under_trio_is_an_error_with_its_remedy() -> None:
    """LangChain's own ways, such as `ainvoke`, need asyncio too, and mostly fail before the prompt is called."""

    async def main() -> None:
        with pytest.raises(EngineError, match=r"await anyio\.to_thread\.run_sync"):
            await greeting().aformat_messages(**GIVEN)

    anyio.run(main, backend="trio")


def test_a_chain_under_uvloop(chain: Runnable[dict[str, str], str]) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> tuple[list[str], list[str]]:
        return await chain.abatch([GIVEN] * 5), [part async for part in chain.astream(GIVEN)]

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(main()) == (["Hi!"] * 5, ["H", "i", "!"])
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
