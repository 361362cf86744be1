"""Fixtures of the tests of `pomlflow.tracking`."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.pending import waiting_publisher

from pomlflow.record import RenderRecord
from pomlflow.tracking.versions import Registry


@pytest.fixture
def publisher() -> Iterator[Any]:
    """A publisher with an empty cache, as in a new process."""
    publisher = waiting_publisher()
    yield publisher
    assert publisher.flush(30)


@pytest.fixture
def lookups_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold all lookups of versions until this event is set; MLflow's own flush does not wait for them."""
    allowed, find = threading.Event(), Registry.find
    monkeypatch.setenv("POMLFLOW_FLUSH_TIMEOUT", "0.1")
    monkeypatch.setattr(Registry, "find", lambda *given, **named: allowed.wait(30) and find(*given, **named))
    yield allowed
    allowed.set()


@pytest.fixture
def record() -> Callable[..., RenderRecord]:
    """Make a render record whose content no other test has; keyword arguments replace its fields."""
    unique = uuid.uuid4().hex

    def make(content: str = "", **changes: Any) -> RenderRecord:
        import hashlib

        source = changes.pop("source", f"<p>Hello {{{{name}}}} {content}</p>")
        now = time.time_ns()
        given = {
            "name": f"greet-{unique[:8]}",
            "source": source,
            "digest": hashlib.sha256(f"{unique}{source}".encode()).hexdigest(),
            "context": b'{"name": "Ada"}',
            "output": {"messages": [{"speaker": "human", "content": "Hello Ada"}]},
            "start_ns": now - 1_000_000,
            "end_ns": now,
            "poml_version": "0.0.8",
        }
        return RenderRecord(**{**given, **changes})

    return make
