"""POML without a framework: `pomlflow.poml` beside poml's own, and `render` and `arender`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import poml
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter
from tests.corpus.cases import Case, case, cases
from tests.model_server import model_server

import pomlflow
from pomlflow.frame.openai import Format

CASES = [one for one in cases() if not one.fails and one.name != "limit-tokens"]  # which takes 3 s a render
FORMATS = [one for one in get_args(Format) if one != "raw"]
HELLO = "<p>Hello {{name}}</p>"
ADA = [{"speaker": "human", "content": "Hello Ada"}]


def arguments(one: Case) -> dict[str, Any]:
    return {"context": dict(one.variables), "stylesheet": one.stylesheet, "chat": one.chat}


@pytest.fixture
def poml_without_node(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have poml's Python take a command line's output from a list, the last one for ever, in place of Node's."""
    outputs: list[str] = []

    def run(*args: str) -> subprocess.CompletedProcess[bytes]:
        Path(args[args.index("-o") + 1]).write_text(outputs[-1], encoding="utf-8")
        return subprocess.CompletedProcess(args, 0)

    monkeypatch.setattr("poml.api.run", run)
    return outputs


@pytest.mark.parametrize("one", [pytest.param(c, id=c.name) for c in CASES])
def test_each_format_is_polms_own(one: Case, poml_without_node: list[str]) -> None:
    """Of one frame, poml's Python and ours make the same; that the frames are the same is the engine's test."""
    poml_without_node.append(pomlflow.poml(one.file, **arguments(one), format="raw"))
    original = poml.poml
    for name in FORMATS:
        theirs = outcome(original, one, format=name)
        pomlflow.autolog(log_traces=False)
        try:
            ours = outcome(poml.poml, one, format=name)
        finally:
            pomlflow.autolog(disable=True)
        assert type(ours) is type(theirs)
        assert ours == theirs, name
        assert json.dumps(plain(ours)) == json.dumps(plain(theirs)), f"{name}: other order or types"


def outcome(call: Callable[..., Any], one: Case, **options: Any) -> Any:
    try:
        return call(one.file, **arguments(one), **options)
    except ValueError as error:  # a tool's request that is no assistant's, which chat off makes of it
        return str(error)


def plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


@pytest.mark.parametrize(
    "name", ["chat-off-parts", "everything-in-one", "runtime", "tool-calls", "schema-zod", "stylesheet-both"]
)
def test_raw_is_byte_for_byte_what_the_command_line_writes(name: str, tmp_path: Path) -> None:
    one = case(name)
    theirs = poml.poml(one.file, **arguments(one), format="raw")
    assert pomlflow.poml(one.file, **arguments(one), format="raw", output_file=tmp_path / "output.json") == theirs
    assert (tmp_path / "output.json").read_text(encoding="utf-8") == theirs


