"""A render's time grows with its size, not with the square of it as in poml 0.0.8."""

from __future__ import annotations

from typing import Any

import pytest

from pomlflow import engine

ITEMS = "<poml><list><item for='x in v'>{{x}}</item></list></poml>"
CASES = {
    "blanks": ("<p>{{v}}</p>", 1_000, lambda size: "a" + " " * 10 * size + "b"),
    "lines": ("<p>{{v}}</p>", 1_000, lambda size: "a\n \t" * size),
    "items of a loop": (ITEMS, 250, lambda size: ["one"] * size),
    "elements": ("<poml><p for='x in v'><b>{{x}}</b> and <i>{{x}}</i></p></poml>", 100, lambda size: ["one"] * size),
    "messages": ("<poml><human-msg for='x in v'>{{x}}</human-msg></poml>", 150, lambda size: ["one"] * size),
}


def milliseconds(markup: str, value: Any) -> float:
    context, revive = engine.encode({"v": value})
    request = engine.Request(markup, context, revive)
    return min(engine.run(request).node_ms for _ in range(4))


@pytest.mark.parametrize("name", CASES)
def test_eight_times_the_size_takes_about_eight_times_as_long(name: str) -> None:
    """And not 64 times; measured in Node, where the small one is large enough to be more than a start."""
    markup, size, value = CASES[name]
    for _ in range(3):
        milliseconds(markup, value(size))
    small, large = (milliseconds(markup, value(many)) for many in (size, 8 * size))
    assert large < 24 * max(small, 0.5)
