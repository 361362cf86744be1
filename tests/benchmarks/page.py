"""docs/figures.md, whose tables the benchmarks write, and those rows of them that README has too."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"


def write(name: str, lines: list[str]) -> None:
    """Replace the lines between the marks of a benchmark."""
    page = DOCS / "figures.md"
    before, opening, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->\n")
    if not (opening and closing):
        raise SystemExit(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->")
    page.write_text("\n".join([before + opening.rstrip(), *lines, closing + after]), encoding="utf-8")


def update_readme(table: list[str]) -> None:
    """Replace each row in README that has the name of a row of a table, of which the first two lines are the head."""
    readme = ROOT / "README.md"
    rows = {row.split(" | ")[0]: row for row in table[2:]}
    text = readme.read_text(encoding="utf-8").split("\n")
    readme.write_text("\n".join(rows.get(line.split(" | ")[0], line) for line in text), encoding="utf-8")


def loaded() -> str:
    """A warning for the reader if the machine has other work, else an empty text."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy <= (os.cpu_count() or 1) / 2:
        return ""
    return f" The machine was busy with other work (a load of {busy:.0f}): read the ratios, and those with care."
