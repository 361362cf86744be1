"""Register, read and optimise prompts in a registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.genai.optimize import BasePromptOptimizer, PromptOptimizerOutput
from mlflow.genai.scorers import scorer
from mlflow.tracing.client import TracingClient
from tests.templates import write

from pomlflow.template import Template
from pomlflow.tracking.versions import register

if TYPE_CHECKING:
    import pytest
    from mlflow.entities import Trace
    from mlflow.entities.model_registry import PromptVersion

HELLO = "<poml><p>Hello {{name}}</p></poml>"
BYE = "<poml><p>Bye {{name}}</p></poml>"
LONG = "<poml><system-msg>Answer {{how}}.</system-msg><human-msg>{{question}}</human-msg></poml>"


def publish(name: str, source: str = HELLO) -> int:
    """Register a version with the alias ``production``; return its number."""
    version = register(Template(source, name=name), alias="production").version
    return int(version.version)


def publish_with_files(name: str, folder: Path) -> None:
    """Register a prompt that includes a file and shows a document, with the alias ``production``; remove both files."""
    write(folder / "prompts" / "tone.poml", "<p>Be {{mood}}.</p>")
    write(folder / "shared" / "note.txt", "A note.")
    source = '<poml><include src="tone.poml"/><document src="../shared/note.txt"/></poml>'
    register(Template(path=write(folder / "prompts" / "main.poml", source), name=name), alias="production")
    shutil.rmtree(folder / "prompts")
    shutil.rmtree(folder / "shared")


def versions(name: str) -> list[PromptVersion]:
    """All versions of a prompt, oldest first."""
    query = f"name = '{name}' AND tags.`mlflow.prompt.is_prompt` = 'true'"
    found = mlflow.MlflowClient().search_model_versions(query, order_by=["version_number ASC"])
    return [mlflow.MlflowClient().get_prompt_version(name, one.version) for one in found]


def sources(name: str) -> list[Any]:
    """The texts of all versions of a prompt."""
    return [version.template for version in versions(name)]


def linked(trace: Trace | str) -> list[str]:
    """What a trace, or the stored trace of an id, is linked to, as ``name/version``."""
    info = TracingClient().get_trace_info(trace) if isinstance(trace, str) else trace.info
    links = json.loads(info.tags.get("mlflow.linkedPrompts", "[]"))
    return [f"{link['name']}/{link['version']}" for link in links]


def found_by(version: str, experiment: str) -> set[str]:
    """The ids of the traces that a search for a prompt version finds, as the prompt's page does."""
    traces = mlflow.search_traces(locations=[experiment], filter_string=f"prompt = '{version}'", return_type="list")
    return {trace.info.trace_id for trace in traces}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that pomlflow logged."""
    return [r.getMessage() for r in caplog.records if r.name == "pomlflow" and r.levelname == "WARNING"]


class OneChangeOptimizer(BasePromptOptimizer):
    """An optimiser that tries one change, and keeps it if the score is better."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self.change = change

    def optimize(
        self,
        eval_fn: Any,
        train_data: list[dict[str, Any]],
        target_prompts: dict[str, str],
        enable_tracking: bool = True,
    ) -> PromptOptimizerOutput:
        changed = {name: self.change(text) for name, text in target_prompts.items()}
        before, after = (
            sum(result.score for result in eval_fn(prompts, train_data)) for prompts in (target_prompts, changed)
        )
        best = changed if after > before else target_prompts
        return PromptOptimizerOutput(
            optimized_prompts=best, initial_eval_score=before, final_eval_score=max(before, after)
        )


@scorer
def exact(outputs: Any, expectations: dict[str, Any]) -> float:
    """Whether the answer is what was expected."""
    return float(outputs == expectations["expected_response"])


def optimise_prompt(name: str, predict: Callable[[str], str], change: Callable[[str], str]) -> Any:
    """Optimise a prompt by MLflow; the right answer to each question is ``Paris``."""
    data = [{"inputs": {"question": f"The capital of France, {number}?"}, "outputs": "Paris"} for number in range(3)]
    return mlflow.genai.optimize_prompts(
        predict_fn=predict,
        train_data=data,
        prompt_uris=[f"prompts:/{name}@production"],
        optimizer=OneChangeOptimizer(change),
        scorers=[exact],
        enable_tracking=False,
    )
