"""LangChain's traces rendered again where only LangChain makes them so; the rest is in tests/adapters."""

from __future__ import annotations

from typing import Any

import mlflow
import pytest
from langchain_core.output_parsers import StrOutputParser
from tests.langchain.prompts import Model

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

pytestmark = pytest.mark.usefixtures("mlflow_store")


def test_each_render_of_a_batch_and_a_failed_one_are_replayed() -> None:
    prompt = PomlPromptTemplate.from_template("<p>{{role}}, {{question}}</p>")
    given: list[Any] = [{"role": "a", "question": "1"}, {"role": "b", "question": "2"}, {"role": "c"}]
    config: Any = {"callbacks": [PomlCallbackHandler()], "max_concurrency": 1}
    with mlflow.start_span("batch") as span:
        (prompt | Model() | StrOutputParser()).batch(given, config, return_exceptions=True)
    replayed = pomlflow.replay(span.trace_id)
    assert replayed.identical
    assert [render.record.error is None for render in replayed.renders if render.record] == [True, True, False]


async def test_a_chain_under_mlflows_autolog_is_replayed() -> None:
    """Its spans are MLflow's own, but for POML's."""
    mlflow.langchain.autolog()
    try:
        await (PomlPromptTemplate.from_template("<p>{{n}} {{data.toString()}}</p>") | Model()).ainvoke(
            {"n": float("nan"), "data": b"bytes"}
        )
    finally:
        mlflow.langchain.autolog(disable=True)
    (render,) = pomlflow.replay(str(mlflow.get_last_active_trace_id())).renders
    assert render.outcome == "identical"
    assert render.record is not None
    assert render.record.result()["messages"][0]["content"] == "NaN bytes"
