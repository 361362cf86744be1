"""Replay of traces that only LlamaIndex makes; the rest is in tests/adapters."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("llama_index.core")

import mlflow

import pomlflow
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

pytestmark = pytest.mark.usefixtures("mlflow_store")


def test_a_query_is_replayed_with_the_whitespace_of_its_nodes(index: Any, scripted: Any) -> None:
    prompt = PomlPromptTemplate("<human-msg><p>{{context_str}}</p><p>{{query_str}}</p></human-msg>", name="qa")
    with PomlCallbackHandler(register=False):
        index.as_query_engine(llm=scripted("Fine."), text_qa_template=prompt).query("def f():\n\treturn  1")
    (render,) = pomlflow.replay(str(mlflow.get_last_active_trace_id())).renders
    assert str(render) == "poml qa: identical"
    assert render.record is not None
    assert "def f():\n\treturn  1" in render.record.result()["messages"][0]["content"]
