"""Prompts from MLflow's registry in LlamaIndex alone; the rest is in tests/adapters."""

from __future__ import annotations

import uuid

import pytest

pytest.importorskip("llama_index.core")

from tests.registry_prompts import HELLO, publish

from pomlflow.llama_index import PomlPromptTemplate


def test_components_read_the_prompts_text(mlflow_store):
    """Components that format or join a prompt's text use the text of the version."""
    name = f"hello-{uuid.uuid4().hex[:8]}"
    publish(name, HELLO)
    prompt = PomlPromptTemplate.from_registry(f"prompts:/{name}@production")
    assert prompt.template == "Hello {name}"
    assert prompt.get_template() == HELLO
    assert prompt.format() == "Hello {name}"
