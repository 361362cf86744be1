"""LangChain's serialisation of prompts from MLflow's registry; the rest is in tests/adapters."""

from __future__ import annotations

from typing import Any

import mlflow
import pytest
from langchain_core.load import dumps, loads
from tests.registry_prompts import BYE, publish
from tests.templates import write
from tests.waiting import until

from pomlflow import RenderError
from pomlflow.langchain import PomlPromptTemplate

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads` is in beta")

LOADING: dict[str, Any] = {"valid_namespaces": ["pomlflow"], "allowed_objects": [PomlPromptTemplate]}


def production(name: str) -> PomlPromptTemplate:
    """What is in production, followed ten times a second."""
    return PomlPromptTemplate.from_registry(f"prompts:/{name}@production", refresh=0.1)


def text(prompt: PomlPromptTemplate, **variables: Any) -> str:
    """Render to one text."""
    return "\n".join(str(message.content) for message in prompt.invoke(variables).to_messages())


def test_a_dumped_prompt_is_equal_and_follows(mlflow_store, name):
    publish(name)
    prompt = production(name)
    loaded = loads(dumps(prompt), **LOADING)
    assert loaded == prompt
    publish(name, BYE)
    until(lambda: text(loaded, name="Ada") == "Bye Ada")
    assert (loaded.version, loaded.template) == (2, BYE)


def test_a_dumped_prompt_is_loaded_without_a_registry(mlflow_store, name, tmp_path):
    """As it was when it was dumped; it is not trusted with files."""
    publish(name, '<poml><p>Hello {{name}}</p><document if="path" src="{{path}}" parser="txt"/></poml>')
    dumped = dumps(production(name))
    mlflow.set_registry_uri("http://127.0.0.1:9")
    prompt = loads(dumped, **LOADING)
    assert (text(prompt, name="Ada", path=""), prompt.version) == ("Hello Ada", None)
    with pytest.raises(RenderError, match="may not be read: this template is not trusted"):
        text(prompt, name="Ada", path=str(write(tmp_path / "secret.txt", "the secret")))
