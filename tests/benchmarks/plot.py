"""The figures as one picture."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

KINDS = {"poml.poml()": "#b0b0b0", "pomlflow": "#0194e2", "inside Node": "#43c9ed"}


def plot(renders: dict[str, tuple[float, float, float]], latencies: dict[str, list[float]], file: Path) -> None:
    """Draw the time of a render, and how it is spread under load.

    Args:
        renders: For each prompt the milliseconds of ``poml.poml``, of pomlflow and inside Node.
        latencies: For each kind of load the milliseconds of each render.
        file: Where the picture goes.
    """
    mpl.rcParams["svg.hashsalt"] = "pomlflow"  # so that equal figures give an equal file
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [name.split(" (")[0] for name in renders]
    for place, (label, colour) in enumerate(KINDS.items()):
        values = [times[place] for times in renders.values()]
        at = [number + (place - 1) * 0.27 for number in range(len(names))]
        bars = left.bar(at, values, 0.25, label=label, color=colour)
        left.bar_label(bars, [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in values], fontsize=7)
    left.set(yscale="log", ylabel="ms a render, back to back", ylim=(0.03, 9000))
    left.set_xticks(range(len(names)), names, fontsize=8)
    left.legend(fontsize=8, ncols=3, loc="upper center", frameon=False)
    for name, taken in latencies.items():
        points = statistics.quantiles(taken, n=1000)
        right.plot([number / 10 for number in range(1, 1000)], points, label=name)
    right.set(xlabel="percentile of renders (rich)", ylabel="ms", yscale="log")
    right.legend(fontsize=8, frameon=False)
    figure.savefig(file, metadata={"Date": None})
