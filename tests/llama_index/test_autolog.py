"""Autolog in LlamaIndex's own ways to run; what holds for both frameworks is in tests/adapters/test_autolog.py."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from tests.llama_index.traces import parent, poml_spans, tree

import pomlflow
import pomlflow.llama_index
from pomlflow.llama_index import PomlPromptTemplate

QA = '<p whiteSpace="pre">{{context_str}}</p><p>{{query_str}}</p>'


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    pomlflow.autolog(disable=True)
    mlflow.llama_index.autolog(disable=True)


@pytest.fixture
def engine(index: Any, scripted: Any) -> Callable[..., Any]:
    """Make a query engine with a POML prompt."""

    def make(**options: Any) -> Any:
        prompt = PomlPromptTemplate(QA, name="qa")
        return index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt, **options)

    return make


def run(call: Callable[[], Any]) -> Any:
    found = call()
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _streamed(engine: Any) -> str:
    return "".join(engine(streaming=True).query("What?").response_gen)


CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "query": (lambda engine: engine().query("What?"), "ScriptedLLM.predict"),
    "aquery": (lambda engine: engine().aquery("What?"), "ScriptedLLM.apredict"),
    "streamed": (_streamed, "ScriptedLLM.stream"),
}


@pytest.mark.parametrize(("call", "around"), CALLS.values(), ids=CALLS)
def test_every_way_to_run_is_traced_completely(traced: Any, engine: Any, call: Any, around: str) -> None:
    pomlflow.autolog()
    (trace,) = traced(lambda: run(lambda: call(engine)), at_least=1)
    assert [parent(trace, span) for span in poml_spans(trace)] == [around]
    assert tree(trace).startswith("RetrieverQueryEngine.")
