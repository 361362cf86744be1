"""Measure what docs/figures.md claims, as ratios within one run.

``--write`` puts table and picture there, and the rows that README has too into README.

make bench
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator

import page
from bound import bound_models
from costs import costs
from frameworks import chains, queries
from load import growth, load, sandbox
from measure import RICH, Row
from plot import plot
from renders import first_render, renders

from pomlflow import engine

PICTURE = page.IMAGES / "figures.svg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/figures.md")
    parser.add_argument("--soak", action="store_true", help="only the growth, up to 50,000 renders")
    arguments = parser.parse_args()
    times: dict[str, tuple[float, float, float]] = {}
    latencies: dict[str, list[float]] = {}

    def rows() -> Iterator[Row]:
        if arguments.soak:
            yield from growth((1, 1_000, 10_000, 50_000))
            return
        yield from renders(times)
        yield from first_render()
        yield from load(latencies)
        yield from costs(RICH)
        yield from sandbox()
        yield from growth((1, 1_000, 10_000))
        yield from chains()
        yield from bound_models()
        yield from queries()

    busy = page.loaded()
    lines = ["| what | median | compared |", "| --- | --- | --- |"]
    print(*lines, sep="\n")
    for row in rows():
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    versions = f"Python {platform.python_version()}, poml {engine.poml_version()}, {os.cpu_count()} cores"
    lines += ["", f"Measured by `make bench` with {versions}.{busy}"]
    print(lines[-1])
    if arguments.write:
        plot(times, latencies, PICTURE)
        page.update_readme(lines)
        page.write("bench", [*lines, "", f"![Time of a render, and its spread under load](images/{PICTURE.name})"])


if __name__ == "__main__":
    main()
