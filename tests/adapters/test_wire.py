"""What the real clients of OpenAI and Anthropic send for a POML prompt; only the model's answers are scripted."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.frameworks import Framework
from tests.model_server import Call, ModelServer, picture, words

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
PNG = "<img src='box.png' alt='a red box' syntax='multimedia'/>"
TALK = "<system-msg>Be {{tone}}.</system-msg><human-msg>Hi</human-msg><ai-msg>Yo</ai-msg><human-msg>{{q}}</human-msg>"
GIVEN = {"tone": "kind", "q": "Why?"}
CALLS = f"""
<human-msg>Weather?</human-msg>
<ai-msg>I look. <tool-request id="c1" name="weather" parameters="{{{{ {{city: 'Oslo'}} }}}}"/>
<tool-request id="c2" name="shot" parameters="{{{{ {{}} }}}}"/></ai-msg>
<tool-response id="c1" name="weather">Rain</tool-response>
<tool-response id="c2" name="shot"><p>The screen:</p>{PNG}</tool-response>
"""
TOOL = '<tool-definition name="weather">{"type": "object", "properties": {}}</tool-definition>'
OPENAI = [("langchain", "openai"), ("llama_index", "openai"), ("llama_index", "like")]
ANTHROPIC = [("langchain", "anthropic"), ("llama_index", "anthropic")]


@pytest.fixture
def client(framework: Framework, server: ModelServer, request: pytest.FixtureRequest) -> Any:
    return framework.client(request.param, server.url)


@pytest.fixture
def prompt(framework: Framework) -> Callable[..., Any]:
    return lambda markup, **options: framework.prompts(f"<poml>{markup}</poml>", base_dir=ASSETS, **options)


def each_client(*pairs: tuple[str, str]) -> Any:
    return pytest.mark.parametrize(("framework", "client"), pairs or (*OPENAI, *ANTHROPIC), indirect=True)


def data(name: str) -> str:
    return base64.b64encode((ASSETS / name).read_bytes()).decode()


@each_client()
def test_text(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    for bound in (False, True):
        assert framework.send(prompt(TALK), client, bound=bound, **GIVEN) == "the answer"
    for body, path in zip(server.bodies, server.paths, strict=True):
        sent = [(message["role"], words(message["content"])) for message in body["messages"]]
        if path == "/v1/messages":
            sent.insert(0, ("system", words(body["system"])))
        assert sent == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Why?")]


@each_client()
def test_streams_and_async(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    assert framework.streams(prompt(TALK), client, **GIVEN) == ["the answer", "the answer"]
    assert [body["stream"] for body in server.bodies] == [True, True]
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]


@each_client()
def test_a_picture_between_texts(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    framework.send(prompt(f"<p>Look: {PNG} nice?</p>"), client)
    (message,) = server.messages
    assert [block["text"] for block in message["content"][::2]] == ["Look: ", " nice?"]
    assert picture(message).startswith(b"\x89PNG")


@each_client()
def test_a_picture_alone_and_with_chat_off(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    for chat in (True, False):
        framework.send(prompt(PNG, chat=chat), client, bound=True)
        assert len(server.messages[0]["content"]) == 1
        assert picture(server.messages[0])


@each_client()
def test_the_alt_text_is_not_sent(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    """OpenAI and Anthropic have no field for it."""
    framework.send(prompt(PNG), client, bound=True)
    assert "red box" not in json.dumps(server.bodies)


@pytest.mark.parametrize(
    ("attributes", "form"),
    [("src='tone.wav'", "wav"), ("src='silence.mp3'", "mp3"), ("src='tone.wav' type='audio/x-wav'", "wav")],
)
@each_client(*OPENAI)
def test_sound_to_openai(
    framework: Framework, server: ModelServer, client: Any, prompt: Any, attributes: str, form: str
) -> None:
    """As sound, not as a picture, with OpenAI's names of the two formats that it takes."""
    framework.send(prompt(f"<p>Hear <audio {attributes} syntax='multimedia'/></p>"), client, bound=True)
    text, sound = server.messages[0]["content"]
    assert text == {"type": "text", "text": "Hear "}
    file = "tone.wav" if form == "wav" else "silence.mp3"
    assert sound == {"type": "input_audio", "input_audio": {"data": data(file), "format": form}}


