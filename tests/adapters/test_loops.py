"""Event loops: asyncio's is not blocked, uvloop's works, and trio's works with threads."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import anyio.to_thread
import pytest
from tests.adapters.frameworks import Framework
from tests.processes import stopped_node
from tests.templates import HELLO
from tests.waiting import until

from pomlflow import engine
from pomlflow.exceptions import EngineError


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_an_async_render_does_not_block_the_event_loop(framework: Framework) -> None:
    """Node stands still until the loop lets it continue, which a blocked loop cannot."""
    prompt = framework.prompts.from_template(HELLO)
    await framework.amessages(prompt, name="Ada")
    with stopped_node():
        render = asyncio.create_task(framework.amessages(prompt, name="Bob"))
        await asyncio.to_thread(until, lambda: engine.stats().running)
        assert not render.done()
    assert await render == ["Hello Bob"]


def test_under_trio_an_async_render_is_an_error_and_threads_are_its_remedy(framework: Framework) -> None:
    """The frameworks' own methods, such as `ainvoke`, need asyncio too, and mostly fail before the prompt is called."""
    prompt = framework.prompts.from_template(HELLO)

    async def main() -> list[list[str]]:
        with pytest.raises(EngineError, match=r"await anyio\.to_thread\.run_sync"):
            await prompt.aformat_messages(name="Ada")
        calls = [
            partial(framework.messages, prompt, name="Ada"),
            partial(framework.batch, prompt, 2, handler=False, name="Ada"),
        ]
        return [await anyio.to_thread.run_sync(call) for call in calls]

    assert anyio.run(main, backend="trio") == [["Hello Ada"], ["the answer"] * 2]


def test_a_prompt_under_uvloop(framework: Framework) -> None:
    uvloop = pytest.importorskip("uvloop")
    prompt = framework.prompts.from_template(HELLO)

    async def main() -> list[str]:
        answers = await framework.abatch(prompt, 3, handler=False, name="Ada")
        return [*answers, await framework.astream(prompt, handler=False, name="Ada")]

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(main()) == ["the answer"] * 4
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
