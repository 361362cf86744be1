"""LangChain's batches and nested prompts linked to prompt versions; what both frameworks do is in tests/adapters."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from mlflow.entities import Trace
from tests.langchain.trees import GIVEN, model
from tests.registry_prompts import linked

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

pytestmark = pytest.mark.usefixtures("sync_export")
HELLO = "<p>Hello {{name}}</p>"
Fetch = Callable[[], list[Trace]]


@pytest.fixture
def unique() -> str:
    """A name that no other test has: the registry is the whole run's."""
    return f"greet-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def config() -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler()]}


@pytest.fixture
def links(stored_traces: Fetch) -> Callable[[], list[list[str]]]:
    """What each trace in the store is linked to, when all is done."""

    def of_all() -> list[list[str]]:
        assert pomlflow.flush()
        return [linked(trace) for trace in stored_traces()]

    return of_all


def hello(name: str | None, markup: str = HELLO, **options: Any) -> Any:
    return PomlPromptTemplate.from_template(markup, name=name, **options) | model()


def test_all_prompts_of_one_trace_are_linked_to_it(links: Any, config: RunnableConfig, unique: str) -> None:
    """A prompt in a step, one inside a ChatPromptTemplate, and two contents of one name."""
    inner = PomlPromptTemplate.from_template(HELLO, name=f"{unique}-inner")

    def step(given: Any) -> Any:
        first, second = (hello(unique, f"<p>{word} {{{{name}}}}</p>") for word in ("One", "Two"))
        return [first.invoke(given), second.invoke(given), ChatPromptTemplate([inner]).invoke(given)]

    RunnableLambda(step).invoke(GIVEN, config)
    (found,) = links()
    assert sorted(found) == [f"{unique}-inner/1", f"{unique}/1", f"{unique}/2"]
