"""`autolog` in LangChain. The tests of LlamaIndex mirror these: tests/llama_index/test_autolog.py."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers import context
from mlflow.entities import Trace
from tests.langchain.prompts import Model
from tests.langchain.trees import CHAIN, GIVEN, QUIET, chain, greeting, trees, under

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


async def _gather(*calls: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*calls)


def _in_threads() -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(chain().invoke, [GIVEN] * 3))


CALLS: dict[str, tuple[list[str], Call]] = {
    "invoke": ([CHAIN], lambda: chain().invoke(GIVEN)),
    "batch": ([CHAIN] * 3, lambda: chain().batch([GIVEN] * 3)),
    "stream": ([CHAIN], lambda: list(chain().stream(GIVEN))),
    "ainvoke": ([CHAIN], lambda: chain().ainvoke(GIVEN)),
    "abatch": ([CHAIN] * 3, lambda: chain().abatch([GIVEN] * 3)),
    "astream": ([CHAIN], lambda: _read(chain().astream(GIVEN))),
    "astream_events": ([CHAIN], lambda: _read(chain().astream_events(GIVEN, version="v2"))),
    "gather": ([CHAIN] * 2, lambda: _gather(chain().ainvoke(GIVEN), chain().ainvoke(GIVEN))),
    "retries in a batch": (
        [under("RunnableSequence CHAIN", CHAIN)] * 2,
        lambda: chain().with_retry().batch([GIVEN] * 2),
    ),
    "other threads": ([CHAIN] * 3, _in_threads),
}


@pytest.mark.parametrize("autolog", [pomlflow.autolog, pomlflow.langchain.autolog], ids=["all", "langchain"])
@pytest.mark.parametrize(("expected", "call"), CALLS.values(), ids=CALLS)
def test_every_way_to_run_is_traced_whole(stored_traces: Fetch, autolog: Any, expected: list[str], call: Call) -> None:
    autolog()
    run(call)
    assert trees(stored_traces) == expected


ORDERS = [*itertools.permutations(["ours", "mlflow"]), ("ours", "mlflow", "ours"), ("mlflow", "ours", "mlflow")]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("call", ["invoke", "ainvoke", "batch"])
def test_beside_mlflows_autolog_nothing_comes_twice(stored_traces: Fetch, order: tuple[str, ...], call: str) -> None:
    steps = {"ours": pomlflow.autolog, "mlflow": lambda: mlflow.langchain.autolog(silent=True)}
    for step in order:
        steps[step]()
    expected, calling = CALLS[call]
    run(calling)
    assert trees(stored_traces) == expected


def test_mlflows_autolog_alone_is_left_when_ours_is_disabled(stored_traces: Fetch) -> None:
    mlflow.langchain.autolog(silent=True)
    pomlflow.autolog()
    pomlflow.autolog(disable=True)
    chain().invoke(GIVEN)
    assert trees(stored_traces) == [CHAIN]
    mlflow.langchain.autolog(disable=True, silent=True)
    chain().invoke(GIVEN)
    assert len(stored_traces()) == 1


@pytest.mark.parametrize("where", ["config", "with_config", "model"])
def test_a_handler_that_is_given_too_makes_no_second_trace(stored_traces: Fetch, where: str) -> None:
    pomlflow.autolog()
    handler = PomlCallbackHandler()
    if where == "config":
        chain().invoke(GIVEN, {"callbacks": [handler]})
    elif where == "with_config":
        chain().with_config(callbacks=[handler]).invoke(GIVEN)
    else:
        chain(callbacks=[handler]).invoke(GIVEN)
    assert trees(stored_traces) == [CHAIN]


def poml_inputs(trace: Trace) -> Any:
    (span,) = [span for span in trace.data.spans if span.span_type == "PROMPT"]
    return span.inputs


def hidden(_: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": "hidden"}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside MLflow's"])
def test_new_arguments_take_effect(stored_traces: Fetch, beside: bool) -> None:
    """With MLflow's autolog too, for the POML span, which is ours there."""
    if beside:
        mlflow.langchain.autolog(silent=True)
    greet = chain()
    for options in ({}, {"mask": hidden, "register": False}, {"log_traces": False}):
        pomlflow.langchain.autolog(**options)
        greet.invoke(GIVEN)
    pomlflow.flush()
    traces = stored_traces()
    assert ["mlflow.linkedPrompts" in trace.info.tags for trace in traces[:2]] == [True, False]
    assert poml_inputs(traces[0])["context"] == GIVEN
    assert poml_inputs(traces[1]) == "hidden"
    assert len(traces) == 2 + beside


def test_disabled_all_is_as_before(stored_traces: Fetch) -> None:
    """Every test here checks that LangChain's list of hooks is restored."""
    pomlflow.autolog()
    pomlflow.langchain.autolog(disable=True)
    RunnableLambda(str).invoke(1)
    assert stored_traces() == []
    pomlflow.autolog(disable=True)
    chain().invoke(GIVEN)
    greeting().format_messages(**GIVEN)
    assert stored_traces() == []


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


def test_a_prompt_outside_of_every_run_is_traced_too(stored_traces: Fetch) -> None:
    pomlflow.langchain.autolog()
    greeting().format_messages(**GIVEN)
    with mlflow.start_span("work"):
        asyncio.run(greeting().aformat_messages(**GIVEN))
    assert trees(stored_traces) == ["poml PROMPT\n", "work UNKNOWN\n  poml greet PROMPT\n"]


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
