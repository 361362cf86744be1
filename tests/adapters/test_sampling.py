"""Calls that MLflow is not to trace: they run as usual, and nothing of them is stored."""

from __future__ import annotations

from collections.abc import Callable

import mlflow
import pytest
from mlflow.entities import Trace
from tests.adapters.frameworks import Framework
from tests.templates import HELLO

pytestmark = pytest.mark.usefixtures("sync_export")


def test_calls_are_untraced_while_tracing_is_disabled_or_not_sampled(
    framework: Framework, stored_traces: Callable[[], list[Trace]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, handler = framework.prompts.from_template(HELLO, register=False), framework.handler()

    def call() -> None:
        assert framework.run(prompt, handler=handler, name="Ada") == "the answer"
        assert framework.stream(prompt, handler=handler, name="Ada") == "the answer"

    mlflow.tracing.disable()
    try:
        call()
    finally:
        mlflow.tracing.enable()
    with mlflow.tracing.context(enabled=False):
        call()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0")
        mlflow.tracing.reset()
        call()
    mlflow.tracing.reset()
    assert stored_traces() == []
    call()
    assert len(stored_traces()) == 2
