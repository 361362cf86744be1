"""LlamaIndex's real clients compared with the table in the documentation: each cell is sent and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from tests.langchain.wire_table import REFUSED, Feature, documented, found, table
from tests.llama_index.wire_table import CLIENTS, FEATURES
from tests.model_server import ModelServer, model_server

from pomlflow.llama_index import PomlPromptTemplate

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
_MODELS = {"OpenAI": "gpt-4o-mini", "OpenAILike": "m-1", "Anthropic": "claude-haiku-4-5"}


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with model_server() as served:
        yield served


@pytest.fixture(scope="module")
def clients(server: ModelServer) -> dict[str, Any]:
    openai = pytest.importorskip("llama_index.llms.openai").OpenAI
    like = pytest.importorskip("llama_index.llms.openai_like").OpenAILike
    anthropic = pytest.importorskip("llama_index.llms.anthropic").Anthropic
    options: dict[str, Any] = {"api_base": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    model_options = {"is_chat_model": True, "is_function_calling_model": True, "should_use_structured_outputs": True}
    return {
        "OpenAI": openai(model="gpt-4o", **options),
        "OpenAILike": like(model="own", **options, **model_options),
        "Anthropic": anthropic(model="claude-sonnet-4-5", base_url=server.url, api_key="none", max_retries=0),
    }


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.label)
def test_each_client_sends_what_its_cell_of_the_table_has(
    feature: Feature, client: str, clients: dict[str, Any], server: ModelServer
) -> None:
    place = CLIENTS.index(client)
    path, expected = feature.paths[place], feature.values[place]
    bound = PomlPromptTemplate(f"<poml>{feature.markup}</poml>", base_dir=ASSETS).bind_to(clients[client])
    for kept in (server.bodies, server.paths):
        kept.clear()
    given = {**feature.given, "model": _MODELS[client]} if "{{model}}" in feature.markup else feature.given
    expected = _MODELS[client] if "{{model}}" in feature.markup else expected
    if path == REFUSED:
        with pytest.raises(ValueError, match=expected):
            bound.chat(**given)
        assert not server.bodies
        return
    bound.chat(**given)
    (body,) = server.bodies
    sent = found(body, server.paths[0], path)
    if path == "system" and isinstance(sent, list):
        sent = "".join(block["text"] for block in sent)
    assert re.search(expected, sent) if isinstance(expected, re.Pattern) else sent == expected


def test_the_documentation_has_the_table() -> None:
    rows = table(FEATURES, CLIENTS)
    assert documented("llama-index") == rows, "update it: python -m tests.llama_index.wire_table"
