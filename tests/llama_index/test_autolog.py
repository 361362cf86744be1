"""`autolog` in LlamaIndex. The tests of LangChain mirror these: tests/langchain/test_autolog.py."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.query_engine import CustomQueryEngine
from mlflow.entities import Trace
from tests.llama_index.traces import FOREIGN_WARNINGS, parent, poml_spans, traced, tree

import pomlflow
import pomlflow.llama_index
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

pytestmark = FOREIGN_WARNINGS
__all__ = ["traced"]
QA = '<p whiteSpace="pre">{{context_str}}</p><p>{{query_str}}</p>'
HELLO = "<p>Hello {{name}}</p>"
GREETING = PomlPromptTemplate(HELLO, name="greet")


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    root = get_dispatcher()
    handlers = list(root.span_handlers), list(root.event_handlers)
    yield
    pomlflow.autolog(disable=True)
    mlflow.llama_index.autolog(disable=True)
    assert (root.span_handlers, root.event_handlers) == handlers


@pytest.fixture
def engine(index: Any, scripted: Any) -> Callable[..., Any]:
    """Make a query engine with a POML prompt."""

    def make(**options: Any) -> Any:
        prompt = PomlPromptTemplate(QA, name="qa")
        return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt, **options)

    return make


@pytest.fixture
def expected(traced: Any, engine: Any) -> str:
    """The tree of a query, with a handler."""
    with PomlCallbackHandler():
        (trace,) = traced(lambda: engine().query("What?"))
    return tree(trace)


def run(call: Callable[[], Any]) -> Any:
    found = call()
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


async def _gather(*calls: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*calls)


def _in_threads(engine: Any) -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(engine().query, ["What?"] * 3))


def _streamed(engine: Any) -> str:
    return "".join(engine(streaming=True).query("What?").response_gen)


CALLS: dict[str, tuple[int, Callable[[Any], Any], str]] = {
    "query": (1, lambda engine: engine().query("What?"), "ScriptedLLM.predict"),
    "aquery": (1, lambda engine: engine().aquery("What?"), "ScriptedLLM.apredict"),
    "streamed": (1, _streamed, "ScriptedLLM.stream"),
    "gather": (2, lambda e: _gather(e().aquery("What?"), e().aquery("Why?")), "ScriptedLLM.apredict"),
    "other threads": (3, _in_threads, "ScriptedLLM.predict"),
}


@pytest.mark.parametrize("autolog", [pomlflow.autolog, pomlflow.llama_index.autolog], ids=["all", "llama_index"])
@pytest.mark.parametrize(("count", "call", "around"), CALLS.values(), ids=CALLS)
def test_every_way_to_run_is_traced_whole(
    traced: Any, engine: Any, autolog: Any, count: int, call: Any, around: str
) -> None:
    autolog()
    traces = traced(lambda: run(lambda: call(engine)), at_least=count)
    assert [[parent(trace, span) for span in poml_spans(trace)] for trace in traces] == [[around]] * count
    for trace in traces:
        assert tree(trace).startswith("RetrieverQueryEngine.")


ORDERS = [*itertools.permutations(["ours", "mlflow"]), ("ours", "mlflow", "ours"), ("mlflow", "ours", "mlflow")]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_beside_mlflows_autolog_nothing_comes_twice(
    traced: Any, engine: Any, expected: str, order: tuple[str, ...]
) -> None:
    steps = {"ours": pomlflow.autolog, "mlflow": mlflow.llama_index.autolog}
    for step in order:
        steps[step]()
    assert [tree(trace) for trace in traced(lambda: engine().query("What?"))] == [expected]


def test_mlflows_autolog_alone_is_left_when_ours_is_disabled(traced: Any, engine: Any, expected: str) -> None:
    mlflow.llama_index.autolog()
    pomlflow.autolog()
    pomlflow.autolog(disable=True)
    assert [tree(trace) for trace in traced(lambda: engine().query("What?"))] == [expected]
    mlflow.llama_index.autolog(disable=True)
    assert traced(lambda: engine().query("What?")) == []


@pytest.mark.parametrize("where", ["block", "component", "everywhere"])
def test_a_handler_that_is_given_too_makes_no_second_trace(traced: Any, engine: Any, expected: str, where: str) -> None:
    pomlflow.autolog()
    handler, one = PomlCallbackHandler(), engine()
    if where == "block":
        with handler:
            traces = traced(lambda: one.query("What?"))
    else:
        handler.attach(*([one] if where == "component" else []))
        traces = traced(lambda: one.query("What?"))
        handler.detach()
    assert [tree(trace) for trace in traces] == [expected]


def hidden(_: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": "hidden"}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside MLflow's"])
def test_new_arguments_take_effect(traced: Any, engine: Any, beside: bool) -> None:
    """With MLflow's autolog too, for the POML span, which is ours there."""
    if beside:
        mlflow.llama_index.autolog()
    one = engine()

    def queries() -> None:
        for options in ({}, {"mask": hidden, "register": False}, {"log_traces": False}):
            pomlflow.llama_index.autolog(**options)
            one.query("What?")
        pomlflow.flush()

    traces: list[Trace] = traced(queries)
    assert ["mlflow.linkedPrompts" in trace.info.tags for trace in traces[:2]] == [True, False]
    (first,), (second,) = map(poml_spans, traces[:2])
    assert first.inputs["context"]["query_str"] == "What?"
    assert second.inputs == "hidden"
    assert len(traces) == 2 + beside


