"""MLflow's evaluation of two versions of a prompt, in parallel workers, in both frameworks."""

from __future__ import annotations

import threading
from typing import Any

import mlflow
import pytest
from mlflow.genai.scorers import scorer
from tests.adapters.frameworks import Framework
from tests.registry_prompts import LONG, exact, linked, publish

import pomlflow

ROWS = 3


@scorer
def brief(outputs: Any) -> str:
    """Whether the answer is one word, as a judge's feedback."""
    return "no" if " " in outputs else "yes"


@pytest.mark.filterwarnings("ignore", "error:::pomlflow")  # MLflow's evaluation (3.12 to 3.18) has warnings of its own
def test_two_versions_are_evaluated_in_parallel_and_compared(
    framework: Framework, mlflow_store: str, stored_traces: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call is one trace, linked to its version alone; compare_versions finds the scores."""
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "3")
    publish(name, LONG)
    publish(name, LONG.replace("{{how}}", "briefly, {{how}}"))
    data = mlflow.genai.datasets.create_dataset(name, experiment_id=[mlflow_store])
    rows = [{"inputs": {"question": str(row)}, "expectations": {"expected_response": "Paris"}} for row in range(ROWS)]
    data.merge_records(rows)
    threads = set()
    together = threading.Barrier(3)

    def model(messages: list[str]) -> str:
        if mlflow.tracing.provider.is_tracing_enabled():  # not MLflow's call that checks the function
            threads.add(threading.get_ident())
            together.wait(60)
        return "Paris" if "briefly" in messages[0] else "It is Paris."

    metrics = []
    for version in (1, 2):
        prompt = framework.partial(framework.prompts.from_registry(name, version=version), how="in English")
        result = mlflow.genai.evaluate(
            data=data,
            predict_fn=lambda question, prompt=prompt: framework.run(prompt, model, question=question),
            scorers=[exact, brief],
        )
        metrics.append({key: float(value) for key, value in result.metrics.items()})
    assert metrics == [{"exact/mean": 0, "brief/mean": 0}, {"exact/mean": 1, "brief/mean": 1}]
    assert len(threads) >= 3

    pomlflow.flush()
    assert sorted(map(linked, stored_traces())) == [[f"{name}/1"]] * ROWS + [[f"{name}/2"]] * ROWS
    table = pomlflow.compare_versions(name, [1, 2])
    assert table["traces"].tolist() == [ROWS, ROWS]
    assert table["errors"].tolist() == [0, 0]
    assert table[["exact/mean", "brief/mean"]].to_numpy().tolist() == [[0, 0], [1, 1]]
    assert (table["latency_p50"] <= table["latency_p95"]).all()
