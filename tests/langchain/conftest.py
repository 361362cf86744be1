"""Fixtures that run a test with a ChatPromptTemplate and with a PomlPromptTemplate."""

from __future__ import annotations

from typing import Any

import pytest
from tests.langchain.prompts import poml, reference


@pytest.fixture(params=[reference, poml], ids=["ChatPromptTemplate", "PomlPromptTemplate"])
def make(request: pytest.FixtureRequest) -> Any:
    """Return a function that makes the prompt, with options."""
    return request.param


@pytest.fixture
def prompt(make: Any) -> Any:
    """The prompt, as either kind."""
    return make()
