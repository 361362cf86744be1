"""POML without a framework: `pomlflow.poml` compared with `poml.poml`, and `render` and `arender`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import poml
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter
from tests.corpus.cases import Case, case, shapes
from tests.model_server import model_server
from tests.processes import stopped_node
from tests.templates import HELLO

import pomlflow
from pomlflow.engine import installation
from pomlflow.frame.openai import Format, convert_output, raw_json
from pomlflow.template import Template

FORMATS = [one for one in get_args(Format) if one not in {"raw", "openai_chat"}]
FAULTS = {("audio", "langchain")}  # poml 0.0.8 converts audio to a picture
ADA = [{"speaker": "human", "content": "Hello Ada"}]


def arguments(one: Case) -> dict[str, Any]:
    return {"context": dict(one.variables), "stylesheet": one.stylesheet, "chat": one.chat}


@contextmanager
def patched_poml() -> Iterator[None]:
    """Let `poml.poml` render in our engine, without traces."""
    pomlflow.autolog(log_traces=False)
    try:
        yield
    finally:
        pomlflow.autolog(disable=True)


@pytest.fixture
def poml_without_node(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list whose last text poml's Python reads in place of the output of its command line."""
    outputs: list[str] = []

    def run(*args: str) -> subprocess.CompletedProcess[bytes]:
        Path(args[args.index("-o") + 1]).write_text(outputs[-1], encoding="utf-8")
        return subprocess.CompletedProcess(args, 0)

    monkeypatch.setattr("poml.api.run", run)
    return outputs


@pytest.mark.parametrize("one", [pytest.param(c, id=c.name) for c in shapes()])
def test_each_format_is_that_of_poml(one: Case, poml_without_node: list[str]) -> None:
    """Our conversion of a frame is that of poml's Python; the tests of the engine compare the frames."""
    template = Template(path=one.file, stylesheet=one.stylesheet, chat=one.chat)
    record = template.render(one.variables, exact=True)
    with patched_poml():
        assert poml.poml(one.file, **arguments(one), format="raw") == raw_json(record.result())
    poml_without_node.append(raw_json(record.result()))
    for name in FORMATS:
        theirs, ours = poml.poml(one.file, **arguments(one), format=name), convert_output(record, name)
        assert isinstance(ours, type(theirs))
        if (one.name, name) in FAULTS:
            assert ours != theirs, "the fault is gone: remove it from the list"
            continue
        assert ours == theirs, name
        assert json.dumps(plain(ours)) == json.dumps(plain(theirs)), f"{name}: other order or types"


def plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


@pytest.mark.parametrize("name", ["chat-off-parts", "everything-in-one", "stylesheet-both"])
def test_raw_is_the_same_text_as_that_of_the_command_line(name: str, tmp_path: Path) -> None:
    one = case(name)
    theirs = poml.poml(one.file, **arguments(one), format="raw")
    assert pomlflow.poml(one.file, **arguments(one), format="raw", output_file=tmp_path / "output.json") == theirs
    assert (tmp_path / "output.json").read_text(encoding="utf-8") == theirs


def test_raw_spells_numbers_as_javascript_does() -> None:
    numbers = [1, 1.5, 0.1, 1e-4, 0.00001234, 1e-6, 1.5e-7, 5e-324, 2**53, 1e20, 1e21, 1.5e300, -0.00002]
    node = [str(installation.find().node), "-p", f"{numbers!r}.map(number => JSON.stringify(number)).join(' ')"]
    written = subprocess.run(node, capture_output=True, text=True, check=True).stdout.split()
    for number, text in zip(numbers, written, strict=True):
        schema = f'{{"type": "object", "minimum": {number!r}}}'
        markup = f"<poml><output-schema>{schema}</output-schema><p>x</p></poml>"
        assert f'"minimum":{text}}}' in pomlflow.poml(markup, format="raw")


def test_variables_and_stylesheet_may_be_dicts_files_or_json(tmp_path: Path, monkeypatch: Any) -> None:
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
    with pytest.raises(pomlflow.ConfigurationError, match=r"the context context\.json is not JSON"):
        pomlflow.poml("hello.poml", "context.json")


def test_a_history_is_optional() -> None:
    markup = '<poml><conversation messages="{{history}}"/><human-msg>Hello {{name}}</human-msg></poml>'
    assert pomlflow.poml(markup, {"name": "Ada"}, format="message_dict") == ADA
    history = [{"speaker": "ai", "content": "Yes?"}]
    assert pomlflow.poml(markup, {"name": "Ada", "history": history}, format="message_dict") == [*history, *ADA]


