"""What only LangChain's hook of autolog does; the rest is in tests/adapters/test_autolog.py."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager

import pomlflow
from pomlflow.langchain import configure_hook


def test_a_run_that_starts_while_autolog_is_switched_off_keeps_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain reads the hook's variable twice for a run."""
    pomlflow.autolog()
    try:
        handlers = iter([BaseCallbackHandler(), None])
        monkeypatch.setattr(configure_hook._hook, "get", lambda: next(handlers))  # noqa: SLF001 - what LangChain calls
        (handler,) = CallbackManager.configure().handlers
        assert isinstance(handler, BaseCallbackHandler)
    finally:
        monkeypatch.undo()
        pomlflow.autolog(disable=True)
