"""What LlamaIndex's real clients of OpenAI and Anthropic send for a POML prompt; only the answers are scripted."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.model_server import Call, ModelServer, picture, response, words

pytest.importorskip("llama_index.core")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, ToolCallBlock

from pomlflow.llama_index import PomlPromptTemplate

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
PNG = "<img src='box.png' alt='a red box' syntax='multimedia'/>"
GIVEN = {"tone": "kind", "q": "Why?"}
MODELS = ["openai", "like", "anthropic"]


def prompt(markup: str, **options: Any) -> PomlPromptTemplate:
    return PomlPromptTemplate(f"<poml>{markup}</poml>", base_dir=ASSETS, **options)


@pytest.fixture
def openai(server: ModelServer) -> Any:
    llms = pytest.importorskip("llama_index.llms.openai")
    return llms.OpenAI(model="gpt-4o", api_base=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def like(server: ModelServer) -> Any:
    llms = pytest.importorskip("llama_index.llms.openai_like")
    options = {"is_chat_model": True, "is_function_calling_model": True, "should_use_structured_outputs": True}
    return llms.OpenAILike(model="own", api_base=f"{server.url}/v1", api_key="none", max_retries=0, **options)


@pytest.fixture
def anthropic(server: ModelServer) -> Any:
    llms = pytest.importorskip("llama_index.llms.anthropic")
    return llms.Anthropic(model="claude-sonnet-4-5", base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def each_model(*names: str) -> Any:
    return pytest.mark.parametrize("model", names or MODELS, indirect=True)


TALK = "<system-msg>Be {{tone}}.</system-msg><human-msg>Hi</human-msg><ai-msg>Yo</ai-msg><human-msg>{{q}}</human-msg>"


def test_the_alt_text_stays_with_the_image() -> None:
    """A template that shows the message again has it."""
    (message,) = prompt(PNG).format_messages()
    assert isinstance(message.blocks[0], ImageBlock)
    assert message.blocks[0].alt == "a red box"
    assert prompt("<p>{{m.content[0].alt}}</p>").format(m=message) == "a red box"


CALLS = f"""
<human-msg>Weather?</human-msg>
<ai-msg>I look. <tool-request id="c1" name="weather" parameters="{{{{ {{city: 'Oslo'}} }}}}"/>
<tool-request id="c2" name="shot" parameters="{{{{ {{}} }}}}"/></ai-msg>
<tool-response id="c1" name="weather">Rain</tool-response>
<tool-response id="c2" name="shot"><p>The screen:</p>{PNG}</tool-response>
"""


@each_model("openai", "like")
def test_images_of_results_follow_for_openai(server: ModelServer, model: Any) -> None:
    """OpenAI accepts images only in user messages: a text replaces each, and all follow the results."""
    model.predict(prompt(CALLS))
    *_, second, shown = server.messages
    assert second["content"] == "The screen:\n\n[image/png: a red box]"
    assert (shown["role"], shown["content"][0]["text"]) == ("user", "From the tool (c2):")
    assert picture(shown)


def test_a_conversation_continues_after_moved_images(server: ModelServer, openai: Any) -> None:
    prompt(f"<system-msg>Like {PNG}</system-msg>{CALLS}<ai-msg>Wet.</ai-msg>").bind_to(openai).chat()
    roles = ["system", "user", "user", "assistant", "tool", "tool", "user", "assistant"]
    assert [message["role"] for message in server.messages] == roles
    assert picture(server.messages[1])
    assert picture(server.messages[6])


@each_model("openai", "like")
@pytest.mark.parametrize("place", ["data URI", "path", "signed URL"])
def test_no_location_of_a_moved_image_is_sent_as_text(server: ModelServer, model: Any, place: str) -> None:
    """The image is in the user message, by its data or address; the tool's message has its type alone."""
    png = base64.b64encode((ASSETS / "box.png").read_bytes()).decode()
    block, text = {
        "data URI": (ImageBlock(url=f"data:image/png;base64,{png}"), "[image/png]"),
        "path": (ImageBlock(path=ASSETS / "box.png"), "[image/png]"),
        "signed URL": (ImageBlock(url="https://images.test/box.png?signature=secret"), "[image]"),
    }[place]
    call = ToolCallBlock(tool_call_id="c1", tool_name="shot", tool_kwargs={})
    history = [
        ChatMessage("Show it."),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", blocks=[block], additional_kwargs={"tool_call_id": "c1"}),
    ]
    prompt('<conversation messages="{{history}}"/>').bind_to(model).chat(history=history)
    *_, answer, shown = server.messages
    assert (answer["role"], answer["content"]) == ("tool", text)
    assert [part["text"] for part in shown["content"] if part["type"] == "text"] == ["From the tool (c1):"]
    assert shown["content"][-1]["type"] == "image_url"


# Tools, schema and settings.

