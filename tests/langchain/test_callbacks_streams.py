"""Streams that are not read to their end, calls that are cancelled, and what a reader does between two chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import mlflow
import pytest
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from mlflow.entities import Trace
from tests.langchain.trees import CHAIN, GIVEN, Broken, atraced, chain, greeting, traced, trees, wait_for_traces

from pomlflow.langchain import PomlCallbackHandler

pytestmark = pytest.mark.usefixtures("sync_export")
Fetch = Callable[[], list[Trace]]

CANCELLED = """\
RunnableSequence CHAIN ERROR
  Stuck CHAT_MODEL ERROR
  greet CHAIN
    poml greet PROMPT
"""


class Stuck(Broken):
    """A model that never answers; `called` is set when it is called."""

    called: Any = None

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.called.set()
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
def background(sync_export: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's default, which takes seconds to flush; with it a trace can be lost if its root ends before its parts."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")


@pytest.fixture
def handler() -> PomlCallbackHandler:
    return PomlCallbackHandler(register=False)


def test_a_stream_whose_reader_breaks_off_is_stored_and_is_no_error(
    handler: PomlCallbackHandler, stored_traces: Fetch
) -> None:
    for _ in chain().stream(GIVEN, {"callbacks": [handler]}):
        break
    assert mlflow.get_current_active_span() is None
    assert trees(stored_traces) == [CHAIN]


def test_a_stream_that_is_held_open_is_separate_from_later_calls_and_stored_when_closed(
    handler: PomlCallbackHandler, stored_traces: Fetch
) -> None:
    chunks = chain().stream(GIVEN, {"callbacks": [handler]})
    next(chunks)
    assert mlflow.get_current_active_span() is None
    chain().invoke(GIVEN, {"callbacks": [handler]})
    chunks.close()  # type: ignore[attr-defined]
    assert trees(stored_traces) == [CHAIN, CHAIN]


def test_what_a_reader_does_between_two_chunks_is_no_part_of_the_stream(
    handler: PomlCallbackHandler, stored_traces: Fetch
) -> None:
    for chunk in chain().stream(GIVEN, {"callbacks": [handler]}):
        traced(chunk)
        chain().invoke(GIVEN, {"callbacks": [handler]})
    assert trees(stored_traces) == [*[CHAIN] * 4, *["traced UNKNOWN\n"] * 3]


async def test_an_async_stream_whose_reader_breaks_off_is_stored_and_is_no_error(
    background: None, handler: PomlCallbackHandler, stored_traces: Fetch
) -> None:
    async for _ in chain().astream(GIVEN, {"callbacks": [handler]}):
        break
    await chain().ainvoke(GIVEN, {"callbacks": [handler]})
    await wait_for_traces(2, stored_traces)
    assert mlflow.get_current_active_span() is None
    assert trees(stored_traces) == [CHAIN, CHAIN]


async def test_an_async_stream_that_is_closed_is_stored(handler: PomlCallbackHandler, stored_traces: Fetch) -> None:
    async with aclosing(chain().astream(GIVEN, {"callbacks": [handler]})) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
        await chain().ainvoke(GIVEN, {"callbacks": [handler]})
    await wait_for_traces(2, stored_traces)
    assert mlflow.get_current_active_span() is None
    assert trees(stored_traces) == [CHAIN, CHAIN]


async def test_what_an_async_reader_does_between_two_chunks_is_no_part_of_the_stream(
    handler: PomlCallbackHandler, stored_traces: Fetch
) -> None:
    async for chunk in chain().astream(GIVEN, {"callbacks": [handler]}):
        assert mlflow.get_current_active_span() is None
        await atraced(chunk)
        await chain().ainvoke(GIVEN, {"callbacks": [handler]})
    assert trees(stored_traces) == [*[CHAIN] * 4, *["traced UNKNOWN\n"] * 3]


async def test_a_call_that_is_cancelled_is_stored_with_all_its_runs(
    background: None, handler: PomlCallbackHandler, stored_traces: Fetch
) -> None:
    """LangChain does not report the end of a cancelled model; MLflow would never store the trace."""
    called = asyncio.Event()
    call = asyncio.ensure_future((greeting() | Stuck(called=called)).ainvoke(GIVEN, {"callbacks": [handler]}))
    await called.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await chain().ainvoke(GIVEN, {"callbacks": [handler]})
    assert trees(stored_traces) == [CHAIN, CANCELLED]
