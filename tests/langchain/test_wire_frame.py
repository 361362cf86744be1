"""The real clients of four providers, compared with the table in the documentation: each cell is sent and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from tests.langchain.wire_clients import client_of
from tests.langchain.wire_table import CLIENTS, FEATURES, LOOK, REFUSED, SCHEMA, TOOL, Feature, documented, found, table
from tests.model_server import Call, ModelServer, model_server, response

from pomlflow import SettingError
from pomlflow.langchain import PomlPromptTemplate

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with model_server() as served:
        yield served


@pytest.fixture(autouse=True)
def _empty_server(server: ModelServer) -> None:
    server.answers[:] = ["the answer"]
    for kept in (server.bodies, server.paths, server.headers):
        kept.clear()


@pytest.fixture(scope="module")
def clients(server: ModelServer) -> dict[str, Any]:
    return {name: client_of(name, server.url) for name in CLIENTS}


def _client(clients: dict[str, Any], name: str) -> Any:
    if clients[name] is None:
        pytest.skip(f"no {name} that can be sent to this machine")
    return clients[name]


def prompt(markup: str) -> PomlPromptTemplate:
    return PomlPromptTemplate(f"<poml>{markup}</poml>", base_dir=ASSETS)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.label)
def test_each_client_sends_what_its_cell_of_the_table_has(
    feature: Feature, client: str, clients: dict[str, Any], server: ModelServer
) -> None:
    chain = prompt(feature.markup).bind_to(_client(clients, client))
    path, expected = feature.paths[CLIENTS.index(client)], feature.value(client)
    if path == REFUSED:
        with pytest.raises(ValueError, match=expected):
            chain.invoke(feature.given)
        assert not server.bodies
        return
    chain.invoke(feature.given)
    sent = found(server.bodies[0], server.paths[0], path)
    sent = sent.replace("-", "+").replace("_", "/") if path.endswith("inlineData.data") else sent
    assert re.search(expected, sent) if isinstance(expected, re.Pattern) else sent == expected


def test_the_documentation_has_the_table() -> None:
    assert documented() == table(), "update it: python -m tests.langchain.wire_table"


def test_ollamas_own_options_are_kept_with_the_settings(clients: dict[str, Any], server: ModelServer) -> None:
    """Given options, ChatOllama forgets its fields."""
    chain = prompt('<runtime temperature="0.5" stop="END"/><p>Hi</p>').bind_to(_client(clients, "ChatOllama"))
    chain.invoke({})
    chain.bind(stop=["X"], options={"seed": 1}).invoke({})
    options = [body["options"] for body in server.bodies]
    assert options[0] == {"num_ctx": 77, "temperature": 0.5, "stop": ["END"]}
    assert options[1] == {"num_ctx": 77, "temperature": 0.5, "stop": ["X"], "seed": 1}


def test_ollamas_client_still_drops_its_own_options(clients: dict[str, Any], server: ModelServer) -> None:
    _client(clients, "ChatOllama").invoke("Hi", options={"seed": 1})
    assert server.bodies[0]["options"] == {"seed": 1}


def test_googles_client_still_takes_no_model_in_a_call(clients: dict[str, Any], server: ModelServer) -> None:
    """It refuses it, or ignores it, by its version."""
    client = _client(clients, "ChatGoogleGenerativeAI")
    try:
        client.invoke("Hi", model="another")
    except ValueError:
        assert server.paths == []
    else:
        assert ["gemini-test" in path for path in server.paths] == [True]


@pytest.mark.parametrize(
    ("client", "bound", "path", "value"),
    [
        ("ChatOpenAI", {"max_completion_tokens": 5}, "max_completion_tokens", 5),
        ("ChatOpenAI", {"stop": ["X"]}, "stop", ["X"]),
        ("ChatAnthropic", {"stop": ["X"]}, "stop_sequences", ["X"]),
        ("ChatGoogleGenerativeAI", {"stop": ["X"]}, "generationConfig.stopSequences", ["X"]),
        ("ChatGoogleGenerativeAI", {"temperature": 0.1}, "generationConfig.temperature", 0.1),
        ("ChatOllama", {"stop": ["X"]}, "options.stop", ["X"]),
        ("ChatOllama", {"temperature": 0.1}, "options.temperature", 0.1),
    ],
)
def test_arguments_bound_to_the_chain_override_the_file_in_the_clients_own_names(
    client: str, bound: dict[str, Any], path: str, value: Any, clients: dict[str, Any], server: ModelServer
) -> None:
    markup = "<runtime temperature='0.5' max-tokens='50' stop-sequences='[\"END\"]'/><p>Hi</p>"
    prompt(markup).bind_to(_client(clients, client)).bind(**bound).invoke({})
    assert found(server.bodies[0], server.paths[0], path) == value


@pytest.mark.parametrize(
    ("client", "bound", "path"),
    [
        ("ChatGoogleGenerativeAI", {"generation_config": None}, "generationConfig.temperature"),
        ("ChatOllama", {"options": None}, "options.temperature"),
    ],
)
def test_arguments_that_are_none_leave_the_files_settings(
    client: str, bound: dict[str, Any], path: str, clients: dict[str, Any], server: ModelServer
) -> None:
    prompt("<runtime temperature='0.5'/><p>Hi</p>").bind_to(_client(clients, client)).bind(**bound).invoke({})
    assert found(server.bodies[0], server.paths[0], path) == 0.5


def test_the_file_overrides_a_bound_generation_config(clients: dict[str, Any], server: ModelServer) -> None:
    """Google's clients would let it override the other arguments; its own settings are kept."""
    bound = _client(clients, "ChatGoogleGenerativeAI").bind(
        generation_config={"temperature": 1, "top_k": 3, "top_p": 1}
    )
    prompt("<runtime temperature='0.5' n='2'/><p>Hi</p>").bind_to(bound).bind(top_p=0.5).invoke({})
    sent = server.bodies[0]["generationConfig"]
    assert {name: sent[name] for name in ("temperature", "topP", "topK", "candidateCount")} == {
        "temperature": 0.5,
        "topP": 0.5,
        "topK": 3,
        "candidateCount": 2,
    }


