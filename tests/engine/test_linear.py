"""A render's time grows with its size, and not with the square of it as in poml 0.0.8."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.sizes import CASES

from pomlflow import engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def cpu_time() -> int:
    """The CPU time of the Node process until now, in nanoseconds."""
    [pid] = engine.stats().pids
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def cost(markup: str, variables: dict[str, Any], times: int) -> int:
    """The CPU time of some renders of the same request."""
    context, revive = engine.encode(variables)
    request = engine.Request(markup, context, revive)
    engine.run(request)  # V8 compiles, and the first garbage is collected
    before = cpu_time()
    for _ in range(times):
        engine.run(request)
    return cpu_time() - before


@pytest.mark.parametrize("name", CASES)
def test_render_cost_grows_linearly_with_size(name: str, fresh: None) -> None:
    """One render of 16 times the size costs at most 3.5 times as much as 16 renders; a quadratic one would cost 16."""
    small, large = (CASES[name](4 * factor) for factor in (1, 16))
    sixteen = cost(*small, 16)
    assert cost(*large, 1) < 3.5 * sixteen
