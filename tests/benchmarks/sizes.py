"""Prompts of any size, one for each part of a render whose cost could grow faster than the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Prompt = tuple[str, dict[str, Any]]

_ROW = {"name": "Ada", "score": 9.5, "note": "a few words"}


def _messages(count: int) -> list[dict[str, str]]:
    return [{"speaker": ("human", "ai")[n % 2], "content": f"message {n}"} for n in range(count)]


CASES: dict[str, Callable[[int], Prompt]] = {
    "blanks": lambda size: ("<p>{{v}}</p>", {"v": "a" + " " * 1_250 * size + "b"}),
    "lines": lambda size: ("<p>{{v}}</p>", {"v": "some words\n \t" * 250 * size}),
    "loop items": lambda size: (
        "<poml><list><item for='x in v'>{{x}}</item></list></poml>",
        {"v": ["one"] * 125 * size},
    ),
    "table rows": lambda size: ("<table records='{{v}}'/>", {"v": [_ROW] * 30 * size}),
    "elements": lambda size: (f"<poml>{'<p>Some <b>bold</b> text</p>' * 30 * size}</poml>", {}),
    "history messages": lambda size: ("<poml><conversation messages='{{v}}'/></poml>", {"v": _messages(30 * size)}),
    "JSON data": lambda size: ("<obj data='{{v}}' syntax='json'/>", {"v": [_ROW] * 125 * size}),
}
