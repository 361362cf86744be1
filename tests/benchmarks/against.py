"""Compare with a checkout of another version, in alternating pairs of processes; ``--write`` fills docs/figures.md.

git worktree add ../first 9fa9ab6 && make -C ../first install
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
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page
from matplotlib.figure import Figure
from measure import CASES, HELLO, HERE
from sizes import CASES as SIZES

ROOT = HERE.parents[1]
PICTURE = page.IMAGES / "growth.svg"
FACTORS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = {name.split(" (")[0]: (case.markup, case.variables) for name, case in CASES.items() if "MB" not in name}
GOALS = {"hello": 1.6, "rich": 1.2, "long": 1.2, "heavy": 1.2, "chain": 1.1}  # to the other version
REFERENCES = {  # a second reference for a figure: its key, its name, and the goal
    "first render": ("poml", "one `poml.poml()`", 0.3),
    "chain, first call": ("stock", "MLflow's own first traced call", 1.3),
}
MOST_MS = {"loop items": 250, "blanks": 20}  # at size 64
MOST_MB = {"resident": 130, "private": 85}
EXPONENT = 1.1

Time = list[float]  # milliseconds of wall time and of CPU time
Taken = dict[str, dict[str, list[Time]]]


class Sides:
    """Both versions, each with a cache and an MLflow store of its own, and its environment where it has one."""

    def __init__(self, other: Path, folder: Path) -> None:
        self._checkouts = {"now": ROOT, "then": other}
        self._folder = folder

    def probe(self, side: str, kind: str, given: Any, workers: int = 1) -> dict[str, Any]:
        """Measure in a new process."""
        checkout = self._checkouts[side]
        own = checkout / ".venv" / "bin" / "python"
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout / "src"),
            "POMLFLOW_MAX_WORKERS": str(workers),
            "POMLFLOW_CACHE_DIR": str(self._folder / side),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self._folder}/{side}.db",
        }
        done = subprocess.run(
            [str(own) if side == "then" and own.exists() else sys.executable, str(HERE / "probe.py")],
            input=json.dumps([kind, given]), env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{kind} of {checkout} failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def pairs(sides: Sides, count: int) -> Taken:
    """The times by what was measured and by side; ``poml`` and ``stock`` are the references."""
    taken: Taken = defaultdict(lambda: defaultdict(list))
    for side in ("now", "then"):  # the caches and the stores
        sides.probe(side, "chain", 1)
    for number in range(count):
        start = time.monotonic()
        for side in ("now", "then")[:: 1 if number % 2 else -1]:
            for name, value in sides.probe(side, "renders", PROMPTS).items():
                taken[name][side].append(value)
            for name, value in sides.probe(side, "chain", 100).items():
                taken[f"chain, {name}"][side].append(value)
        taken["first render"]["poml"].append(sides.probe("now", "poml", HELLO.markup)["one call"])
        taken["chain, first call"]["stock"].append(sides.probe("now", "stock chain", 0)["first call"])
        report(f"pair {number + 1} of {count} took {time.monotonic() - start:.0f} s")
    return taken


def ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rows(taken: Taken) -> Iterator[str]:
    """Medians of each side, and the median of the pairs' ratios, in wall time and in CPU time."""
    yield "| what | then | now | now to then | in CPU time | goal |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, sides in taken.items():
        shown = " | ".join(ms(statistics.median(wall for wall, _ in sides[side])) for side in ("then", "now"))
        goal = "" if "first" in name else f"{GOALS[name.split(',')[0]]}"
        yield f"| {name} | {shown} | {ratio(sides, 'then', 0):.2f} | {ratio(sides, 'then', 1):.2f} | {goal} |"
    for name, (other, what, goal) in REFERENCES.items():
        sides = taken[name]
        shown = " | ".join(ms(statistics.median(wall for wall, _ in sides[side])) for side in (other, "now"))
        yield f"| {name}, to {what} | {shown} | {ratio(sides, other, 0):.2f} | {ratio(sides, other, 1):.2f} | {goal} |"