# google-genai 2.34 makes a subclass of aiohttp's session, and leaves it open.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")
@pytest.mark.filterwarnings("ignore:.*[Uu]nclosed")
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_carries_the_frame_and_comes_in_pieces(
    client: str, clients: dict[str, Any], server: ModelServer
) -> None:
    chain = prompt('<runtime temperature="0.5"/><p>Hi</p>').bind_to(_client(clients, client))
    path = FEATURES[[feature.label for feature in FEATURES].index("`<runtime temperature=…>`")].paths
    for texts in ([chunk.text for chunk in chain.stream({})], [chunk.text async for chunk in chain.astream({})]):
        assert [text for text in texts if text] == ["the a", "nswer"]
    assert [found(body, "", path[CLIENTS.index(client)]) for body in server.bodies] == [0.5, 0.5]


def test_fallbacks_get_the_same_file_in_their_own_parameters(clients: dict[str, Any], server: ModelServer) -> None:
    """OpenAI has no top_k; the file is refused there, and Anthropic takes it."""
    llm = _client(clients, "ChatOpenAI").with_fallbacks([_client(clients, "ChatAnthropic")])
    prompt('<runtime top-k="5" max-tokens="9" stop="END"/><p>Hi</p>').bind_to(llm).invoke({})
    (body,) = server.bodies
    assert server.paths == ["/v1/messages"]
    assert (body["top_k"], body["max_tokens"], body["stop_sequences"]) == (5, 9, ["END"])


@pytest.mark.parametrize("client", CLIENTS)
def test_tools_that_the_client_has_bound_are_merged_by_name(
    client: str, clients: dict[str, Any], server: ModelServer
) -> None:
    from langchain_core.tools import tool

    @tool
    def weather(city: str) -> str:
        """LangChain's."""
        return city

    @tool
    def now() -> str:
        """The time."""
        return "noon"

    markup = '<tool-definition name="weather" description="POML\'s.">{"type": "object"}</tool-definition><p>Hi</p>'
    prompt(markup).bind_to(_client(clients, client).bind_tools([weather, now])).invoke({})
    tools = server.bodies[0]["tools"]
    tools = [declared for found in tools for declared in found.get("functionDeclarations", [found])]
    functions = [found.get("function", found) for found in tools]
    assert [(found["name"], found["description"]) for found in functions] == [
        ("now", "The time."),
        ("weather", "POML's."),
    ]


def test_what_openai_lacks_goes_to_a_server_that_has_it_by_an_extra_body(
    clients: dict[str, Any], server: ModelServer
) -> None:
    """The error names this remedy."""
    openai = _client(clients, "ChatOpenAI")
    with pytest.raises(SettingError, match=re.escape("extra-body='{\"top_k\": …}'")):
        prompt('<runtime top-k="5"/><p>Hi</p>').bind_to(openai).invoke({})
    prompt("""<runtime extra-body='{"top_k": 5}'/><p>Hi</p>""").bind_to(openai).invoke({})
    assert server.bodies[0]["top_k"] == 5


