"""Prompts for the benchmarks, and medians of interleaved measurements."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", LANGSMITH_TRACING="false")
os.environ["MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE"] = "100000"  # a full queue drops traces, which would cost less

import poml
from timing import median_ms

from pomlflow import engine

HERE = Path(__file__).parent
FINDINGS = [
    {"title": f"Finding {n}", "year": 2015 + n, "method": "trial", "summary": "it helped a little", "effect": n / 10,
     "unit": "points"}
    for n in range(5)
]  # fmt: skip
ANALYSIS = {
    "audience": "policy makers", "words": 400, "minutes": 5, "findings": FINDINGS, "earlier": "", "question": "Why?",
    "definitions": [{"term": "power", "meaning": "the chance to find what is there"}],
    "numbers": [{"site": site, "n": 40, "mean": 1.5} for site in "ABCDE"], "history": [],
}  # fmt: skip
MEGABYTE = {"rows": [{"id": n, "text": "x" * 80} for n in range(10_000)]}

Row = tuple[str, str, str]


def interleaved(works: dict[str, Callable[[], Any]], rounds: int, times: int) -> dict[str, list[float]]:
    """The medians of each round, with the works in turn, so that a busy moment affects all of them."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in sorted(works.items(), reverse=bool(number % 2)):
            taken[name].append(median_ms(work, times))
    return taken


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios: a slow moment of the machine affects both sides of a round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


class Case:
    """One prompt, rendered by us and by ``poml.poml``."""

    def __init__(self, markup: str, variables: dict[str, Any]) -> None:
        self.markup, self.variables = markup, variables
        self.node: list[float] = []

    def ours(self) -> None:
        context, revive = engine.encode(self.variables)
        self.node.append(engine.run(engine.Request(self.markup, context, revive)).node_ms or 0.0)

    def theirs(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "prompt.poml")
            file.write_text(self.markup, encoding="utf-8")
            poml.poml(file, context=self.variables, format="dict")


def prompt(name: str) -> str:
    return (HERE / f"{name}.poml").read_text(encoding="utf-8")


HELLO = Case("<p>Hello {{name}}, how are you?</p>", {"name": "Ada"})
RICH = Case(
    prompt("plan"), {"team": "six", "notes": "The mail queue waits for the database. Nobody knows the old cron jobs."}
)
CASES = {
    "hello": HELLO,
    "rich (35 lines, nested lists)": RICH,
    "long (92 lines, loop, tools, schema)": Case(prompt("rich"), ANALYSIS),
    "heavy (tables, loops, 160 elements)": Case(prompt("heavy"), ANALYSIS),
    "1 MB of context": Case("<p>{{rows.length}} rows, the last is {{rows[rows.length - 1].id}}</p>", MEGABYTE),
}
