"""What the tests of both frameworks share."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.adapters.frameworks import Framework, LangChain, LlamaIndex

# What MLflow and LlamaIndex do that warns; in MLflow's tracers a warning that is an error costs the span.
_FOREIGN = (
    "ignore:The ``noload`` loader strategy",  # mlflow 3.17 with SQLAlchemy 2.1
    "ignore:.*Any type hint is inferred as AnyType:UserWarning",  # mlflow 3.17: the first span imports mlflow.pyfunc
    "ignore:The `__(fields|fields_set)__` attribute is deprecated:DeprecationWarning",  # LlamaIndex 0.14
    "ignore:Accessing the 'model_(computed_)?fields' attribute on the instance is deprecated:DeprecationWarning",
    "ignore:is_running called from within a step:DeprecationWarning",  # LlamaIndex 0.14's agents
    "ignore:<aiosqlite.core.Connection object:ResourceWarning",  # LlamaIndex 0.14: an agent's memory is never closed
    "ignore:The 'validate_default' attribute",  # mlflow 3.12 with pydantic 2.12: the first span of a chat model
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let other packages' own warnings pass in this folder, where all others are errors."""
    for allowed in _FOREIGN:
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


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt's name that no other test has; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    return f"{tmp_path.name}-{os.getpid()}"