def test_bound_tools_are_made_strict_with_a_schema(clients: dict[str, Any], server: ModelServer) -> None:
    """Otherwise the OpenAI SDK refuses the request."""
    server.answers[:] = ['{"n": 1}', [Call("now", {"zone": None})]]
    openai = _client(clients, "ChatOpenAI").bind_tools(
        [
            {
                "name": "now",
                "description": "",
                "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
            }
        ]
    )
    schema = (
        '<output-schema>{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}</output-schema>'
    )
    chain = prompt(f"{schema}<p>Hi</p>").bind_to(openai)
    assert chain.invoke({}).content == '{"n": 1}'
    assert chain.invoke({}).tool_calls[0]["name"] == "now"
    function = server.bodies[0]["tools"][0]["function"]
    assert (function["strict"], function["parameters"]["required"]) == (True, ["zone"])


def test_openais_responses_api_takes_the_frame(clients: dict[str, Any], server: ModelServer) -> None:
    """Its tools need not be strict, and its tools' responses may hold pictures."""
    server.answers[:] = [response('{"n": 1}')]
    openai = _client(clients, "ChatOpenAI").model_copy(update={"use_responses_api": True})
    assert prompt(f'<runtime max-tokens="9"/>{TOOL}{SCHEMA}{LOOK}').bind_to(openai).invoke({}).text == '{"n": 1}'
    (body,) = server.bodies
    assert server.paths == ["/v1/responses"]
    assert body["max_output_tokens"] == 9
    assert body["text"]["format"]["name"] == "answer"
    assert body["tools"][0]["name"] == "weather"
    assert not body["tools"][0].get("strict")
    assert "input_image" in str(body["input"])


def test_pictures_of_an_agents_own_tools_follow_for_openai(clients: dict[str, Any], server: ModelServer) -> None:
    picture = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
    calls = [{"name": "shot", "args": {}, "id": number} for number in ("1", "2")]
    history = [
        HumanMessage("Look"),
        AIMessage("", tool_calls=calls),
        ToolMessage([{"type": "text", "text": "One"}, picture], tool_call_id="1", name="shot"),
        ToolMessage("Two", tool_call_id="2", name="shot"),
        HumanMessage("And?"),
    ]
    chain = prompt("<conversation messages='{{h}}'/>").bind_to(_client(clients, "ChatOpenAI"))
    chain.invoke({"h": history})
    roles = [message["role"] for message in server.messages]
    assert roles == ["user", "assistant", "tool", "tool", "user", "user"]
    assert server.messages[2]["content"] == "One\n\n[image/png]"
    assert server.messages[4]["content"][0] == {"type": "text", "text": "From shot (1):"}
    assert server.messages[4]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert history[2].content[1] == picture, "the user's own message was changed"


def test_no_address_of_a_moved_picture_is_sent_as_text(clients: dict[str, Any], server: ModelServer) -> None:
    """A signed one is a secret; the picture follows with its address. Nor is the data of another block sent as text."""
    picture = {"type": "image", "url": "https://images.test/box.png?signature=secret"}
    note = {"type": "text-plain", "base64": "SGk=", "mime_type": "text/plain"}
    history = [
        AIMessage("", tool_calls=[{"name": "shot", "args": {}, "id": "1"}]),
        ToolMessage([picture, note], tool_call_id="1", name="shot"),
    ]
    chain = prompt("<conversation messages='{{h}}'/>").bind_to(_client(clients, "ChatOpenAI"))
    chain.invoke({"h": history})
    *_, answer, shown = server.messages
    assert (answer["role"], answer["content"]) == ("tool", "[image]\n\n[text/plain]")
    assert shown["content"][1]["image_url"]["url"] == picture["url"]


def test_empty_messages_are_sent_as_empty_texts(clients: dict[str, Any], server: ModelServer) -> None:
    openai = _client(clients, "ChatOpenAI")
    (prompt("<conversation messages='{{h}}'/>") | openai).invoke({})
    assert server.messages == [{"role": "user", "content": ""}]
    (prompt("<conversation messages='{{h}}'/><human-msg>q</human-msg>") | openai).invoke({"h": [AIMessage("")]})
    assert server.messages == [{"role": "assistant", "content": ""}, {"role": "user", "content": "q"}]


def test_without_binding_a_picture_in_a_tools_result_is_sent_unchanged(
    clients: dict[str, Any], server: ModelServer
) -> None:
    """A chain without `bind_to` changes no message."""
    result = (
        "<tool-response id='c2' name='shot'><p>The screen:</p><img src='box.png' syntax='multimedia'/></tool-response>"
    )
    (prompt(f"<ai-msg><tool-request id='c2' name='shot'/></ai-msg>{result}") | _client(clients, "ChatOpenAI")).invoke(
        {}
    )
    last = server.messages[-1]
    assert (last["role"], last["tool_call_id"]) == ("tool", "c2")
    assert [block["type"] for block in last["content"]] == ["text", "image_url"]