RUNTIME = '<runtime temperature="0.2" max-tokens="300" top-p="0.9" stop-sequences=\'["END"]\'/>'
TOOL = (
    '<tool-definition name="weather" description="Tells the weather.">{"type": "object", "properties": {"city": '
    '{"type": "string"}}, "required": ["city"], "additionalProperties": false}</tool-definition>'
)
SCHEMA = (
    '<output-schema>{"type": "object", "title": "report", "properties": {"degrees": {"type": "integer"}}, '
    '"required": ["degrees"], "additionalProperties": false}</output-schema>'
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
REPORT = {
    "type": "object",
    "title": "report",
    "properties": {"degrees": {"type": "integer"}},
    "required": ["degrees"],
    "additionalProperties": False,
}


@each_model("openai", "like")
def test_the_schema_is_strict_for_openai_and_tools_are_not(server: ModelServer, model: Any) -> None:
    prompt(RUNTIME + TOOL + SCHEMA + TALK).bind_to(model).chat(**GIVEN)
    (body,) = server.bodies
    assert [tool["function"]["strict"] for tool in body["tools"]] == [False]
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "report", "schema": REPORT, "strict": True},
    }


@each_model()
def test_a_structured_answer_uses_the_providers_structured_output(server: ModelServer, model: Any) -> None:
    """The settings are sent too."""
    server.answers[:] = ['{"degrees": 3}']
    bound = prompt(RUNTIME + SCHEMA + TALK).bind_to(model)
    assert bound.structured_predict(**GIVEN).degrees == 3
    assert list(bound.stream_structured_predict(**GIVEN))[-1].degrees == 3
    assert asyncio.run(bound.astructured_predict(**GIVEN)).degrees == 3
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(0.2, 300)}
    assert all("tools" not in body for body in server.bodies)


def test_a_model_without_structured_output_answers_by_a_call(server: ModelServer, like: Any) -> None:
    like.should_use_structured_outputs = False
    server.answers[:] = [[Call("Report", {"degrees": 3})]]
    bound = prompt(SCHEMA + TALK).bind_to(like)
    assert bound.structured_predict(**GIVEN).degrees == 3
    assert list(bound.stream_structured_predict(**GIVEN))[-1].degrees == 3
    for body in server.bodies:
        assert body["tools"][0]["function"]["name"] == "Report"
        assert "response_format" not in body
    assert server.bodies[0]["tool_choice"] == "required"


