"""Compare with a checkout of another version, in alternating pairs of processes; ``--write`` makes docs/figures.md.

git worktree add ../first 9fa9ab6
python tests/benchmarks/against.py ../first --write
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measure import CASES, HELLO, HERE
from sizes import CASES as SIZES
from timing import median_ms

ROOT = HERE.parents[1]
FIGURES, PICTURE = ROOT / "docs" / "figures.md", ROOT / "examples" / "growth.svg"
FACTORS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = {name.split(" (")[0]: (case.markup, case.variables) for name, case in CASES.items() if "MB" not in name}
LIMITS = {
    "hello, back to back": 1.6, "hello, 25 a second": 1.6, "rich, 8 threads, for a render": 1.2,
    "chain, back to back": 1.1, "chain, 25 a second": 1.1,
}  # fmt: skip


class Sides:
    """Both versions, each with a cache and an MLflow store of its own."""

    def __init__(self, other: Path, folder: Path) -> None:
        self._sources = {"now": ROOT / "src", "then": other / "src"}
        self._folder = folder

    def probe(self, side: str, kind: str, given: Any) -> dict[str, Any]:
        """Measure in a new process."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._sources[side]),
            "POMLFLOW_MAX_WORKERS": "1",
            "POMLFLOW_CACHE_DIR": str(self._folder / side),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self._folder}/{side}.db",
        }
        done = subprocess.run(
            [sys.executable, str(HERE / "probe.py")],
            input=json.dumps([kind, given]), env=environment, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def pairs(sides: Sides, count: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds and megabytes by what was measured and by side; ``poml`` and ``mlflow`` are the references."""
    taken: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for side in ("now", "then"):  # the caches and the stores
        sides.probe(side, "chain", 1)
    for number in range(count):
        for side in ("now", "then")[:: 1 if number % 2 else -1]:
            for name, value in sides.probe(side, "renders", PROMPTS).items():
                taken[name][side].append(value)
            for name, value in sides.probe(side, "chain", 100).items():
                taken[f"chain, {name}"][side].append(value)
        taken["first render"]["reference"].append(median_ms(HELLO.theirs, 1))
        taken["chain, first call"]["reference"].append(sides.probe("now", "stock chain", 0)["first call"])
        print(f"pair {number + 1} of {count}", file=sys.stderr, flush=True)
    return taken


def rows(taken: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Medians of each side, and the median of the pairs' ratios."""
    yield "| what | then | now | now to then | limit |"
    yield "| --- | --- | --- | --- | --- |"
    for name, sides in taken.items():
        unit = "" if name.startswith("MB") else " ms"
        medians = [f"{statistics.median(sides[side]):.3g}{unit}" for side in ("then", "now")]
        limit = LIMITS.get(name, "" if "first" in name or unit == "" else 1.2)
        yield f"| {name} | {' | '.join(medians)} | {ratio(sides, 'then'):.2f} | {limit} |"
        if "reference" in sides:
            what, most = ("one `poml.poml()`", 0.3) if "render" in name else ("MLflow's own", 1.3)
            yield f"| {name}, to {what} | | | {ratio(sides, 'reference'):.2f} | {most} |"
    for name, most in (("MB resident", 130), ("MB private", 85)):
        yield f"| {name} of a worker after 500 renders | | {statistics.median(taken[name]['now']):.0f} | | {most} |"


def ratio(sides: dict[str, list[float]], other: str) -> float:
    return statistics.median(a / b for a, b in zip(sides["now"], sides[other], strict=True))


def growth(sides: Sides) -> Iterator[str]:
    """Time against size, and a picture of it. The exponent is that of the last factor of eight."""
    cases = {name: {str(factor): make(factor) for factor in FACTORS} for name, make in SIZES.items()}
    found = {side: sides.probe(side, "growth", cases) for side in ("now", "then")}
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, side in zip(panels, ("then", "now"), strict=True):
        for name, values in found[side].items():
            panel.plot(list(map(int, values)), list(values.values()), marker=".", label=name)
        panel.set(xscale="log", yscale="log", xlabel="size", title={"then": "9fa9ab6", "now": "now"}[side], ylabel="ms")
    panels[1].legend(fontsize=8, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})
    yield "| what | size 1 | size 8 | size 64 | exponent | then, size 64 |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, values in found["now"].items():
        exponent = math.log(values["64"] / values["8"], 8)
        shown = " | ".join(f"{values[size]:.3g} ms" for size in ("1", "8", "64"))
        then = list(found["then"][name].items())[-1]
        slower = f"{then[1]:.3g} ms" + ("" if then[0] == "64" else f" at size {then[0]}")
        yield f"| {name} | {shown} | {exponent:.2f} | {slower} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the other version")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write docs/figures.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(arguments.other.resolve(), Path(folder))
        tables = [[*growth(sides)], [*rows(pairs(sides, arguments.pairs))]]
    busy = (
        f" The machine had a load of {load:.0f} at the start and {os.getloadavg()[0]:.0f} at the end: read the ratios."
    )
    text = f"""# Figures against the first version (9fa9ab6)

Written by `python tests/benchmarks/against.py CHECKOUT --write`: medians of {arguments.pairs} alternating pairs of
processes, with Python {platform.python_version()} and {os.cpu_count()} cores.{busy}

{chr(10).join(tables[1])}

## Time against size

Size 64 is 80 KB of blanks, 16,000 lines, 8,000 loop items, 1,920 table rows, elements and history messages, 8,000
objects of JSON data. The fastest of up to five renders each.

{chr(10).join(tables[0])}

![Time against size](../examples/growth.svg)
"""
    print(text)
    if arguments.write:
        FIGURES.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