def test_disabled_all_is_as_before(traced: Any, engine: Any) -> None:
    """Every test here checks that LlamaIndex's dispatcher is restored."""
    pomlflow.autolog()
    pomlflow.llama_index.autolog(disable=True)
    assert traced(lambda: engine().query("What?")) == []
    pomlflow.autolog(disable=True)
    assert traced(lambda: (engine().query("What?"), GREETING.format(name="Ada"))) == []


@pytest.mark.parametrize("how", ["ours", "MLflow's", "a handler"])
@pytest.mark.parametrize("call", ["query", "aquery"])
def test_a_plain_render_in_a_step_belongs_to_the_step(traced: Any, how: str, call: str) -> None:
    class Engine(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            return str(pomlflow.poml(HELLO, {"name": query_str}))

        async def acustom_query(self, query_str: str) -> str:
            return str(await pomlflow.arender(HELLO, {"name": query_str}))

    handler = None
    if how == "a handler":
        handler = PomlCallbackHandler().attach()
    else:
        pomlflow.autolog()
    if how == "MLflow's":
        mlflow.llama_index.autolog()
    (trace,) = traced(lambda: run(lambda: getattr(Engine(), call)("Ada")))
    if handler is not None:
        handler.detach()
    step = {"query": "  Engine.custom_query CHAIN\n    poml PROMPT", "aquery": "  poml PROMPT"}[call]
    assert tree(trace) == f"Engine.{call} CHAIN\n{step}"


def test_a_prompt_outside_of_every_run_is_traced_too(traced: Any) -> None:
    def renders() -> None:
        GREETING.format(name="Ada")
        with mlflow.start_span("work"):
            GREETING.format(name="Ada")

    pomlflow.llama_index.autolog()
    assert [tree(trace) for trace in traced(renders)] == ["poml PROMPT", "work UNKNOWN\n  poml greet PROMPT"]


async def greet(name: str) -> str:
    """Greet somebody."""
    return str(pomlflow.poml(HELLO, {"name": name})[0]["content"])


def test_an_agent_is_traced_without_a_change(traced: Any, scripted: Any, tool_call: Any) -> None:
    async def ask() -> None:
        await FunctionAgent(tools=[greet], llm=scripted(tool_call("greet", name="Ada"), "Done.")).run("Greet Ada")

    pomlflow.autolog()
    (trace,) = traced(lambda: asyncio.run(ask()), at_least=1)
    (span,) = poml_spans(trace)
    assert parent(trace, span) == "FunctionTool.acall"