def ratio(sides: dict[str, list[Time]], other: str, kind: int) -> float:
    return statistics.median(a[kind] / b[kind] for a, b in zip(sides["now"], sides[other], strict=True))


def memory(sides: Sides, count: int) -> Iterator[str]:
    """Megabytes of a Node process after 500 renders of the rich prompt, with one and with four processes."""
    yield "| megabytes of a Node process after 500 renders of rich | then | now | goal |"
    yield "| --- | --- | --- | --- |"
    for workers in (1, 4):
        found = {
            side: [sides.probe(side, "memory", [PROMPTS["rich"], workers], workers) for _ in range(count)]
            for side in ("then", "now")
        }
        for name, goal in MOST_MB.items():
            then, now = (f"{statistics.median(one[name] for one in found[side]):.0f}" for side in ("then", "now"))
            yield f"| {name}, {workers} process{'es' if workers > 1 else ''} | {then} | {now} | {goal} |"
        report(f"memory with {workers} measured")


def growth(sides: Sides, picture: Path | None) -> Iterator[str]:
    """Time against size, and a picture of it; the exponent is the slope of a line from size 8 to size 64."""
    cases = {name: {str(factor): make(factor) for factor in FACTORS} for name, make in SIZES.items()}
    found = {side: sides.probe(side, "growth", cases) for side in ("now", "then")}
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, side in zip(panels, ("then", "now"), strict=True):
        for name, values in found[side].items():
            panel.plot(list(map(int, values)), [wall for wall, _ in values.values()], marker=".", label=name)
        title = {"then": "the other version", "now": "now"}[side]
        panel.set(xscale="log", yscale="log", xlabel="size", title=title, ylabel="ms")
    panels[1].legend(fontsize=8, frameon=False)
    if picture is not None:
        figure.savefig(picture, metadata={"Date": None})
    yield "| what | size 1 | size 8 | size 64 | exponent | goal | then, size 64 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, values in found["now"].items():
        shown = " | ".join(ms(values[size][0]) for size in ("1", "8", "64") if size in values)
        points = [(math.log(int(size)), math.log(wall)) for size, (wall, _) in values.items() if int(size) >= 8]
        exponent = statistics.linear_regression(*zip(*points, strict=True)).slope
        size, (then, _) = list(found["then"][name].items())[-1]
        goal = f"{EXPONENT}" + (f", {MOST_MS[name]} ms" if name in MOST_MS else "")
        other = ms(then) + ("" if size == "64" else f" at size {size}")
        yield f"| {name} | {shown} | {exponent:.2f} | {goal} | {other} |"
    report("growth measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the other version")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write docs/figures.md")
    arguments = parser.parse_args()
    busy = page.loaded()
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(arguments.other.resolve(), Path(folder))
        speed = list(rows(pairs(sides, arguments.pairs)))
        sizes = list(growth(sides, PICTURE if arguments.write else None))
        megabytes = list(memory(sides, min(3, arguments.pairs)))
    note = (
        f"Medians of {arguments.pairs} alternating pairs of processes, with Python {platform.python_version()} and "
        f"{os.cpu_count()} cores. Times are wall time but where they say CPU time, which is that of Python and its "
        f"Node processes together.{busy}"
    )
    scale = (
        "Size 64 is 80 KB of blanks, 16,000 lines, 8,000 loop items, 1,920 table rows, elements and history messages, "
        "8,000 objects of JSON data; the fastest of up to 24 renders, the sizes in turn. The exponent is that from "
        "size 8 to size 64."
    )
    picture = f"![Time against size](images/{PICTURE.name})"
    lines = [*speed, "", *megabytes, "", note, "", *sizes, "", scale, "", picture]
    print(*lines, sep="\n")
    if arguments.write:
        page.write("against", lines)


if __name__ == "__main__":
    main()
