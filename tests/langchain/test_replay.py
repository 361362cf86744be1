"""LangChain's traces rendered again where only LangChain makes them so; the rest is in tests/adapters."""

from __future__ import annotations

import mlflow
import pytest
from tests.langchain.prompts import Model

import pomlflow
from pomlflow.langchain import PomlPromptTemplate

pytestmark = pytest.mark.usefixtures("mlflow_store")


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
