"""Output of the commands, with colours on a terminal and without them in a pipe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

import click

from pomlflow.frame.transcript import sections

_COLOURS = {"system": "magenta", "human": "green", "ai": "blue", "tool": "yellow"}
T = TypeVar("T")
_BAR = 30  # the width of a progress bar
_AROUND = 2  # the number of unchanged lines shown before and after a change
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items; if there are several, show a bar on standard error if that is a terminal."""
    visible = bool(items[1:]) and sys.stderr.isatty()
    for number, item in enumerate(items, 1):
        if visible:
            bar = "#" * (_BAR * (number - 1) // len(items))
            click.echo(f"\x1b[K\n{what} [{bar:-<{_BAR}}] {number} of {len(items)}\x1b[K\x1b[A\r", nl=False, err=True)
        yield item
    if visible:
        click.echo("\x1b[K\n\x1b[K\x1b[A\r", nl=False, err=True)


def shown_path(file: str | Path) -> str:
    """Return a path relative to the working folder if it is below that, else unchanged."""
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):  # the working folder was removed, or the path is not below it
        return str(path)


def show_json(value: Any) -> None:
    """Print a value as JSON; escape all characters other than ASCII if the console may not encode one of them."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(value, ensure_ascii=not is_utf8, indent=2))


def show_chat(output: Mapping[str, Any]) -> None:
    """Print a render's output (the form of ``poml.poml(format="dict")``) as a chat."""
    for title, content in sections(output):
        if title:
            click.secho(f"--- {title}", fg=_COLOURS.get(title), bold=True)
        if isinstance(content, str):
            click.echo(content)
        else:
            show_json(content)


def word_diff(before: str, after: str) -> Iterator[str]:
    """Yield the changed lines of a text with some context, in a format like that of ``git diff --word-diff``."""
    old, new = before.split("\n"), after.split("\n")
    groups = SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(_AROUND)
    for group in groups:
        yield click.style(f"@@ line {group[0][3] + 1} @@", fg="cyan")
        for kind, i, j, k, m in group:
            if kind == "equal":
                yield from new[k:m]
            else:
                yield from _changed("\n".join(old[i:j]), "\n".join(new[k:m])).split("\n")


def _changed(before: str, after: str) -> str:
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    words = SequenceMatcher(None, old, new, autojunk=False)
    pieces = []
    for kind, i, j, k, m in words.get_opcodes():
        if kind == "equal":
            pieces.append("".join(new[k:m]))
            continue
        pieces.append(_marked("".join(old[i:j]), "[-", "-]", "red") + _marked("".join(new[k:m]), "{+", "+}", "green"))
    return "".join(pieces)


def _marked(text: str, opening: str, closing: str, colour: str) -> str:
    """Mark each line of a text separately, since a line may be shown alone."""
    lines = ["" if not line else click.style(f"{opening}{line}{closing}", fg=colour) for line in text.split("\n")]
    return "\n".join(lines)
