"""An agent that is a POML file, with the real client of each provider: the content of its second request."""

from __future__ import annotations

from typing import Any

import pytest
from tests.langchain.wire_clients import client_of
from tests.langchain.wire_table import CLIENTS, FEATURES, found
from tests.model_server import Call, ModelServer

from pomlflow.langchain import PomlPromptTemplate

agents = pytest.importorskip("langchain.agents")
from pomlflow.langchain import PomlMiddleware  # noqa: E402 - it is made from langchain's agents

MARKUP = """\
<poml>
  <runtime model="m-1" temperature="0.5" max-tokens="9" stop-sequences='["END"]'/>
  <system-msg>Be kind.</system-msg>
  <tool-definition name="weather" description="The weather.">
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
  </tool-definition>
  <output-schema>{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}</output-schema>
</poml>
"""
PICTURE = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
EXPECTED = {
    "`<system-msg>`": "Be kind.",
    "`<tool-definition description=…>`": "The weather.",
    "`<runtime model=…>`": "m-1",
    "`<runtime temperature=…>`": 0.5,
    "`<runtime max-tokens=…>`": 9,
    "`<runtime stop-sequences=…>`": ["END"],
}


def weather(city: str, days: int = 1) -> list[Any]:
    """The function, whose answer has a picture."""
    return [{"type": "text", "text": f"Rain in {city} for {days}"}, PICTURE]


@pytest.mark.filterwarnings("ignore:.*non-text parts")
@pytest.mark.parametrize("client", CLIENTS)
def test_each_providers_agent_sends_the_files_settings_and_the_tools_picture(client: str, server: ModelServer) -> None:
    model = client_of(client, server.url)
    if model is None:
        pytest.skip(f"no {client} that can be sent to this machine")
    server.answers[:] = [[Call("weather", {"city": "Oslo", "days": 3})], '{"n": 1}']
    agent = agents.create_agent(
        model, middleware=[PomlMiddleware(PomlPromptTemplate.from_template(MARKUP), tools=[weather])]
    )
    state = agent.invoke({"messages": [("user", "Oslo?")]})
    assert state["structured_response"] == {"n": 1}
    body, address = server.bodies[1], server.paths[1]
    for feature in FEATURES:
        if feature.label in EXPECTED:
            path = feature.paths[CLIENTS.index(client)]
            assert found(body, address, path) == EXPECTED[feature.label], feature.label
    schema = next(feature for feature in FEATURES if feature.label == "`<output-schema>`")
    assert found(body, address, schema.paths[CLIENTS.index(client)])["properties"] == {"n": {"type": "integer"}}
    assert "Rain in Oslo for 3" in str(body)
    assert "iVBORw0KGgo=" in str(body)
