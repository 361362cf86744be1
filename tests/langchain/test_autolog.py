"""Autolog in LangChain's own ways to run; what holds for both frameworks is in tests/adapters/test_autolog.py."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import mlflow
import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from mlflow.entities import Trace
from tests.langchain.trees import CHAIN, GIVEN, chain, trees, under

import pomlflow
import pomlflow.langchain
from pomlflow.langchain import configure_hook

# MLflow 3.12 with pydantic 2.12: the first span of a chat model imports types that pydantic warns of.
Fetch = Callable[[], list[Trace]]
Call = Callable[[], Awaitable[Any] | Any]
HELLO = "<p>Hello {{name}}</p>"
STEP = "RunnableLambda CHAIN\n  poml PROMPT\n"


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    yield
    pomlflow.autolog(disable=True)
    mlflow.langchain.autolog(disable=True, silent=True)
    assert CallbackManager.configure().handlers == []


def run(call: Call) -> Any:
    found = call()
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


async def _read(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


CALLS: dict[str, tuple[list[str], Call]] = {
    "batch": ([CHAIN] * 3, lambda: chain().batch([GIVEN] * 3)),
    "abatch": ([CHAIN] * 3, lambda: chain().abatch([GIVEN] * 3)),
    "astream_events": ([CHAIN], lambda: _read(chain().astream_events(GIVEN, version="v2"))),
    "retries in a batch": (
        [under("RunnableSequence CHAIN", CHAIN)] * 2,
        lambda: chain().with_retry().batch([GIVEN] * 2),
    ),
}


@pytest.mark.parametrize(("expected", "call"), CALLS.values(), ids=CALLS)
def test_every_way_to_run_is_traced_whole(stored_traces: Fetch, expected: list[str], call: Call) -> None:
    pomlflow.autolog()
    run(call)
    assert trees(stored_traces) == expected


def test_a_run_that_starts_while_autolog_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain calls the hook twice for a run."""
    pomlflow.autolog()
    handlers = iter([BaseCallbackHandler(), None])
    monkeypatch.setattr(configure_hook._hook, "get", lambda: next(handlers))  # noqa: SLF001 - what LangChain calls
    (handler,) = CallbackManager.configure().handlers
    assert isinstance(handler, BaseCallbackHandler)


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_batch_is_traced_once_with_mlflows_autolog(stored_traces: Fetch, ours_first: bool) -> None:
    steps = [pomlflow.autolog, lambda: mlflow.langchain.autolog(silent=True)]
    for step in steps if ours_first else reversed(steps):
        step()
    expected, call = CALLS["batch"]
    run(call)
    assert trees(stored_traces) == expected
