"""Fixtures of the tests that run with both frameworks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
from tests.adapters.frameworks import Framework, LangChain, LlamaIndex

# LlamaIndex 0.14's own; in MLflow's tracers a warning that is an error costs the span.
_IGNORED_WARNINGS = (
    "ignore:The `__(fields|fields_set)__` attribute is deprecated:DeprecationWarning",
    "ignore:Accessing the 'model_(computed_)?fields' attribute on the instance is deprecated:DeprecationWarning",
    "ignore:is_running called from within a step:DeprecationWarning",
    "ignore:<aiosqlite.core.Connection object:ResourceWarning",  # an agent's memory is never closed
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let other packages' own warnings pass in this folder, where all others are errors."""
    for allowed in _IGNORED_WARNINGS:
        item.add_marker(pytest.mark.filterwarnings(allowed))


@pytest.fixture(params=["langchain", "llama_index"])
def framework(request: pytest.FixtureRequest) -> Iterator[Framework]:
    """Each framework in a test of its own; skipped where it is not installed."""
    if request.param == "langchain":
        pytest.importorskip("langchain_core")
        yield LangChain()
        return
    pytest.importorskip("llama_index.core")
    from llama_index.core.instrumentation import get_dispatcher

    if not inspect.iscoroutinefunction(request.function):
        # Else LlamaIndex's asyncio_run (0.14.25) makes a loop in the main thread and never closes it.
        asyncio.set_event_loop(None)
    root = get_dispatcher()
    events, spans = list(root.event_handlers), list(root.span_handlers)
    yield LlamaIndex()
    root.event_handlers, root.span_handlers = events, spans