@each_client()
def test_a_document_is_its_text_and_its_pictures(
    framework: Framework, server: ModelServer, client: Any, prompt: Any
) -> None:
    framework.send(prompt("<document src='report.pdf'/>"), client, bound=True)
    assert "Second page: 42 percent" in words(server.messages[0]["content"])
    framework.send(prompt("<document src='report.docx'/>"), client, bound=True)
    assert picture(server.messages[0])


@each_client()
def test_a_file_of_a_history(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    """OpenAI gets a file name too, without which it refuses the file."""
    given = [{"speaker": "human", "content": ["Read", {"type": "application/pdf", "base64": data("report.pdf")}]}]
    framework.send(prompt("<conversation messages='{{h}}'/>"), client, bound=True, h=given)
    _, sent = server.messages[0]["content"]
    if server.paths == ["/v1/messages"]:
        source = {"type": "base64", "media_type": "application/pdf", "data": data("report.pdf")}
        assert sent == {"type": "document", "source": source}
    else:
        uri = f"data:application/pdf;base64,{data('report.pdf')}"
        assert sent == {"type": "file", "file": {"filename": "document.pdf", "file_data": uri}}


@each_client(*OPENAI)
def test_tool_calls_and_results_to_openai(framework: Framework, server: ModelServer, client: Any, prompt: Any) -> None:
    """POML merges neighbouring results into one message; here each is its own again."""
    framework.send(prompt(CALLS), client, bound=True)
    user, ai, first, second = server.messages[:4]
    assert user == {"role": "user", "content": "Weather?"}
    assert (ai["role"], ai["content"].strip()) == ("assistant", "I look.")
    assert [(call["id"], call["type"], call["function"]["name"]) for call in ai["tool_calls"]] == [
        ("c1", "function", "weather"),
        ("c2", "function", "shot"),
    ]
    assert [json.loads(call["function"]["arguments"]) for call in ai["tool_calls"]] == [{"city": "Oslo"}, {}]
    assert first == {"role": "tool", "tool_call_id": "c1", "content": "Rain"}
    assert (second["role"], second["tool_call_id"]) == ("tool", "c2")
    assert "The screen:" in json.dumps(second["content"])
    assert picture(server.messages[-1])


@each_client(*ANTHROPIC)
def test_tool_calls_and_results_to_anthropic(
    framework: Framework, server: ModelServer, client: Any, prompt: Any
) -> None:
    """Anthropic takes pictures in results."""
    framework.send(prompt(CALLS), client, bound=True)
    user, ai, results = server.messages
    assert (user["role"], words(user["content"])) == ("user", "Weather?")
    text, *calls = ai["content"]
    assert (ai["role"], text["type"], text["text"].strip()) == ("assistant", "text", "I look.")
    assert calls == [
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "c2", "name": "shot", "input": {}},
    ]
    assert results["role"] == "user"
    first, second = results["content"]
    assert (first["type"], first["tool_use_id"], words(first["content"])) == ("tool_result", "c1", "Rain")
    assert (second["type"], second["tool_use_id"]) == ("tool_result", "c2")
    assert [block["type"] for block in second["content"]] == ["text", "image"]


@each_client()
def test_a_models_tool_calls_are_sent_back_unchanged(
    framework: Framework, server: ModelServer, client: Any, prompt: Any
) -> None:
    chain = prompt(f"{TOOL}<human-msg>{{{{q}}}}</human-msg><conversation messages='{{{{steps}}}}'/>")
    server.answers[:] = [[Call("weather", {"city": "Oslo"}, id="c9")], "It rains."]
    steps = [framework.call_of_tool(chain, client, q="Oslo?"), framework.tool_result("Rain", "c9")]
    assert framework.send(chain, client, q="Oslo?", steps=steps) == "It rains."
    framework.send_messages(client, "Oslo?", *steps)
    through, without = (body["messages"] for body in server.bodies[1:])
    assert through == without
    assert "c9" in json.dumps(through[2])
