"""What the real clients of OpenAI and Anthropic send for a POML prompt; only the model's answers are scripted."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from tests.model_server import Call, ModelServer, model_server

from pomlflow.langchain import PomlPromptTemplate

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
PNG = "<img src='box.png' alt='a red box' syntax='multimedia'/>"


def data(name: str) -> str:
    return base64.b64encode((ASSETS / name).read_bytes()).decode()


def prompt(markup: str, **options: Any) -> PomlPromptTemplate:
    return PomlPromptTemplate(f"<poml>{markup}</poml>", base_dir=ASSETS, **options)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as served:
        yield served


@pytest.fixture
def openai(server: ModelServer) -> Any:
    langchain_openai = pytest.importorskip("langchain_openai")
    return langchain_openai.ChatOpenAI(model="gpt-4o", base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def anthropic(server: ModelServer) -> Any:
    langchain_anthropic = pytest.importorskip("langchain_anthropic")
    return langchain_anthropic.ChatAnthropic(model="claude-test", base_url=server.url, api_key="none", max_retries=0)


def picture(server: ModelServer, place: int = -1) -> str:
    """The base64 of the picture in a message, whichever protocol it was sent by."""
    for block in server.messages[place]["content"]:
        if block["type"] == "image_url":
            head, _, found = block["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            return found
        if block["type"] == "image":
            assert block["source"]["type"] == "base64"
            assert block["source"]["media_type"] == "image/png"
            return block["source"]["data"]
    raise AssertionError(server.messages)


TALK = "<system-msg>Be {{tone}}.</system-msg><human-msg>Hi</human-msg><ai-msg>Yo</ai-msg><human-msg>{{q}}</human-msg>"


def test_text_to_openai(server: ModelServer, openai: Any) -> None:
    answer = (prompt(TALK) | openai).invoke({"tone": "kind", "q": "Why?"})
    assert answer.content == "the answer"
    assert server.paths == ["/v1/chat/completions"]
    assert server.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "Why?"},
    ]


def test_text_to_anthropic(server: ModelServer, anthropic: Any) -> None:
    answer = (prompt(TALK) | anthropic).invoke({"tone": "kind", "q": "Why?"})
    assert answer.content == "the answer"
    assert server.paths == ["/v1/messages"]
    assert server.bodies[0]["system"] == "Be kind."
    assert server.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "Why?"},
    ]


@pytest.mark.parametrize("client", ["openai", "anthropic"])
async def test_streams_and_async(server: ModelServer, client: str, request: pytest.FixtureRequest) -> None:
    chain = prompt(TALK) | request.getfixturevalue(client)
    given = {"tone": "kind", "q": "Why?"}

    async def stream() -> str:
        return "".join([chunk.text async for chunk in chain.astream(given)])

    assert "".join(chunk.text for chunk in chain.stream(given)) == "the answer"
    assert await stream() == "the answer"
    assert [body["stream"] for body in server.bodies] == [True, True]
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_a_picture_between_texts(server: ModelServer, client: str, request: pytest.FixtureRequest) -> None:
    (prompt(f"<p>Look: {PNG} nice?</p>") | request.getfixturevalue(client)).invoke({})
    (message,) = server.messages
    assert [block["type"] for block in message["content"]][::2] == ["text", "text"]
    assert [block["text"] for block in message["content"][::2]] == ["Look: ", " nice?"]
    sent = base64.b64decode(picture(server))
    assert sent.startswith(b"\x89PNG")


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_a_picture_without_text_and_with_chat_off(
    server: ModelServer, client: str, request: pytest.FixtureRequest
) -> None:
    for chat in (True, False):
        (prompt(PNG, chat=chat) | request.getfixturevalue(client)).invoke({})
        assert [block["type"] for block in server.messages[0]["content"]] in (["image_url"], ["image"])
        assert picture(server)


def test_the_alt_text_stays_with_the_picture_and_off_the_wire(server: ModelServer, openai: Any) -> None:
    """OpenAI and Anthropic have no field for it."""
    (block,) = prompt(PNG).invoke({}).to_messages()[0].content
    assert block["extras"] == {"alt": "a red box"}
    (prompt(PNG) | openai).invoke({})
    assert "red box" not in json.dumps(server.bodies)


@pytest.mark.parametrize(("file", "form"), [("tone.wav", "wav"), ("silence.mp3", "mp3")])
def test_sound_to_openai(server: ModelServer, openai: Any, file: str, form: str) -> None:
    """Never as a picture, and in the two formats that OpenAI takes, by its names for them."""
    (prompt(f"<p>Hear <audio src='{file}' syntax='multimedia'/></p>") | openai).invoke({})
    text, sound = server.messages[0]["content"]
    assert text == {"type": "text", "text": "Hear "}
    assert sound == {"type": "input_audio", "input_audio": {"data": data(file), "format": form}}


def test_sound_of_another_name_for_wav_to_openai(server: ModelServer, openai: Any) -> None:
    (prompt("<audio src='tone.wav' type='audio/x-wav' syntax='multimedia'/>") | openai).invoke({})
    assert server.messages[0]["content"][0]["input_audio"]["format"] == "wav"


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_a_document_is_its_text_and_its_pictures(
    server: ModelServer, client: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(client)
    (prompt("<document src='report.pdf'/>") | model).invoke({})
    assert "Second page: 42 percent" in server.messages[0]["content"]
    (prompt("<document src='report.docx'/>") | model).invoke({})
    assert picture(server)


def test_a_file_of_a_history_has_a_name_for_openai(server: ModelServer, openai: Any) -> None:
    """OpenAI refuses a file without one."""
    given = [{"speaker": "human", "content": ["Read", {"type": "application/pdf", "base64": data("report.pdf")}]}]
    (prompt("<conversation messages='{{h}}'/>") | openai).invoke({"h": given})
    assert server.messages[0]["content"][1] == {
        "type": "file",
        "file": {"filename": "document.pdf", "file_data": f"data:application/pdf;base64,{data('report.pdf')}"},
    }


def test_a_file_of_a_history_to_anthropic(server: ModelServer, anthropic: Any) -> None:
    given = [{"speaker": "human", "content": [{"type": "application/pdf", "base64": data("report.pdf")}]}]
    (prompt("<conversation messages='{{h}}'/>") | anthropic).invoke({"h": given})
    assert server.messages[0]["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": data("report.pdf")},
        }
    ]


CALLS = f"""
<human-msg>Weather?</human-msg>
<ai-msg>I look. <tool-request id="c1" name="weather" parameters="{{{{ {{city: 'Oslo'}} }}}}"/>
<tool-request id="c2" name="shot" parameters="{{{{ {{}} }}}}"/></ai-msg>
<tool-response id="c1" name="weather">Rain</tool-response>
<tool-response id="c2" name="shot"><p>The screen:</p>{PNG}</tool-response>
"""


def test_tool_calls_and_results_to_openai(server: ModelServer, openai: Any) -> None:
    """POML merges neighbouring results into one message; here each is its own again."""
    (prompt(CALLS) | openai).invoke({})
    user, ai, first, second = server.messages
    assert user == {"role": "user", "content": "Weather?"}
    assert (ai["role"], ai["content"].strip()) == ("assistant", "I look.")
    assert [(call["id"], call["type"], call["function"]["name"]) for call in ai["tool_calls"]] == [
        ("c1", "function", "weather"),
        ("c2", "function", "shot"),
    ]
    assert [json.loads(call["function"]["arguments"]) for call in ai["tool_calls"]] == [{"city": "Oslo"}, {}]
    assert first == {"role": "tool", "tool_call_id": "c1", "content": "Rain"}
    assert (second["role"], second["tool_call_id"]) == ("tool", "c2")
    assert second["content"][0] == {"type": "text", "text": "The screen:"}
    assert picture(server)


def test_tool_calls_and_results_to_anthropic(server: ModelServer, anthropic: Any) -> None:
    """Anthropic takes pictures in results."""
    (prompt(CALLS) | anthropic).invoke({})
    user, ai, results = server.messages
    assert user == {"role": "user", "content": "Weather?"}
    assert ai["role"] == "assistant"
    text, *calls = ai["content"]
    assert (text["type"], text["text"].strip()) == ("text", "I look.")
    assert calls == [
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "c2", "name": "shot", "input": {}},
    ]
    assert results["role"] == "user"
    first, second = results["content"]
    assert (first["type"], first["tool_use_id"], first["content"]) == ("tool_result", "c1", "Rain")
    assert (second["type"], second["tool_use_id"]) == ("tool_result", "c2")
    assert [block["type"] for block in second["content"]] == ["text", "image"]


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_a_real_agents_history_goes_back_to_its_model(
    server: ModelServer, client: str, request: pytest.FixtureRequest
) -> None:
    """What the model called comes back to it as it was, through the template."""
    model = request.getfixturevalue(client)
    chain = prompt("<human-msg>{{q}}</human-msg><conversation messages='{{steps}}'/>") | model
    server.answers[:] = [[Call("weather", {"city": "Oslo"}, id="c9")], "It rains."]
    asked = chain.invoke({"q": "Oslo?"})
    assert asked.tool_calls[0]["id"] == "c9"
    steps = [asked, ToolMessage("Rain", tool_call_id="c9")]
    assert chain.invoke({"q": "Oslo?", "steps": steps}).content == "It rains."
    direct = [HumanMessage("Oslo?"), *steps]
    model.invoke(direct)
    through, without = (body["messages"] for body in server.bodies[1:])
    assert through == without


def test_an_empty_message(server: ModelServer, openai: Any) -> None:
    (prompt("<conversation messages='{{h}}'/>") | openai).invoke({})
    assert server.messages == [{"role": "user", "content": ""}]
    (prompt("<conversation messages='{{h}}'/><human-msg>q</human-msg>") | openai).invoke({"h": [AIMessage("")]})
    assert server.messages == [{"role": "assistant", "content": ""}, {"role": "user", "content": "q"}]
