"""MLflow's optimisers on a prompt with roles, a tool, a picture, an include and variables, in both frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.genai.optimize import BasePromptOptimizer, PromptOptimizerOutput
from tests.adapters.frameworks import Framework
from tests.registry_prompts import exact, sources
from tests.templates import write

from pomlflow import CandidateError
from pomlflow.template import Template
from pomlflow.tracking.versions import register

PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
SOURCE = """<poml>
  <system-msg>Answer {{how}}.<include src="tone.poml"/></system-msg>
  <human-msg>{{question}}<img src="map.png" alt="a map" syntax="multimedia"/></human-msg>
  <tool-definition name="look_up" description="Look up a city.">
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
  </tool-definition>
  <output-schema>{"type": "object", "properties": {"city": {"type": "string"}}}</output-schema>
  <runtime temperature="0"/>
</poml>
"""
OTHER_PROMPTS = [  # candidates that are another prompt: what is replaced, by what, and the error's message
    ("{{how}}", "kindly", "lost the variable {{how}}"),
    ("{{how}}", "{{how}} in {{language}}", "added the variable {{language}}"),
    ('name="look_up"', 'name="search"', "lost the tool look_up and added the tool search"),
    ('<img src="map.png" alt="a map" syntax="multimedia"/>', "", "lost the file map.png"),
    ('<include src="tone.poml"/>', "", "lost the variable {{mood}}, the file tone.poml"),
    ('<runtime temperature="0"/>', "", "lost <runtime>"),
]
NOT_POML = {
    "nothing": " ",
    "plain text": "Answer {{how}}: {{question}}",
    "prose around it": f"Here is a better prompt:\n\n{SOURCE}\nIt is brief.",
    "a fence": f"```xml\n{SOURCE}```",
}


@pytest.fixture
def prompt(framework: Framework, mlflow_store: str, name: str, tmp_path: Path) -> Any:
    """The prompt in production, with values for all variables but the question; its files are deleted."""
    folder = tmp_path / "prompts"
    write(folder / "tone.poml", "<p>Be {{mood}}.</p>")
    (folder / "map.png").write_bytes(PICTURE)
    register(Template(path=write(folder / "main.poml", SOURCE), name=name), alias="production")
    for file in folder.iterdir():
        file.unlink()
    loaded = framework.prompts.from_registry(f"prompts:/{name}@production")
    return framework.partial(loaded, how="at length", mood="kind")


class TryEach(BasePromptOptimizer):
    """An optimiser that evaluates each candidate, and returns the last."""

    def __init__(self, candidates: list[str]) -> None:
        self.candidates = candidates
        self.outputs: list[list[str]] = []

    def optimize(
        self,
        eval_fn: Any,
        train_data: list[dict[str, Any]],
        target_prompts: dict[str, str],
        enable_tracking: bool = True,
    ) -> PromptOptimizerOutput:
        """Keep the outputs: where the call raised an error, MLflow uses its text."""
        (name,) = target_prompts
        for candidate in self.candidates:
            results = eval_fn({name: candidate}, train_data)
            self.outputs.append([result.outputs for result in results])
        score = sum(result.score for result in results)
        return PromptOptimizerOutput({name: self.candidates[-1]}, initial_eval_score=0, final_eval_score=score)


def optimise(framework: Framework, prompt: Any, name: str, candidates: list[str]) -> tuple[Any, list[Any], list[Any]]:
    """Optimise; return the result, the outputs of each candidate, and all errors of the trials."""
    errors = []

    def predict(question: str) -> str:
        try:
            messages = framework.messages(prompt, question=question)
        except Exception as error:
            errors.append(error)
            raise
        return "Paris" if "in one word" in messages[0] else "It is Paris."

    optimiser = TryEach(candidates)
    result = mlflow.genai.optimize_prompts(
        predict_fn=predict,
        train_data=[{"inputs": {"question": f"Capital, {row}?"}, "outputs": "Paris"} for row in range(2)],
        prompt_uris=[f"prompts:/{name}@production"],
        optimizer=optimiser,
        scorers=[exact],
        enable_tracking=False,
    )
    return result, optimiser.outputs, errors


def test_a_better_wording_is_registered_and_loads_with_its_files(framework: Framework, prompt: Any, name: str) -> None:
    better = SOURCE.replace("Answer {{how}}.", "Answer {{how}}, in one word.").replace("Look up", "Find")
    result, outputs, errors = optimise(framework, prompt, name, [SOURCE, better])
    assert (outputs, errors) == ([["It is Paris."] * 2, ["Paris"] * 2], [])
    assert result.optimized_prompts[0].uri == f"prompts:/{name}/2"
    assert sources(name) == [SOURCE, better]
    best = framework.prompts.from_registry(name, version=2)
    frame = framework.render(best, how="at length", mood="kind", question="Where?").frame
    assert frame.messages[0].content == "Answer at length, in one word.\n\nBe kind."
    assert frame.messages[1].content[1].type == "image/png"
    assert frame.tools[0]["description"] == "Find a city."


def test_a_candidate_that_is_not_the_same_prompt_fails_with_the_reason(
    framework: Framework, prompt: Any, name: str
) -> None:
    """MLflow passes the error's text to optimisers and scorers as the output."""
    assert all(old in SOURCE for old, _, _ in OTHER_PROMPTS)
    candidates = [SOURCE.replace(old, new) for old, new, _ in OTHER_PROMPTS]
    reasons = [f"has {reason}" for _, _, reason in OTHER_PROMPTS]
    candidates += NOT_POML.values()
    reasons += ["is not a POML document: it must be the whole markup, from <poml> to </poml>"] * len(NOT_POML)
    result, outputs, errors = optimise(framework, prompt, name, candidates)
    assert {type(error) for error in errors} == {CandidateError}
    assert {error.uri for error in errors} == {f"prompts:/{name}/1"}
    assert len(errors) == 2 * len(candidates)
    for shown, reason in zip(outputs, reasons, strict=True):
        assert all(f"the candidate for prompts:/{name}/1 {reason}" in output for output in shown)
    assert result.final_eval_score == 0
    assert framework.messages(prompt, question="Where?")[0] == "Answer at length.\n\nBe kind."


def test_a_candidate_that_does_not_render_is_named_as_the_candidate(
    framework: Framework, prompt: Any, name: str
) -> None:
    candidates = [SOURCE.replace("Answer", "<b>Answer"), SOURCE.replace("{{question}}", "{{question.no.more}}")]
    _, outputs, _ = optimise(framework, prompt, name, candidates)
    for (shown, _), place in zip(outputs, ("2:15", "3:14"), strict=True):
        assert f": the candidate for prompts:/{name}/1:{place}: " in shown
