"""Prompts of both frameworks through the life of a real ``mlflow server``: not there yet, there, gone, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import MlflowServer, ServerPort
from tests.registry_prompts import BYE, publish, warnings_of
from tests.templates import write
from tests.waiting import until

from pomlflow.exceptions import RegistryError

pytestmark = pytest.mark.server


def langchain(prompt: Any) -> str:
    return str(prompt.invoke({"name": "Ada"}).to_messages()[0].content)


def llama_index(prompt: Any) -> str:
    return str(prompt.format_messages(name="Ada")[0].content)


def test_each_call_renders_the_last_known_version(
    mlflow_server: MlflowServer,
    use_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And each outage is one warning, however many prompts and calls there are."""
    from pomlflow.langchain import PomlPromptTemplate as LangChain
    from pomlflow.llama_index import PomlPromptTemplate as LlamaIndex

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's own retries delay a lookup for minutes
    name = f"life-{os.getpid()}"
    uri, fallback = f"prompts:/{name}@production", write(tmp_path / "fallback.poml", "<p>Fallback {{name}}</p>")
    server = ServerPort(mlflow_server)
    before = mlflow.get_registry_uri()
    mlflow.set_registry_uri(server.uri)
    for framework in (LangChain, LlamaIndex):
        with pytest.raises(RegistryError, match=uri):
            framework.from_registry(uri)
    prompts = [
        (answer, framework.from_registry(uri, refresh=0.1, fallback=fallback))
        for framework, answer in ((LangChain, langchain), (LlamaIndex, llama_index))
    ]

    def outages() -> int:
        return len([warning for warning in warnings_of(caplog) if "is unreachable. Calls go on" in warning])

    def answers() -> set[tuple[str, Any]]:
        return {(answer(prompt), prompt.version) for answer, prompt in prompts}

    assert answers() == {("Fallback Ada", None)}
    until(lambda: outages() == 1)
    mlflow.set_registry_uri(before)
    with server:
        use_server(server)
        publish(name)
        until(lambda: answers() == {("Hello Ada", 1)}, 150)  # MLflow may be retrying on a busy machine
        assert outages() == 1

        server.close()
        for _ in range(20):
            assert answers() == {("Hello Ada", 1)}
        until(lambda: outages() == 2)
        assert answers() == {("Hello Ada", 1)}
        server.open()
        publish(name, BYE)
        until(lambda: answers() == {("Bye Ada", 2)}, 150)
        # Before the server stops again, which is another outage.
        assert outages() == 2
        assert len(warnings_of(caplog)) <= 3  # with "not found", if it was looked up before it was published
