"""The code blocks of a Markdown page, and what they are for.

A fence with ``title="name.ext"`` is a file that the page's later blocks use. A fence with ``title="Output"`` is what
the block before it prints, and ``title="Error"`` the error that it raises; ``…`` stands for any text. ``python`` and
``sh`` fences without a title are run. A comment ``<!-- not run: reason -->`` above a fence keeps it from being run, and
a comment ``<!-- setup`` holds Python that is run and not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["ROOT", "Block", "blocks", "links", "slugs"]

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(
    r"^<!-- not run: (?P<reason>.+?) -->\n+(?=\s*```)|"
    r"^<!-- setup\n(?P<setup>.*?)\n-->$|"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<attributes>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="(.+?)"')
_LINK = re.compile(r"\]\(([^)\s]+)\)")

Kind = Literal["run", "file", "output", "error", "shown"]


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        kind: What is done with it.
        language: As the fence names it.
        title: The file's name, ``Output`` or ``Error``; empty without one.
        text: The code.
        line: The page's line that the text starts on.
    """

    kind: Kind
    language: str
    title: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    not_run = False
    for found in _FENCE.finditer(page):
        if found["reason"]:
            not_run = True
            continue
        if found["setup"] is not None:
            yield Block("run", "python", "", found["setup"], page.count("\n", 0, found.start("setup")) + 1)
            continue
        indent, line = len(found["indent"]), page.count("\n", 0, found.start("text")) + 1
        text = "\n".join(row[indent:] for row in found["text"].splitlines()) + "\n"
        title = _TITLE.search(found["attributes"])
        name = title[1] if title else ""
        yield Block(_kind(found["language"], name, not_run=not_run), found["language"], name, text, line)
        not_run = False


def _kind(language: str, title: str, *, not_run: bool) -> Kind:
    if not_run:
        return "shown"
    if title in ("Output", "Error"):
        return "output" if title == "Output" else "error"
    if title:
        return "file"
    return "run" if language in ("python", "sh") else "shown"


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures, those to other sites left out."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return [target for target in _LINK.findall(prose) if "://" not in target]


def slugs(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
