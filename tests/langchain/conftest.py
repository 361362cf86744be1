"""A prompt as either kind: whatever users do with LangChain's own must work with POML's."""

from __future__ import annotations

from typing import Any

import pytest
from tests.langchain.prompts import poml, reference


@pytest.fixture(params=[reference, poml], ids=["ChatPromptTemplate", "PomlPromptTemplate"])
def make(request: pytest.FixtureRequest) -> Any:
    """Makes the prompt, with options, as either kind."""
    return request.param


@pytest.fixture
def prompt(make: Any) -> Any:
    """The prompt, as either kind."""
    return make()
