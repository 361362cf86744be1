"""MLflow's optimisers on a prompt with roles, a tool, a picture, an include and variables, in both frameworks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.adapters.frameworks import Framework
from tests.registry_prompts import optimised, sources
from tests.templates import write

from pomlflow import CandidateError
from pomlflow.template import Template
from pomlflow.tracking.publishing import register

PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
SOURCE = """<poml>
  <system-msg>Answer {{how}}.<include src="tone.poml"/></system-msg>
  <human-msg>{{question}}<img src="map.png" alt="a map" syntax="multimedia"/></human-msg>
  <tool-definition name="look_up" description="Look up a city.">
    {"type": "object", "properties": {"city": {"type": "string"}}}
  </tool-definition>
  <output-schema>{"type": "object", "properties": {"city": {"type": "string"}}}</output-schema>
  <runtime temperature="0"/>
</poml>
"""
LEFT_OUT = [
    ("{{how}}", "kindly", "lost the variable {{how}}"),
    ("{{how}}", "{{how}} in {{language}}", "added the variable {{language}}"),
    ('name="look_up"', 'name="search"', "lost the tool look_up and added the tool search"),
    ('<img src="map.png" alt="a map" syntax="multimedia"/>', "", "lost the file map.png"),
    ('<include src="tone.poml"/>', "", "lost the variable {{mood}}, the file tone.poml"),
    ('<runtime temperature="0"/>', "", "lost <runtime>"),
]
AROUND = {
    "plain text": "Answer {{how}}: {{question}}",
    "prose around it": f"Here is a better prompt:\n\n{SOURCE}\nIt is brief.",
    "a fence": f"```xml\n{SOURCE}```",
    "a comment before it": f"<!-- brief -->\n{SOURCE}",
    "an XML declaration": f'<?xml version="1.0"?>\n{SOURCE}',
    "two documents": f"{SOURCE}{SOURCE}",
    "nothing": " ",
}


@pytest.fixture
def prompt(framework: Framework, mlflow_store: str, name: str, tmp_path: Path) -> Any:
    """The prompt in production, with its files on no disk, and all variables but the question."""
    folder = tmp_path / "prompts"
    write(folder / "tone.poml", "<p>Be {{mood}}.</p>")
    (folder / "map.png").write_bytes(PICTURE)
    register(Template(path=write(folder / "main.poml", SOURCE), name=name), alias="production")
    for file in folder.iterdir():
        file.unlink()
    loaded = framework.prompts.from_registry(f"prompts:/{name}@production")
    return framework.partial(loaded, how="at length", mood="kind")


def trial(framework: Framework, prompt: Any, name: str, candidate: str) -> tuple[Any, list[Exception]]:
    """Optimise with one candidate, which is the best if it renders; gives the result and the errors of the trial."""
    errors: list[Exception] = []

    def predict(question: str) -> str:
        try:
            messages = framework.messages(prompt, question=question)
        except Exception as error:
            errors.append(error)
            raise
        return "" if messages[0] == "Answer at length.\n\nBe kind." else "Paris"

    return optimised(name, predict, lambda _: candidate), errors


def test_a_better_wording_is_registered_and_loads_with_its_files(framework: Framework, prompt: Any, name: str) -> None:
    better = SOURCE.replace("Answer {{how}}.", "Answer {{how}}, in one word.").replace("Look up", "Find")
    result, errors = trial(framework, prompt, name, better)
    assert (errors, result.final_eval_score) == ([], 3)
    assert sources(name) == [SOURCE, better]
    best = framework.prompts.from_registry(name, version=2)
    best = framework.partial(best, how="at length", mood="kind")
    assert framework.messages(best, question="Where?")[0] == "Answer at length, in one word.\n\nBe kind."
    rendered = best._core.render({"how": "", "mood": "", "question": ""}).result()
    assert "image/png" in json.dumps(rendered["messages"][1])
    assert rendered["tools"][0]["description"] == "Find a city."


@pytest.mark.parametrize(("old", "new", "reason"), LEFT_OUT)
def test_a_candidate_that_takes_something_else_fails_with_the_reason(
    framework: Framework, prompt: Any, name: str, old: str, new: str, reason: str
) -> None:
    result, errors = trial(framework, prompt, name, SOURCE.replace(old, new))
    assert len(errors) == 3
    assert {type(error) for error in errors} == {CandidateError}
    assert f"the candidate for prompts:/{name}/1 has {reason}: change the wording" in str(errors[0])
    assert result.final_eval_score == 0
    assert set(sources(name)) == {SOURCE}


@pytest.mark.parametrize("candidate", list(AROUND.values()), ids=list(AROUND))
def test_a_candidate_that_is_not_one_document_fails_with_the_reason(
    framework: Framework, prompt: Any, name: str, candidate: str
) -> None:
    result, errors = trial(framework, prompt, name, candidate)
    assert {type(error) for error in errors} == {CandidateError}
    assert "is not a POML document: it must be the whole markup, from <poml> to </poml>" in str(errors[0])
    assert result.final_eval_score == 0
    assert set(sources(name)) == {SOURCE}


def test_the_reason_reaches_the_optimiser(framework: Framework, prompt: Any, name: str) -> None:
    """MLflow gives what a trial raised to scorers and optimisers as its output."""
    outputs = []

    @mlflow.genai.scorers.scorer
    def keeps(outputs: Any) -> float:
        seen.append(outputs)
        return 0.0

    seen = outputs
    from tests.registry_prompts import Briefly

    mlflow.genai.optimize_prompts(
        predict_fn=lambda question: framework.messages(prompt, question=question)[0],
        train_data=[{"inputs": {"question": "Where?"}, "outputs": "Paris"}],
        prompt_uris=[f"prompts:/{name}@production"],
        optimizer=Briefly(lambda text: text.replace("{{how}}", "kindly")),
        scorers=[keeps],
        enable_tracking=False,
    )
    assert "lost the variable {{how}}: change the wording" in outputs[-1]