@pytest.mark.parametrize(
    "number", [1, 1.5, 0.1, 1e-4, 0.00001234, 1e-6, 1.5e-7, 5e-324, 2**53, 1e20, 1e21, 1.5e300, -0.00002]
)
def test_raw_spells_numbers_as_javascript_does(number: float) -> None:
    markup = f'<poml><output-schema>{{"type": "object", "minimum": {number!r}}}</output-schema><p>x</p></poml>'
    written = subprocess.run(
        [*node(), "-p", f"JSON.stringify({number!r})"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f'"minimum":{written}' in pomlflow.poml(markup, format="raw")


def node() -> list[str]:
    from pomlflow.engine import installation as install

    return [str(install.find().node)]


def test_variables_and_stylesheet_come_from_dicts_files_and_json(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello.poml").write_text("<poml><task>{{name}}</task></poml>", encoding="utf-8")
    Path("context.json").write_text('{"name": "Ada"}', encoding="utf-8")
    sheet = {"task": {"captionStyle": "bold"}}
    Path("sheet.json").write_text(json.dumps(sheet), encoding="utf-8")
    expected = [{"speaker": "human", "content": "**Task:** Ada"}]
    for context in ({"name": "Ada"}, "context.json", Path("context.json"), '{"name": "Ada"}'):
        for stylesheet in (sheet, "sheet.json", Path("sheet.json"), json.dumps(sheet)):
            assert pomlflow.poml("hello.poml", context, stylesheet) == expected
    assert pomlflow.poml(Path("hello.poml"), "context.json", "sheet.json") == expected
    with pytest.raises(FileNotFoundError):
        pomlflow.poml("hello.poml", "contexts.json")
    Path("context.json").write_text("{", encoding="utf-8")
    with pytest.raises(pomlflow.ConfigurationError, match=r"the context context\.json is no JSON"):
        pomlflow.poml("hello.poml", "context.json")


def test_a_history_may_be_left_out() -> None:
    """As in the frameworks: it is an empty one."""
    markup = '<poml><conversation messages="{{history}}"/><human-msg>Hello {{name}}</human-msg></poml>'
    assert pomlflow.poml(markup, {"name": "Ada"}, format="message_dict") == ADA
    told = [{"speaker": "ai", "content": "Yes?"}]
    assert pomlflow.poml(markup, {"name": "Ada", "history": told}, format="message_dict") == [*told, *ADA]


def test_buffers_in_a_context_file_are_bytes_as_poml_has_them(tmp_path: Path) -> None:
    file = tmp_path / "context.json"
    file.write_text('{"data": {"__base64__": "SGVsbG8="}}', encoding="utf-8")
    [message] = pomlflow.poml('<p>{{data.toString("utf8")}}</p>', file)
    assert message["content"] == "Hello"


def test_a_string_is_a_file_where_there_is_one_and_says_so_where_it_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="looks like a file path, but it does not exist") as warned:
        assert pomlflow.poml("hello.poml") == [{"speaker": "human", "content": "hello.poml"}]
    assert warned[0].filename == __file__
    Path("hello.poml").write_text("<p>Hello</p>", encoding="utf-8")
    assert pomlflow.poml("hello.poml") == [{"speaker": "human", "content": "Hello"}]
    Path("hello.poml").write_text("<p>Hello again</p>", encoding="utf-8")
    assert pomlflow.poml("hello.poml") == [{"speaker": "human", "content": "Hello again"}]
    Path("hello.poml").unlink()
    with pytest.raises(FileNotFoundError):
        pomlflow.poml(Path("hello.poml"))


def test_render_takes_a_string_for_markup_and_a_path_for_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello").write_text("<p>Hello</p>", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pomlflow.render("hello", format="message_dict") == [{"speaker": "human", "content": "hello"}]
    frame = pomlflow.render(Path("hello"))
    assert isinstance(frame, poml.api.PomlFrame)
    assert frame.messages[0].content == "Hello"


def test_arender_does_not_hold_up_the_event_loop() -> None:
    async def both() -> list[Any]:
        beats: list[int] = []

        async def beat() -> None:
            while True:
                beats.append(1)
                await asyncio.sleep(0)

        beating = asyncio.create_task(beat())
        slow = "<p>{{ (() => { const end = Date.now() + 200; while (Date.now() !== end && end - Date.now() &gt; 0) ; "
        slow = "<p>{{ Array.from({length: 3e6}, (_, i) => i).reduce((a, b) => a + b, 0) }}</p>"
        found = await asyncio.gather(*(pomlflow.arender(m, {"name": "Ada"}, format="dict") for m in (HELLO, slow)))
        beating.cancel()
        assert len(beats) > 2
        return found

    hello, total = asyncio.run(both())
    assert hello == {"messages": ADA}
    assert total["messages"][0]["content"] == str(sum(range(3_000_000)))


def test_errors_are_polms_too(tmp_path: Path) -> None:
    """Programs catch RuntimeError and FileNotFoundError, which poml.poml() documents."""
    for markup in ("<p>{{missing}}</p>", "<p>{{ null.x }}</p>", "<nope/>"):
        with pytest.raises(RuntimeError):
            pomlflow.poml(markup)
    with pytest.raises(FileNotFoundError) as missing:
        pomlflow.poml(tmp_path / "none.poml")
    assert (missing.value.errno, missing.value.filename) == (2, str(tmp_path / "none.poml"))
    with pytest.raises(pomlflow.ConfigurationError, match="Unknown output format: 'openai'; there are raw, message"):
        pomlflow.poml(HELLO, {"name": "Ada"}, format="openai")
    with pytest.raises(pomlflow.ConfigurationError, match="takes no extra_args \\(--cwd /\\)"):
        pomlflow.poml(HELLO, {"name": "Ada"}, extra_args=["--cwd", "/"])


async def test_a_context_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(pomlflow.ConfigurationError, match="context takes a mapping of variables, not a list"):
        pomlflow.render(HELLO, [("name", "Ada")])  # type: ignore[arg-type]
    with pytest.raises(pomlflow.ConfigurationError, match="context takes a mapping of variables, not a str"):
        await pomlflow.arender(HELLO, "name=Ada")  # type: ignore[arg-type]


CHAT = """<poml>
  <runtime model="m" temperature="0.5" maxOutputTokens="20" stopSequences='["END"]' provider="openai" stream="false"/>
  <output-schema>{"title": "reply card", "type": "object", "properties": {"a": {"type": "string"}}}</output-schema>
  <tool-definition name="plot">{"type": "object", "properties": {}}</tool-definition>
  <human-msg>Plot it.</human-msg>
  <ai-msg><tool-request id="c1" name="plot" parameters="{{ {} }}"/></ai-msg>
  <tool-response id="c1" name="plot"><p>Here:</p><img syntax="multimedia" src="assets/box.png"/></tool-response>
  <human-msg>Listen: <audio syntax="multimedia" base64="SUQz" type="audio/mpeg"/></human-msg>
</poml>"""


def test_openai_chat_is_what_openais_client_sends() -> None:
    """Through OpenAI's own client, whose types know what the API takes."""
    import openai

    folder = Path(__file__).parent / "corpus"
    made = pomlflow.render(CHAT, format="openai_chat", base_dir=folder)
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(made)
    with model_server() as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            client.chat.completions.create(**made)
        (body,) = server.bodies
    assert {key: body[key] for key in body if key not in {"messages", "tools", "response_format"}} == {
        "model": "m",
        "temperature": 0.5,
        "max_completion_tokens": 20,
        "stop": ["END"],
        "stream": False,
    }
    assert body["response_format"]["json_schema"]["name"] == "reply_card"
    assert body["tools"][0]["function"]["name"] == "plot"
    user, assistant, tool, pictures, listen = body["messages"]
    assert [user["role"], assistant["role"], tool["role"]] == ["user", "assistant", "tool"]
    assert tool["content"] == "Here:\n\n[image/png]"
    assert [part["type"] for part in pictures["content"]] == ["text", "image_url"]
    assert listen["content"][-1] == {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}


def test_openai_chat_is_what_openai_takes_and_under_autolog_what_poml_returns() -> None:
    markup = "<poml><runtime stopSequences='[\"END\"]'/><p>Hi</p></poml>"
    assert pomlflow.poml(markup, format="openai_chat")["stop"] == ["END"]
    pomlflow.autolog(log_traces=False)
    try:
        assert poml.poml(markup, format="openai_chat")["stop_sequences"] == ["END"]
    finally:
        pomlflow.autolog(disable=True)


@pytest.mark.parametrize("call", [pomlflow.poml, pomlflow.render])
def test_an_argument_that_was_removed_names_its_replacement(call: Callable[..., Any]) -> None:
    with pytest.raises(pomlflow.ConfigurationError, match=r"exact_openai_chat was removed .* poml\.poml"):
        call("<p>Hi</p>", exact_openai_chat=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'fromat'"):
        call("<p>Hi</p>", fromat="dict")