def test_a_variable_of_a_branch_that_is_not_taken_may_be_missing() -> None:
    """In each way to render without a framework."""
    markup = "<p if=\"mode == 'short'\">{{tone}}</p><p if=\"mode == 'long'\">{{outline}}</p>"
    given, expected = {"mode": "short", "tone": "kind"}, [{"speaker": "human", "content": "kind"}]
    assert pomlflow.render(markup, given, format="message_dict") == expected
    assert pomlflow.poml(markup, given) == expected
    with patched_poml():
        assert poml.poml(markup, given) == expected


def test_buffers_in_a_context_file_are_bytes_as_in_poml(tmp_path: Path) -> None:
    file = tmp_path / "context.json"
    file.write_text('{"data": {"__base64__": "SGVsbG8="}}', encoding="utf-8")
    [message] = pomlflow.poml('<p>{{data.toString("utf8")}}</p>', file)
    assert message["content"] == "Hello"


def test_a_string_may_be_a_file_and_a_missing_one_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_render_reads_a_string_as_markup_and_a_path_as_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello").write_text("<p>Hello</p>", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pomlflow.render("hello", format="message_dict") == [{"speaker": "human", "content": "hello"}]
    frame = pomlflow.render(Path("hello"))
    assert isinstance(frame, poml.api.PomlFrame)
    assert frame.messages[0].content == "Hello"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_arender_does_not_block_the_event_loop() -> None:
    """Node stands still until the loop lets it continue, which a blocked loop cannot."""
    await pomlflow.arender(HELLO, {"name": "Ada"})
    with stopped_node():
        render = asyncio.create_task(pomlflow.arender(HELLO, {"name": "Ada"}, format="dict"))
        await asyncio.sleep(0)
        assert not render.done()
    assert await render == {"messages": ADA}


def test_errors_have_the_types_of_poml(tmp_path: Path) -> None:
    """As `poml.poml` documents: RuntimeError and FileNotFoundError."""
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


async def test_a_context_must_be_a_mapping() -> None:
    with pytest.raises(pomlflow.ConfigurationError, match="context must be a mapping of variables, not a list"):
        pomlflow.render(HELLO, [("name", "Ada")])  # type: ignore[arg-type]
    with pytest.raises(pomlflow.ConfigurationError, match="context must be a mapping of variables, not a str"):
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


def test_openai_chat_is_accepted_by_the_client_of_openai() -> None:
    """By the types of its arguments, and in the request that it sends."""
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


def test_openai_chat_follows_openai_here_and_poml_under_autolog() -> None:
    markup = "<poml><runtime stopSequences='[\"END\"]'/><p>Hi</p></poml>"
    assert pomlflow.poml(markup, format="openai_chat")["stop"] == ["END"]
    with patched_poml():
        assert poml.poml(markup, format="openai_chat")["stop_sequences"] == ["END"]


def test_histories_in_openais_form_are_read_here_and_not_by_poml_under_autolog() -> None:
    markup, given = '<conversation messages="{{h}}"/>', {"h": [{"role": "assistant", "content": "Hi"}]}
    assert pomlflow.poml(markup, given) == [{"speaker": "ai", "content": "Hi"}]
    assert pomlflow.render(markup, given, format="message_dict") == [{"speaker": "ai", "content": "Hi"}]
    with patched_poml():
        assert poml.poml(markup, given) == [{"speaker": "human", "content": "Hi"}]


@pytest.mark.parametrize("call", [pomlflow.poml, pomlflow.render])
def test_a_removed_argument_names_its_replacement(call: Callable[..., Any]) -> None:
    with pytest.raises(pomlflow.ConfigurationError, match=r"exact_openai_chat was removed .* poml\.poml"):
        call("<p>Hi</p>", exact_openai_chat=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'fromat'"):
        call("<p>Hi</p>", fromat="dict")


@pytest.mark.parametrize("call", [pomlflow.poml, pomlflow.render])
def test_a_data_frame_as_the_context_is_an_error_with_the_remedy(call: Callable[..., Any]) -> None:
    frame = pytest.importorskip("pandas").DataFrame({"a": [1]})
    with pytest.raises(pomlflow.ConfigurationError, match=r'not a DataFrame; pass it as a variable, \{"rows": …\}'):
        call("<table records='{{rows}}'/>", frame)
    assert call("<table records='{{rows}}'/>", {"rows": frame}, format="message_dict")[0]["content"].startswith("| a |")
