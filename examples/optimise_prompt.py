"""MLflow's optimize_prompts with a custom optimiser, on a prompt with a picture. Runs offline, without a key.

python examples/optimise_prompt.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from mlflow.genai.optimize import BasePromptOptimizer, PromptOptimizerOutput
from mlflow.genai.scorers import scorer

import pomlflow
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

BRIEFING = Path(__file__).parent / "prompts" / "briefing.poml"
FACTS = [{"text": "Sampling needs the winch.", "source": "chief scientist"}]


def main() -> None:
    """Register a prompt, have it optimised, and load the result."""
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute().as_posix()}")
    mlflow.set_experiment("briefings")
    handler = PomlCallbackHandler()
    with handler:  # a render registers its prompt
        PomlPromptTemplate.from_file(BRIEFING, name="briefing").format_messages(question="?", facts=FACTS)
    pomlflow.flush()
    prompt = PomlPromptTemplate.from_registry("briefing", version=1)
    model = ScriptedLLM()

    def answer(question: str) -> str:
        with handler:
            return model.predict(prompt, question=question, facts=FACTS)

    questions = ["May we sample?", "May we swim?"]
    result = mlflow.genai.optimize_prompts(
        predict_fn=answer,
        train_data=[{"inputs": {"question": text}, "outputs": "No."} for text in questions],
        prompt_uris=["prompts:/briefing/1"],
        optimizer=TryEach(
            {
                "no picture": lambda markup: (
                    markup[: markup.index("<img")] + markup[markup.index("/>\n  </human") + 2 :]
                ),
                "a fence": lambda markup: f"```xml\n{markup}```",
                "shorter": lambda markup: markup.replace("in plain words", "in one word"),
            }
        ),
        scorers=[exact],
    )
    print(f"from {result.initial_eval_score} to {result.final_eval_score}: {result.optimized_prompts[0].uri}")
    pomlflow.flush()

    best = PomlPromptTemplate.from_registry("briefing", version=2)
    blocks = [
        block.block_type for message in best.format_messages(question="?", facts=FACTS) for block in message.blocks
    ]
    print("loaded with its files:", blocks)


class TryEach(BasePromptOptimizer):
    """An optimiser that tries given changes one after another, and keeps the best."""

    def __init__(self, changes: dict[str, Callable[[str], str]]) -> None:
        self.changes = {"unchanged": str} | changes

    def optimize(
        self,
        eval_fn: Any,
        train_data: list[dict[str, Any]],
        target_prompts: dict[str, str],
        enable_tracking: bool = True,
    ) -> PromptOptimizerOutput:
        """Evaluate each candidate; the output of one that failed is its error."""
        ((name, markup),) = target_prompts.items()
        scores = {}
        for title, change in self.changes.items():
            results = eval_fn({name: change(markup)}, train_data)
            scores[title] = sum(one.score for one in results) / len(results)
            print(f"{title}: {scores[title]} {results[0].outputs.split('}: ')[-1]}")
        best = max(scores, key=lambda title: scores[title])
        return PromptOptimizerOutput(
            optimized_prompts={name: self.changes[best](markup)},
            initial_eval_score=scores["unchanged"],
            final_eval_score=scores[best],
        )


@scorer
def exact(outputs: str, expectations: dict[str, Any]) -> float:
    """Return 1.0 if the answer is the expected one, else 0.0."""
    return float(outputs == expectations["expected_response"])


class ScriptedLLM(CustomLLM):
    """A fake model that answers briefly if the instructions say so."""

    @property
    def metadata(self) -> LLMMetadata:
        """Return the model's properties."""
        return LLMMetadata(model_name="scripted")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer at once."""
        return CompletionResponse(text="No." if "in one word" in prompt else "No, the winch is locked.")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer in one piece."""
        yield self.complete(prompt)


if __name__ == "__main__":
    main()
