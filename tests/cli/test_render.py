"""``pomlflow render``: values, formats and errors; and what all commands refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.corpus.cases import FOLDER
from tests.templates import write

from pomlflow import settings
from pomlflow.exceptions import NodeNotFoundError


def test_settings_are_options_of_every_command(run: Run, folder: Path) -> None:
    write(folder / "endless.poml", "<p>{{ (() => { while (true) ; })() }}</p>")
    done = run("render", "endless.poml", "--timeout", "0.2", "--prompt-root", "p")
    assert done.exit_code == 1
    assert "the render took longer than 0.2 s" in done.output
    assert settings.settings().prompt_root == folder / "p"
    assert run("check", "p", "--timeout", "soon").output == (
        "Error: timeout must be a number of seconds above 0, got 'soon'\n"
    )


def test_a_prompt_is_shown_as_a_chat(run: Run) -> None:
    done = run("render", "p/support.poml", "-c", "name=Ada", "-c", "question=Why?")
    assert done.exit_code == 0
    assert done.output == (
        '--- system\nYou help Ada. \n\nBe kind.\n--- human\nWhy?\n--- runtime\n{\n  "temperature": 0.2\n}\n'
    )


def test_variables_are_text_json_or_a_files_text_and_later_ones_override(run: Run, folder: Path) -> None:
    write(folder / "long.txt", "a = b\n")
    write(folder / "case.json", '{"a": "file", "b": [1], "c": null, "d": "file"}')
    markup = "<p>{{ JSON.stringify([a, b, c, d]) }}</p>"
    given = ["--context-file", "case.json", "-c", "a=x=y", "-c", 'c:={"k": 1.50}', "-c", "d=@long.txt"]
    done = run("render", "-", *given, "--text", given=markup)
    assert done.output == '["x=y",[1],{"k":1.5},"a = b\\n"]\n'
    piped = run("render", "p/support.poml", "--context-file", "-", "--json", given='{"name": 1, "question": 2}')
    assert [message["content"] for message in json.loads(piped.output)["messages"]] == ["You help 1. \n\nBe kind.", "2"]


def test_openai_chat_and_a_stylesheet(run: Run, folder: Path) -> None:
    write(folder / "style.json", '{"p": {"syntax": "json"}}')
    done = run("render", "-", "--format", "openai_chat", given='<poml><p>Hi</p><runtime maxTokens="9"/></poml>')
    assert json.loads(done.output) == {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    assert run("render", "-", "--stylesheet", "style.json", given="<p>Hi</p>").output == '--- human\n"Hi"\n'


def test_pictures_and_tools_are_shown(run: Run) -> None:
    shutil.copy(FOLDER / "assets" / "box.png", "box.png")  # a template may read its own folder
    markup = (
        '<poml><human-msg><img src="box.png" alt="a box" syntax="multimedia"/></human-msg>'
        '<tool-request id="1" name="look" parameters="{{ {at: \'sea\'} }}"/>'
        '<tool-response id="1" name="look">grey</tool-response></poml>'
    )
    shown = run("render", "-", given=markup).output
    assert re.search(r"\[image/png [0-9a-f]{8}, 1", shown)
    assert " bytes, a box]" in shown
    assert '[calls look {"at": "sea"}]' in shown
    assert "[look returns] grey" in shown


def test_a_render_error_has_file_line_and_column(run: Run, folder: Path) -> None:
    write(folder / "wrong.poml", "<poml>\n  <p>{{ x.y.z }}</p>\n</poml>")
    done = run("render", "wrong.poml", "-c", "x:={}")
    assert (done.exit_code, done.output) == (
        1, "wrong.poml:2:6: Cannot read properties of undefined (reading 'z')\n"
    )  # fmt: skip
    missing = run("render", "p/support.poml", "-c", "name=Ada")
    assert missing.exit_code == 1
    assert missing.output.startswith("p/support.poml:3:16: the template needs the variable question")
    assert "question" in missing.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "nowhere.poml"], "nowhere.poml"),
        (["render", "p/support.poml", "-c", "name"], "write NAME=TEXT, NAME:=JSON or NAME=@FILE"),
        (["render", "p/support.poml", "-c", "name:={"], "-c name:={: invalid JSON"),
        (["render", "p/support.poml", "-c", "name=@nowhere"], "nowhere: cannot be read"),
        (["render", "p/support.poml", "--context-file", "nowhere"], "nowhere: cannot be read"),
        (["render", "-", "--context-file", "p/support.poml"], "invalid JSON"),
        (["check", "nowhere"], "nowhere: there is no such file"),
        (["render", "empty"], "empty is a folder: name a file in it"),
        (["vars", "empty"], "empty is a folder: name a file in it"),
        (["diff", "empty"], "empty is a folder: name a file in it"),
        (["replay", "tr-none", "--with", "-"], "--with takes a file, not standard input"),
        (["check", "empty"], "empty: no .poml file in it"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_an_error_without_a_traceback(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    (folder / "empty").mkdir()
    done = run(*arguments, given="<p/>")
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", ["render", "vars", "check", "diff", "register"])
def test_a_prompt_that_is_not_utf_8_fails(run: Run, folder: Path, mlflow_store: str, command: str) -> None:
    """The exit code is that of a wrong prompt, not of wrong usage, and the other prompts of a folder are checked."""
    (folder / "a.poml").write_bytes(b"<p>caf\xe9</p>")
    done = run(command, "a.poml")
    assert (done.exit_code, done.stdout.startswith("a.poml:1:7: ")) == (1, True), done.output
    if command in {"render", "vars"}:
        assert run(command, "-", given=b"<p>caf\xe9</p>").exit_code == 1
    if command in {"check", "register"}:
        write(folder / "c.poml", "<tsk/>")
        assert "c.poml:1:2: " in run(command, ".", *(["--dry-run"] if command == "register" else [])).stdout


@pytest.mark.parametrize("command", ["render", "check"])
def test_an_engine_that_cannot_run_is_no_fault_of_a_prompt(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def cannot(*_: object) -> None:
        raise NodeNotFoundError("no Node.js")

    monkeypatch.setattr("pomlflow.engine.run", cannot)
    given = ["-c", "name=a", "-c", "question=b"]
    done = run(command, "p/support.poml", *given)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "Error: no Node.js\n")
