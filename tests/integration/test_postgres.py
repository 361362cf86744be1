"""Traces and prompt versions in an ``mlflow server`` on PostgreSQL."""

from __future__ import annotations

import mlflow
import pytest
from langchain_core.language_models import FakeListChatModel

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

pytestmark = pytest.mark.integration


def test_a_batch_is_stored_whole_and_linked_to_one_version(postgres_server, use_server):
    experiment = use_server(postgres_server)
    prompt = PomlPromptTemplate.from_template("<p>Answer briefly: {{question}}</p>", name="postgres")
    chain = prompt | FakeListChatModel(responses=["Paris"])
    chain.batch([{"question": str(number)} for number in range(20)], {"callbacks": [PomlCallbackHandler()]})
    assert pomlflow.flush(60)
    stored = mlflow.search_traces(locations=[experiment], return_type="list")
    assert [trace.info.state for trace in stored] == ["OK"] * 20
    assert {trace.info.tags["mlflow.linkedPrompts"] for trace in stored} == {'[{"name": "postgres", "version": "1"}]'}
