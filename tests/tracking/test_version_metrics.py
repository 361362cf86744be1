"""Versions of a prompt, compared by their traces in a real store."""

from __future__ import annotations

import itertools
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import AssessmentError, TraceInfo, TraceLocation, TraceState
from mlflow.tracing.client import TracingClient
from tests.registry_prompts import BYE, HELLO, publish

import pomlflow

numbers = itertools.count(1)


@pytest.fixture
def name(name: str, mlflow_store: str) -> str:
    """A prompt with two versions, the second in production."""
    publish(name, HELLO)
    publish(name, BYE)
    return name


def trace_location() -> str:
    """The experiment that is set now."""
    return str(mlflow.tracking.fluent._get_experiment_id())


def trace(
    name: str,
    *versions: int,
    milliseconds: int = 10,
    state: TraceState = TraceState.OK,
    tokens: int | None = None,
    **feedback: Any,
) -> str:
    """Store a trace that starts one second into 1970 and is linked to versions; return its id."""
    usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": (tokens or 0) + 1}
    info = TraceInfo(
        trace_id=f"tr-{next(numbers):032x}",
        trace_location=TraceLocation.from_experiment_id(trace_location()),
        request_time=1000,
        execution_duration=milliseconds,
        state=state,
        trace_metadata={} if tokens is None else {"mlflow.trace.tokenUsage": json.dumps(usage)},
    )
    client = mlflow.MlflowClient()
    TracingClient().start_trace(info)
    client.link_prompt_versions_to_trace(
        [client.get_prompt_version(name, number) for number in versions], info.trace_id
    )
    for key, value in feedback.items():
        mlflow.log_feedback(trace_id=info.trace_id, name=key, value=value)
    return str(info.trace_id)


def test_each_version_has_latency_tokens_and_errors(name: str) -> None:
    for milliseconds in (100, 200, 300):
        trace(name, 1, milliseconds=milliseconds, tokens=milliseconds)
    trace(name, 1, milliseconds=400, state=TraceState.ERROR)
    trace(name, 2, milliseconds=50, tokens=10)
    table = pomlflow.compare_versions(name, [1, 2])
    assert table.index.tolist() == [1, 2]
    assert table.index.name == "version"
    assert table.loc[1].to_dict() == pytest.approx(
        {
            "traces": 4,
            "errors": 1,
            "error_rate": 0.25,
            "latency_p50": 250,
            "latency_p95": 385,
            "input_tokens": 200,
            "output_tokens": 1,
            "total_tokens": 201,
        }
    )
    assert table.loc[2, ["traces", "errors", "latency_p50", "total_tokens"]].tolist() == [1, 0, 50, 11]


def test_assessments_are_means_of_numbers_booleans_and_yes_or_no(name: str) -> None:
    trace(name, 1, score=1, exact=True, kind="yes", topic="books", about={"a": 1})
    trace(name, 1, score=4.5, exact=False, kind="No")
    second = trace(name, 2, exact=False)
    mlflow.log_feedback(trace_id=second, name="failed", error=AssessmentError("E", "failed"))
    mlflow.log_feedback(trace_id=second, name="exact", value=True)
    mlflow.log_expectation(trace_id=second, name="expected", value=1)
    table = pomlflow.compare_versions(name, [1, 2]).filter(like="/mean")
    assert list(table.columns) == ["exact/mean", "kind/mean", "score/mean"]
    assert table.loc[1].tolist() == [0.5, 0.5, 2.75]
    assert table.loc[2].fillna(-1).tolist() == [0.5, -1, -1]


def test_an_assessment_that_was_replaced_does_not_count(name: str) -> None:
    identity = trace(name, 1)
    first = mlflow.log_feedback(trace_id=identity, name="exact", value=False)
    mlflow.override_feedback(trace_id=identity, assessment_id=first.assessment_id, value=True)
    assert pomlflow.compare_versions(name, [1])["exact/mean"].tolist() == [1]


def test_a_trace_that_is_linked_to_both_versions_counts_for_both(name: str) -> None:
    trace(name, 1, 2)
    trace(name, 2)
    assert pomlflow.compare_versions(name, [1, 2])["traces"].tolist() == [1, 2]


def test_a_trace_in_progress_and_other_prompts_do_not_count(name: str) -> None:
    publish(f"{name}-other", HELLO)
    trace(f"{name}-other", 1)
    trace(name, 1, state=TraceState.IN_PROGRESS)
    table = pomlflow.compare_versions(name, [2, 1])
    assert table.index.tolist() == [2, 1]
    assert table["traces"].tolist() == [0, 0]
    assert table[["error_rate", "latency_p50", "total_tokens"]].isna().all(axis=None)


def test_all_pages_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.tracing.fluent.SEARCH_TRACES_DEFAULT_MAX_RESULTS", 2)
    for _ in range(5):
        trace(name, 1)
    assert pomlflow.compare_versions(name, [1])["traces"].tolist() == [5]


def test_a_time_window_and_experiments_select_traces(name: str, tmp_path: Path) -> None:
    trace(name, 1)
    start = datetime.fromtimestamp(1).astimezone()
    later = start + timedelta(milliseconds=1)

    def count(**options: Any) -> int:
        return int(pomlflow.compare_versions(name, [1], **options)["traces"].iloc[0])

    assert [count(since=start), count(since=later)] == [1, 0]
    assert [count(until=start), count(until=later)] == [0, 1]
    assert count(since=start.replace(tzinfo=None), until=later) == 1, "a naive time is local time"
    before = trace_location()
    mlflow.set_experiment(f"other {tmp_path.name}")
    trace(name, 1)
    assert count() == 1
    assert count(experiment_ids=[before, trace_location()]) == 2


def test_an_alias_is_the_version_that_it_names(name: str) -> None:
    trace(name, 2)
    table = pomlflow.compare_versions(name, ["production", 1, "1"])
    assert table.index.tolist() == [2, 1]
    assert table["traces"].tolist() == [1, 0]
    with pytest.raises(pomlflow.PromptNotFoundError, match=f"{name}@missing"):
        pomlflow.compare_versions(name, ["missing"])


def test_a_version_or_prompt_that_does_not_exist_is_an_error(name: str) -> None:
    for wrong, version in ((name, 7), (f"{name}-mistyped", 1)):
        with pytest.raises(pomlflow.PromptNotFoundError, match=f"prompts:/{wrong}/{version}"):
            pomlflow.compare_versions(wrong, [version])
    mlflow.genai.register_prompt(f"{name}-text", "Hello")
    assert pomlflow.compare_versions(f"{name}-text", [1])["traces"].tolist() == [0]
