"""Autolog in LangChain's own ways to run; what holds for both frameworks is in tests/adapters/test_autolog.py."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import mlflow
import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers import context
from mlflow.entities import Trace
from tests.langchain.prompts import Model
from tests.langchain.trees import CHAIN, GIVEN, QUIET, chain, trees, under

import pomlflow
import pomlflow.langchain
from pomlflow.langchain import PomlCallbackHandler

# MLflow 3.12 with pydantic 2.12: the first span of a chat model imports types that pydantic warns of.
pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:The 'validate_default' attribute")]
Fetch = Callable[[], list[Trace]]
Call = Callable[[], Awaitable[Any] | Any]
HELLO = "<p>Hello {{name}}</p>"
STEP = "RunnableLambda CHAIN\n  poml PROMPT\n"


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    hooks = list(context._configure_hooks)
    yield
    pomlflow.autolog(disable=True)
    mlflow.langchain.autolog(disable=True, silent=True)
    assert context._configure_hooks == hooks


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
    "astream": ([CHAIN], lambda: _read(chain().astream(GIVEN))),
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


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_batch_is_traced_once_with_mlflows_autolog(stored_traces: Fetch, ours_first: bool) -> None:
    steps = [pomlflow.autolog, lambda: mlflow.langchain.autolog(silent=True)]
    for step in steps if ours_first else reversed(steps):
        step()
    expected, call = CALLS["batch"]
    run(call)
    assert trees(stored_traces) == expected


@pytest.mark.parametrize("where", ["with_config", "model"])
def test_a_handler_that_is_given_too_makes_no_second_trace(stored_traces: Fetch, where: str) -> None:
    pomlflow.autolog()
    handler = PomlCallbackHandler()
    if where == "with_config":
        chain().with_config(callbacks=[handler]).invoke(GIVEN)
    else:
        chain(callbacks=[handler]).invoke(GIVEN)
    assert trees(stored_traces) == [CHAIN]


@pytest.mark.parametrize("how", ["ours", "MLflow's", "a handler"])
@pytest.mark.parametrize("call", ["invoke", "ainvoke", "batch", "abatch"])
def test_a_plain_render_in_a_step_belongs_to_the_step(stored_traces: Fetch, how: str, call: str) -> None:
    def step(name: str) -> Any:
        return pomlflow.poml(HELLO, {"name": name})

    async def astep(name: str) -> Any:
        return await pomlflow.arender(HELLO, {"name": name})

    config = {"callbacks": [PomlCallbackHandler()]} if how == "a handler" else None
    if how != "a handler":
        pomlflow.autolog()
    if how == "MLflow's":
        mlflow.langchain.autolog(silent=True)
    many = "batch" in call
    function = getattr(RunnableLambda(step, astep, name="RunnableLambda"), call)
    run(lambda: function(["Ada", "Bob"] if many else "Ada", config))
    assert trees(stored_traces) == [STEP] * (1 + many)


def test_an_agent_is_traced_without_a_change(stored_traces: Fetch) -> None:
    agents = pytest.importorskip("langchain.agents")

    @tool
    def greet(name: str) -> str:
        """Greet somebody."""
        return str(pomlflow.poml(HELLO, {"name": name})[0]["content"])

    call = {"name": "greet", "args": {"name": "Ada"}, "id": "1"}
    model = Model(answers=[AIMessage("", tool_calls=[call]), AIMessage("Done.")])
    agent = agents.create_agent(model, [greet])
    pomlflow.autolog()
    agent.invoke({"messages": [("user", "Greet Ada")]})
    (shown,) = trees(stored_traces)
    assert shown.startswith("LangGraph CHAIN\n")
    assert "  tools CHAIN\n    greet TOOL\n      poml PROMPT\n" in shown
