"""A render's time grows with its size, and not with the square of it as in poml 0.0.8."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.benchmarks.sizes import CASES

from pomlflow import engine


def milliseconds(markup: str, variables: dict[str, Any], times: int) -> float:
    """The fastest of some renders, in Node: what disturbs a render only makes it slower."""
    context, revive = engine.encode(variables)
    request = engine.Request(markup, context, revive)
    return min(engine.run(request).node_ms for _ in range(times))


@pytest.mark.parametrize("name", CASES)
def test_sixteen_times_the_size_takes_about_sixteen_times_as_long(name: str) -> None:
    """And not 256 times; both in one run, and the small one is large enough to be more than a render's fixed part."""
    small, large = (CASES[name](4 * factor) for factor in (1, 16))
    milliseconds(*small, 5)  # V8 compiles
    exponent = math.log(milliseconds(*large, 2) / milliseconds(*small, 5), 16)
    assert exponent < 1.45
