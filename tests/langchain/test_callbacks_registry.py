"""Nested prompts of one LangChain trace are linked to it; what both frameworks do is in tests/adapters."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from mlflow.entities import Trace
from tests.langchain.trees import GIVEN, model
from tests.registry_prompts import linked

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

pytestmark = pytest.mark.usefixtures("sync_export")


def test_all_prompts_of_one_trace_are_linked_to_it(stored_traces: Callable[[], list[Trace]]) -> None:
    """A prompt in a step, one inside a ChatPromptTemplate, and two contents of one name."""
    unique = f"greet-{uuid.uuid4().hex[:8]}"  # the registry is the whole run's
    inner = PomlPromptTemplate.from_template("<p>Hello {{name}}</p>", name=f"{unique}-inner")

    def step(given: Any) -> Any:
        markups = (f"<p>{word} {{{{name}}}}</p>" for word in ("One", "Two"))
        first, second = (PomlPromptTemplate.from_template(markup, name=unique) | model() for markup in markups)
        return [first.invoke(given), second.invoke(given), ChatPromptTemplate([inner]).invoke(given)]

    RunnableLambda(step).invoke(GIVEN, {"callbacks": [PomlCallbackHandler()]})
    assert pomlflow.flush()
    (trace,) = stored_traces()
    assert sorted(linked(trace)) == [f"{unique}-inner/1", f"{unique}/1", f"{unique}/2"]