@pytest.mark.parametrize("choice", ["auto", "none", "weather"])
def test_the_choice_of_a_tool_is_not_sent_with_the_answers_call(server: ModelServer, like: Any, choice: str) -> None:
    like.should_use_structured_outputs = False
    server.answers[:] = [[Call("Report", {"degrees": 3})]]
    bound = prompt(f'<runtime tool-choice="{choice}"/>{TOOL}{SCHEMA}{TALK}').bind_to(like)
    assert bound.structured_predict(**GIVEN).degrees == 3
    assert server.bodies[0]["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("choice", "openais", "anthropics"),
    [
        ("auto", "auto", {"type": "auto"}),
        ("none", "none", {"type": "none"}),
        ("required", "required", {"type": "any"}),
        ("weather", {"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
    ],
)
def test_the_choice_of_a_tool_is_sent_in_the_providers_form(
    server: ModelServer, openai: Any, anthropic: Any, choice: str, openais: Any, anthropics: Any
) -> None:
    file = prompt(f'<runtime tool-choice="{choice}"/>{TOOL}{TALK}')
    file.bind_to(openai).chat(**GIVEN)
    file.bind_to(anthropic).chat(**GIVEN)
    assert [body["tool_choice"] for body in server.bodies] == [openais, anthropics]


@each_model()
def test_the_file_overrides_the_model_and_the_caller_overrides_both(server: ModelServer, model: Any) -> None:
    model.max_tokens, model.additional_kwargs = 7, {"top_p": 0.1, "metadata": {"user_id": "me"}}
    bound = prompt(RUNTIME + TALK).bind_to(model)
    bound.chat(**GIVEN)
    bound.chat(**GIVEN, llm_kwargs={"max_tokens": 5, "top_p": 0.5})
    model.chat([ChatMessage("Hi")])
    assert [(body["max_tokens"], body["top_p"]) for body in server.bodies] == [(300, 0.9), (5, 0.5), (7, 0.1)]
    assert all(body["metadata"] == {"user_id": "me"} for body in server.bodies)


def test_llama_indexs_openai_still_prefers_its_own_settings(server: ModelServer, openai: Any) -> None:
    """When this fails, `apply_fields` has less to do (llama-index-llms-openai 0.8.3)."""
    openai.max_tokens, openai.additional_kwargs = 7, {"top_p": 0.1}
    openai.chat([ChatMessage("Hi")], max_tokens=5, top_p=0.5)
    assert (server.bodies[0]["max_tokens"], server.bodies[0]["top_p"]) == (7, 0.1)


def test_clients_are_made_once(server: ModelServer, openai: Any) -> None:
    """Although each call may work with a copy of the model."""
    bound = prompt(RUNTIME + TALK).bind_to(openai)
    bound.chat(**GIVEN)
    first = openai._client  # noqa: SLF001 - the client is private
    bound.chat(**GIVEN)
    assert first is not None
    assert openai._client is first  # noqa: SLF001 - the client is private


@each_model()
def test_a_servers_own_settings_are_passed_in_extra_body(server: ModelServer, model: Any) -> None:
    prompt(f"<runtime extra-body='{{\"wit\": 2}}'/>{TALK}").bind_to(model).chat(**GIVEN)
    assert server.bodies[0]["wit"] == 2


def test_openais_responses_take_the_frame(server: ModelServer) -> None:
    """Its names of the settings differ."""
    server.answers[:] = [response('{"degrees": 3}')]
    openai = pytest.importorskip("llama_index.llms.openai").OpenAIResponses(
        model="gpt-4o", api_base=f"{server.url}/v1", api_key="none", max_retries=0
    )
    file = prompt(f'<runtime temperature="0.2" max-tokens="300" tool-choice="weather"/>{TOOL}{SCHEMA}{TALK}')
    assert file.bind_to(openai).chat(**GIVEN).message.content == '{"degrees": 3}'
    (body,) = server.bodies
    assert server.paths == ["/v1/responses"]
    assert (body["temperature"], body["max_output_tokens"]) == (0.2, 300)
    assert body["text"]["format"] == {"type": "json_schema", "name": "report", "schema": REPORT, "strict": True}
    assert (body["tools"][0]["name"], body["tools"][0]["parameters"]) == ("weather", PARAMETERS)
    assert body["tool_choice"] == {"type": "function", "name": "weather"}


@each_model()
def test_an_agent_sends_the_whole_file_with_each_request(server: ModelServer, model: Any) -> None:
    """The examples, settings and tools of the file."""
    file = prompt(f"{RUNTIME}{TOOL}{TALK.removesuffix('<human-msg>{{q}}</human-msg>')}")
    server.answers[:] = [[Call("weather", {"city": "Oslo"})], "It rains."]

    async def run() -> str:
        made = file.agent_kwargs(model, tools={"weather": lambda city: f"Rain in {city}"}, tone="kind")
        agent = FunctionAgent(**made)
        return str(await agent.run("Oslo?"))

    assert asyncio.run(run()) == "It rains."
    assert len(server.bodies) == 2
    for body in server.bodies:
        stop = body.get("stop") or body.get("stop_sequences")
        assert (body["temperature"], body["max_tokens"], body["top_p"], stop) == (0.2, 300, 0.9, ["END"])
        assert "Tells the weather." in json.dumps(body["tools"])
        sent = [message for message in body["messages"] if message["role"] != "system"][:3]
        assert [words(message["content"]) for message in sent] == ["Hi", "Yo", "Oslo?"]
    assert "Rain in Oslo" in json.dumps(server.bodies[1]["messages"][-1])


def test_an_agents_model_can_require_a_call(server: ModelServer, openai: Any) -> None:
    """LlamaIndex passes ``tool_required`` on only to models whose method has such a parameter."""
    server.answers[:] = [[Call("weather", {"city": "Oslo"})]]
    made = prompt(TOOL + TALK).agent_kwargs(openai, tools={"weather": lambda city: city}, **GIVEN)
    made["llm"].chat_with_tools(made["tools"], "Oslo?", tool_required=True)
    assert server.bodies[0]["tool_choice"] == "required"


@each_model()
def test_an_image_that_an_agents_tool_returns_is_sent(server: ModelServer, model: Any) -> None:
    block = ImageBlock(image=(ASSETS / "box.png").read_bytes(), image_mimetype="image/png")
    server.answers[:] = [[Call("weather", {"city": "Oslo"})], "It rains."]

    async def run() -> None:
        made = prompt(TOOL + TALK).agent_kwargs(model, tools={"weather": lambda city: [block]}, **GIVEN)
        await FunctionAgent(**made).run("Oslo?")

    asyncio.run(run())
    last = server.messages[-1]
    assert last["role"] == "user"
    results = [inner for part in last["content"] if part["type"] == "tool_result" for inner in part["content"]]
    assert picture({"content": results or last["content"]}).startswith(b"\x89PNG")


@each_model()
def test_an_agents_structured_answer_is_that_of_the_schema(server: ModelServer, model: Any) -> None:
    """The settings are sent with the request for it, too."""
    server.answers[:] = ["Three.", '{"degrees": 3}']

    async def run() -> Any:
        made = prompt(RUNTIME + SCHEMA + TALK).agent_kwargs(model, **GIVEN)
        return (await FunctionAgent(**made).run("Oslo?")).structured_response

    assert asyncio.run(run()) == {"degrees": 3}
    for body in server.bodies:
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.2, 300, 0.9)
    assert '"degrees"' in json.dumps(server.bodies[1].get("output_config") or server.bodies[1]["response_format"])
