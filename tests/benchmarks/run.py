"""Measure what docs/figures.md claims, as ratios within one run; ``--write`` puts table and picture there.

make bench
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator

from bound import bound_models
from frameworks import chains, queries
from load import growth, load, sandbox
from measure import HERE, Row
from plot import plot
from renders import first_render, renders

from pomlflow import engine

PAGE = HERE.parents[1] / "docs" / "figures.md"
PICTURE = HERE.parents[1] / "docs" / "images" / "figures.svg"


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
        yield from sandbox()
        yield from growth((1, 1_000, 10_000))
        yield from chains()
        yield from bound_models()
        yield from queries()

    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    lines = ["| what | median | compared |", "| --- | --- | --- |"]
    print(*lines, sep="\n")
    for row in rows():
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    cores = os.cpu_count() or 1
    versions = f"Python {platform.python_version()}, poml {engine.poml_version()}, {cores} cores"
    told = " that were busy with other work: read the ratios, and those with care" if busy > cores / 2 else ""
    lines += ["", f"Measured by `make bench` with {versions}{told}."]
    print(lines[-1])
    if arguments.write:
        plot(times, latencies, PICTURE)
        lines += ["", f"![Time of a render, and its spread under load](images/{PICTURE.name})"]
        table = "\n".join(lines)
        before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- bench -->\n")
        _, _, after = rest.partition("<!-- /bench -->\n")
        PAGE.write_text(f"{before}<!-- bench -->\n{table}\n<!-- /bench -->\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
