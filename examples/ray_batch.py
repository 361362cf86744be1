"""2,000 questions in an actor pool of Ray Data: all traces in one MLflow server, linked to one version of the prompt.

    MLFLOW_TRACKING_URI=http://localhost:5000 python examples/ray_batch.py --rows 2000 --actors 2

Batches have 100 rows, so two actors need at least 200. Runs offline, without a key; needs a running `mlflow server`,
and the packages `pomlflow[langchain]` and `ray[data]`.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported

import mlflow
import ray
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser

import pomlflow
from pomlflow import engine
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

PROMPT = Path(__file__).absolute().parent / "prompts" / "text_qa.poml"


class Answers:
    """The chain of an actor, with its own handler and Node process."""

    def __init__(self) -> None:
        """Make the chain in the actor, since a chain cannot be sent to one."""
        prompt = PomlPromptTemplate.from_file(PROMPT, name="answers")
        model = FakeListChatModel(responses=["The swell was three metres."])
        self.chain = (prompt | model | StrOutputParser()).with_config(callbacks=[PomlCallbackHandler()])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer a batch, and return once its traces are stored."""
        batch["began"] = [time.time()] * len(batch["question"])
        rows = [
            {"query_str": question, "context_str": paper}
            for question, paper in zip(batch["question"], batch["paper"], strict=True)
        ]
        batch["answer"] = self.chain.batch(rows)
        batch["node_processes"] = [engine.stats().workers] * len(rows)
        pomlflow.flush(600)
        return batch


def main() -> None:
    """Answer all questions, and print how fast it went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()

    experiment = mlflow.set_experiment("answers")  # once, here: the actors would race to create it
    environment = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_ID": experiment.experiment_id}
    ray.init(num_cpus=options.actors, include_dashboard=False, runtime_env={"env_vars": environment})
    ray.data.DataContext.get_current().enable_progress_bars = False

    questions = [
        {"question": f"Why was there no sampling on day {day}?", "paper": f"Day {day}: swell of three metres."}
        for day in range(options.rows)
    ]
    answers = ray.data.from_items(questions).map_batches(
        Answers, batch_size=100, compute=ray.data.ActorPoolStrategy(size=options.actors)
    )
    rows = answers.take_all()
    seconds = time.time() - min(row["began"] for row in rows)
    ray.shutdown()  # at once: traces that are not stored by now would be lost

    print(f"{len(rows)} rows, the last answer: {rows[-1]['answer']}")
    print(f"{len(rows) / seconds:.1f} rows a second with {options.actors} actors, to the last trace stored")
    print(f"Node processes of an actor: {max(row['node_processes'] for row in rows)}")


if __name__ == "__main__":
    main()
