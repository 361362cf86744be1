"""The command line: what it prints, and what it ends with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from tests.corpus.cases import FOLDER
from tests.templates import HELLO, write

import pomlflow
from pomlflow import settings
from pomlflow.cli import cli
from pomlflow.exceptions import NodeNotFoundError, RenderError

MARKUP = """\
<poml>
  <system-msg>You help {{name}}. <include src="parts/tone.poml"/></system-msg>
  <human-msg>{{question}}</human-msg>
  <runtime temperature="0.2"/>
</poml>
"""
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two prompts of which one is a part of the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "_current", settings.Settings())
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "1" if "RETRIES" in name else "30" if "TIME" in name else "INFO"))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write(tmp_path / "p" / "support.poml", MARKUP)
    write(tmp_path / "p" / "parts" / "tone.poml", "<p>Be kind.</p>")
    return tmp_path


@pytest.fixture
def run() -> Run:
    def run(*arguments: str, given: str | bytes | None = None) -> Result:
        done = CliRunner().invoke(cli, arguments, input=given, prog_name="pomlflow")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception  # a user would see its traceback
        return done

    return run


# --- settings ---


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the settings of a command after the test; in real use its process ends."""
    monkeypatch.setattr(settings, "_current", settings.settings())


@pytest.mark.usefixtures("unset")
def test_settings_are_options_of_every_command(run: Run, folder: Path) -> None:
    write(folder / "endless.poml", "<p>{{ (() => { while (true) ; })() }}</p>")
    done = run("render", "endless.poml", "--timeout", "0.2", "--prompt-root", "p")
    assert done.exit_code == 1
    assert "the render took longer than 0.2 s" in done.output
    assert settings.settings().prompt_root == folder / "p"
    assert run("check", "p", "--timeout", "soon").output == (
        "Error: timeout must be a number of seconds above 0, got 'soon'\n"
    )


# --- render ---


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
    """It is the prompt's fault, and not one of the usage."""
    (folder / "a.poml").write_bytes(b"<p>caf\xe9</p>")
    done = run(command, "a.poml")
    assert (done.exit_code, done.stdout.startswith("a.poml:1:7: ")) == (1, True), done.output
    if command in {"render", "vars"}:
        assert run(command, "-", given=b"<p>caf\xe9</p>").exit_code == 1


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


# --- vars, check ---


def test_variables_and_files_are_listed(run: Run, folder: Path) -> None:
    write(folder / "p" / "support.poml", MARKUP.replace("<human-msg>", '<conversation messages="{{old}}"/><human-msg>'))
    assert run("vars", "p/support.poml").output.splitlines() == [
        "name             needed",
        "question         needed",
        "old              optional, messages",
        "parts/tone.poml  file",
    ]
    assert json.loads(run("vars", "p/support.poml", "--json").output) == {
        "variables": ["name", "question"], "optional": ["old"], "messages": ["old"], "files": ["parts/tone.poml"]
    }  # fmt: skip


def test_a_folder_is_checked_without_values(run: Run, folder: Path) -> None:
    write(folder / ".venv" / "hidden.poml", "<p>{{ x. }}</p>")
    done = run("check", "p", "p/support.poml")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "2 checked, none with problems\n")
    write(folder / "p" / "wrong.poml", "<poml>\n  <tsk>{{a.b.c}}</tsk>\n  <p>{{ a. }}</p>\n</poml>")
    done = run("check", "p")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "p/wrong.poml:2:4: Component tsk not found. Do you mean: task, s?",
        "p/wrong.poml:3:6: Unexpected token '}'",
    ]
    assert done.stderr == "3 checked, 1 with problems\n"


def test_a_problem_in_an_included_file_is_reported_there(run: Run, folder: Path) -> None:
    write(folder / "p" / "parts" / "tone.poml", "<poml>\n<tsk/></poml>")
    done = run("check", "p/support.poml", "--quiet")
    assert (done.exit_code, done.stdout.split(": ")[0], done.stderr) == (1, "p/parts/tone.poml:2:2", "")


def test_example_values_next_to_a_prompt_are_used(run: Run, folder: Path) -> None:
    write(folder / "a.poml", "<p>{{user.name.toUpperCase()}}</p>")
    assert run("check", "a.poml").exit_code == 0
    write(folder / "a.context.json", '{"user": {}}')
    done = run("check", "a.poml")
    assert (done.exit_code, done.stdout.split(": ")[0]) == (1, "a.poml:1:4")
    assert run("check", "a.poml", "-c", 'user:={"name": "Ada"}').exit_code == 0


def test_broken_example_values_are_reported_and_the_rest_is_checked(run: Run, folder: Path) -> None:
    for name, markup in (("a", "<p>{{x}}</p>"), ("b", "<tsk/>")):
        write(folder / "c" / f"{name}.poml", markup)
    write(folder / "c" / "a.context.json", "{")
    done = run("check", "c")
    assert (done.exit_code, done.stderr) == (1, "2 checked, 2 with problems\n")
    assert [line.split(": ")[0] for line in done.stdout.splitlines()][:2] == ["c/a.context.json:1:2", "c/b.poml:1:2"]


def test_example_values_that_no_prompt_takes_are_warnings(run: Run, folder: Path) -> None:
    write(folder / "c" / "a.poml", "<p>{{x}}</p>")
    example = write(folder / "c" / "a.context.json", '{"x": 1, "y": 2}')
    for place, warning in (("a", "a.poml takes no variable 'y'"), ("b", "there is no b.poml next to it")):
        example = example.rename(folder / "c" / f"{place}.context.json")
        done, strict = run("check", "c"), run("check", "c", "--strict")
        assert done.stdout == strict.stdout == f"c/{place}.context.json:1:1: warning: {warning}\n"
        assert (done.exit_code, done.stderr) == (0, "1 checked, none with problems, 1 with warnings\n")
        assert (strict.exit_code, strict.stderr) == (1, "1 checked, 1 with problems, 1 with warnings\n")


@pytest.mark.parametrize("command", ["check", "render"])
def test_the_remedy_of_an_error_is_shown(run: Run, folder: Path, command: str) -> None:
    write(folder / "a.poml", '<poml><p if="n < 5">few</p></poml>')
    with pytest.raises(RenderError) as error:
        pomlflow.render(folder / "a.poml", {"n": 1})
    assert error.value.hint
    done = run(command, "a.poml", "-c", "n:=1")
    assert done.exit_code == 1
    assert error.value.hint.splitlines()[0] in done.stdout


def test_each_error_has_its_own_remedy_in_the_order_of_the_lines(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = '<p if="a is not None">a</p>\n<p>{{ ", ".join(b) }}</p>\n<item>x</item>'
    write(folder / "a.poml", f'<poml>\n<table src="no.csv"/>\n{broken}</poml>')
    shown = run("check", "a.poml").stdout.splitlines()
    assert [line.split(": ")[0] for line in shown if not line.startswith("  ")] == [
        "a.poml:2:1", "a.poml:3:7", "a.poml:4:4", "a.poml:5:1"
    ]  # fmt: skip
    python = [line.rpartition(": ")[2] for line in shown if "is Python" in line]
    assert python == ["write !==", "write xs.join(', ')"]
    assert shown[-2].startswith("a.poml:5:1: item does not appear alone")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotations = run("check", "a.poml").stdout.splitlines()
    assert "line=3,col=7::Unexpected identifier 'is'%0Aan expression is JavaScript" in annotations[1]
    assert annotations[2].endswith("write xs.join(', ')")


def test_in_github_actions_problems_are_annotations(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    write(folder / "wrong.poml", "<tsk/>")
    assert run("check", "wrong.poml").stdout.startswith(
        "::error file=wrong.poml,line=1,col=2::Component tsk not found."
    )
    write(folder / "50% a,b.poml", "<tsk/>")
    assert run("check", "50% a,b.poml").stdout.startswith("::error file=50%25 a%2Cb.poml,line=1,")


# --- the registry ---


def lines(done: Result) -> list[str]:
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_a_folder_is_registered_compared_and_fetched(run: Run, folder: Path, mlflow_store: str) -> None:
    """What is new, unchanged and changed; a part of a prompt is none; files travel."""
    name = f"q{os.getpid()}"
    (folder / "p").rename(folder / name)
    file = f"{name}/support.poml"
    dry = run("register", name, "--dry-run")
    assert (dry.exit_code, lines(dry)) == (0, [f"new {name}.support {file}"])
    assert "1 new (nothing was written)" in dry.stderr
    assert run("diff", file).exit_code == 2

    assert lines(run("register", name, "--alias", "staging")) == [f"new {name}.support/1 {file}"]
    assert lines(run("register", name)) == [f"unchanged {name}.support/1 {file}"]
    same = run("diff", file, f"prompts:/{name}.support@staging")
    assert (same.exit_code, same.stdout) == (0, "")

    write(folder / name / "parts" / "tone.poml", "<p>Be brief.</p>")
    write(folder / file, MARKUP.replace("You help", "You assist"))
    drift = run("diff", file)
    assert drift.exit_code == 1
    uri = f"prompts:/{name}.support/1"
    assert drift.stdout.splitlines()[:6] == [
        f"--- {uri}", f"+++ {file}", "@@ -1,5 +1,5 @@", " <poml>",
        '-  <system-msg>You help {{name}}. <include src="parts/tone.poml"/></system-msg>',
        '+  <system-msg>You assist {{name}}. <include src="parts/tone.poml"/></system-msg>',
    ]  # fmt: skip
    part = f"--- {uri} parts/tone.poml\n+++ parts/tone.poml\n@@ -1 +1 @@\n-<p>Be kind.</p>\n+<p>Be brief.</p>\n"
    assert drift.stdout.endswith(part)
    assert lines(run("register", name, "--message", "Be brief")) == [f"changed {name}.support/2 {file}"]
    messages = [mlflow.MlflowClient().get_prompt_version(f"{name}.support", number).commit_message for number in (1, 2)]
    assert messages == [f"POML from {file}", "Be brief"]

    given = ["-c", "name=Ada", "-c", "question=Why?", "--json"]
    shown = run("render", f"prompts:/{name}.support@staging", *given)
    assert json.loads(shown.output)["messages"][0]["content"] == "You help Ada. \n\nBe kind."
    assert run("pull", uri, "-o", "-").stdout == MARKUP
    pulled = run("pull", uri, "-o", "out")
    assert lines(pulled) == [f"out/{name}.support.poml", "out/parts/tone.poml"]
    assert run("render", f"out/{name}.support.poml", *given).output == shown.output
    write(folder / "out" / "parts" / "tone.poml", "mine")
    kept = run("pull", uri, "-o", "out")
    assert kept.exit_code == 2
    assert "out/parts/tone.poml: different from" in kept.stderr
    assert run("pull", uri, "-o", "out", "--force").exit_code == 0
    assert (folder / "out" / "parts" / "tone.poml").read_text() == "<p>Be kind.</p>"


def test_a_prompt_may_be_registered_and_compared_under_another_name(run: Run, mlflow_store: str) -> None:
    name = f"named{os.getpid()}"
    assert lines(run("register", "p/support.poml", "--name", name)) == [f"new {name}/1 p/support.poml"]
    assert run("diff", "p/support.poml", "--name", name).exit_code == 0
    both = run("register", "p/support.poml", "p/parts/tone.poml", "--name", name)
    assert (both.exit_code, "--name is for one prompt, and there are 2" in both.stderr) == (2, True)


def test_what_does_not_render_is_not_registered(run: Run, folder: Path, mlflow_store: str) -> None:
    write(folder / "r" / f"wrong{os.getpid()}.poml", "<tsk/>")
    done = run("register", "r")
    assert done.exit_code == 1
    assert "Component tsk not found" in done.stdout
    assert run("diff", f"r/wrong{os.getpid()}.poml").exit_code == 2


def test_a_missing_prompt_or_trace_is_an_error(run: Run, mlflow_store: str) -> None:
    for arguments in (["pull", "prompts:/nobody@x"], ["diff", "p/support.poml", "nonsense:/x"], ["replay", "tr-none"]):
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: ")
    assert "no trace tr-none in sqlite:" in done.stderr


def test_a_store_is_shown_without_its_password_and_a_missing_driver_is_named(run: Run, mlflow_store: str) -> None:
    import mlflow

    store = "mssql+pymssql://mlflow:secret@db/mlflow"
    mlflow.set_registry_uri(store)  # put back by the fixture
    done = run("register", "p", "--tracking-uri", store)
    assert done.exit_code == 2
    assert "registry: mssql+pymssql://***@db/mlflow" in done.stderr
    assert "Error: MLflow's store needs the package pymssql" in done.stderr
    assert "secret" not in done.output


@pytest.mark.parametrize("part", ["p/parts/tone.poml", "./p/parts/tone.poml", "p/../p/parts/tone.poml"])
def test_a_part_that_is_named_itself_is_registered_too(run: Run, mlflow_store: str, part: str) -> None:
    assert len(lines(run("register", "p", "--dry-run"))) == 1
    assert len(lines(run("register", "p", part, "--dry-run"))) == 2


def test_what_cannot_be_read_or_written_is_an_error(run: Run, folder: Path, mlflow_store: str) -> None:
    deep = write(folder / "deep.json", "[" * 200_000)
    name = f"written{os.getpid()}"
    file = write(folder / "w" / f"{name}.poml", "<p>Hello</p>")
    assert run("register", "w").exit_code == 0
    for arguments, message in (
        (["render", str(file), "--context-file", str(deep)], "invalid JSON"),
        (["pull", f"prompts:/w.{name}", "--output", str(file)], "exists"),
        (["pull", f"prompts:/w.{name}", "--output", f"{file}/sub"], "Not a directory"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unreachable_server_is_an_error(run: Run, mlflow_store: str) -> None:
    import mlflow

    away = "http://127.0.0.1:9"
    mlflow.set_registry_uri(away)  # put back by the fixture
    for arguments in (["register", "p"], ["diff", "p/support.poml"], ["replay", "tr-none"]):
        done = run(*arguments, "--tracking-uri", away)
        assert done.exit_code == 2
        assert "127.0.0.1" in done.stderr


@pytest.mark.parametrize("command", ["diff p/support.poml", "pull", "render"])
@pytest.mark.parametrize(("options", "seconds"), [((), 60), (("--timeout", "90"), 90)])
@pytest.mark.usefixtures("unset")
def test_a_slow_store_is_waited_for_and_its_error_names_the_option(
    run: Run, mlflow_store: str, monkeypatch: pytest.MonkeyPatch, command: str, options: tuple[str, ...], seconds: int
) -> None:
    from pomlflow.tracking import load

    fetch_within = load.fetch_within

    def slow(timeout: float, *given: Any) -> Any:
        assert timeout == seconds
        return fetch_within(0.01, *given)

    monkeypatch.setattr(load, "fetch_within", slow)
    answered = threading.Event()
    monkeypatch.setattr(load.Reference, "fetch", lambda *_: answered.wait(30))
    done = run(*command.split(), "prompts:/support/1", *options)
    answered.set()
    assert done.exit_code == 2
    assert "no answer within 0.01 s; try again, or allow more time with timeout= (--timeout on the" in done.stderr


def test_a_trace_is_replayed(run: Run, folder: Path, mlflow_store: str) -> None:
    import mlflow

    from pomlflow.template import Template
    from pomlflow.tracking.spans import log_render

    with mlflow.start_span("chain") as span:
        record = Template(path="p/support.poml").render({"name": "Ada", "question": "Why?"})
        log_render(record, parent=span, register=False)
    done = run("replay", span.trace_id)
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"{span.trace_id}: 1 identical")
    write(folder / "p" / "parts" / "tone.poml", "<p>Be brief.</p>")
    done = run("replay", span.trace_id)
    assert done.exit_code == 1
    assert "  - Be kind.\n  + Be brief.\n  p/parts/tone.poml has changed" in done.output
    shown: dict[str, Any] = json.loads(run("replay", span.trace_id, "--json").output)
    assert shown["identical"] is False
    assert shown["renders"][0]["differences"] == [
        {"where": "messages[0].content", "then": "You help Ada. \n\nBe kind.", "now": "You help Ada. \n\nBe brief."}
    ]
    many = run("replay", span.trace_id, span.trace_id)
    assert (many.exit_code, many.output) == (1, done.output * 2)
    assert json.loads(run("replay", span.trace_id, span.trace_id, "--json").output) == [shown, shown]
    write(folder / "p" / "support.poml", "<p>You serve {{name}}.</p>")
    edited = run("replay", span.trace_id, "--with", "p/support.poml")
    assert (edited.exit_code, "+ You serve Ada.\n" in edited.output) == (1, True)
    assert edited.output.endswith("rendered with p/support.poml\n")
    assert run("replay", span.trace_id, "--with", "p/nowhere.poml").exit_code == 2


# --- as a program ---


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pomlflow", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_runs_as_a_module_and_prints_its_version() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"pomlflow {pomlflow.__version__}\n")
    assert program("render", "-", "-c").returncode == 2


def test_help_has_examples(run: Run) -> None:
    for command in cli.commands:
        done = run(command, "--help")
        assert done.exit_code == 0
        assert f"\n  pomlflow {command} " in done.output or f"| pomlflow {command}" in done.output


def test_a_shell_completes_commands_and_options(run: Run) -> None:
    done = program(_POMLFLOW_COMPLETE="bash_complete", COMP_WORDS="pomlflow re", COMP_CWORD="1")
    assert {line.split(",")[1] for line in done.stdout.split()} == {"register", "render", "replay"}
    done = program(_POMLFLOW_COMPLETE="bash_complete", COMP_WORDS="pomlflow register --dr", COMP_CWORD="2")
    assert done.stdout.split() == ["plain,--dry-run"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_colours_unless_no_color_is_set(folder: Path, no_color: str) -> None:
    import pty

    write(folder / "a.poml", HELLO)
    parent, child = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR") if not no_color else None
    done = subprocess.run(
        [sys.executable, "-m", "pomlflow", "render", "a.poml", "-c", "name=Ada"],
        stdout=child, stderr=subprocess.PIPE, env=environment, check=True, timeout=60,
    )  # fmt: skip
    os.close(child)
    shown = os.read(parent, 10_000).decode()
    os.close(parent)
    assert done.stderr == b""
    assert "Hello Ada" in shown
    assert "human" in shown
    assert ("\x1b[32m" in shown) == (not no_color)


class Terminal:
    """A pseudo-terminal as standard error, and what a command of this process writes to it and to standard output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
        import pty

        parent, child = pty.openpty()
        self._patch, self._capsys = monkeypatch, capsys
        self._read, self._file = os.fdopen(parent, "rb", 0), os.fdopen(child, "w", encoding=encoding)
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._drain)  # a full terminal blocks

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while data := self._read.read(4096):
                self._shown.append(data)

    def run(self, *arguments: str) -> tuple[int, str, bytes]:
        """The exit code, standard output, and what the terminal got."""
        self._reader.start()
        self._capsys.readouterr()
        with self._patch.context() as patch:
            patch.setattr(sys, "stderr", self._file)
            patch.setenv("TERM", "xterm-256color")
            code = cli.main(list(arguments), prog_name="pomlflow", standalone_mode=False)
        self._file.close()
        self._reader.join()
        self._read.close()
        return code, self._capsys.readouterr().out, b"".join(self._shown)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_check_of_many_shows_a_bar_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    """What it prints stays in the pipe that it goes to."""
    write(folder / "p" / "wrong.poml", "<p>{{ a. }}</p>")
    code, printed, shown = Terminal(monkeypatch, capsys, encoding).run("check", "p")
    assert (code, printed) == (1, "p/wrong.poml:1:4: Unexpected token '}'\n")
    bars = [f"checking [{'#' * done:-<30}] {number} of 3".encode() for number, done in ((1, 0), (2, 10), (3, 20))]
    assert [bar in shown for bar in bars] == [True] * 3
    assert b"wrong.poml" not in shown
    assert shown.isascii()
    assert b"3 checked, 1 with problems" in shown
    assert b"checking" not in Terminal(monkeypatch, capsys, encoding).run("check", "p/support.poml")[2], "of one"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_register_and_replay_show_their_progress_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mlflow_store: str
) -> None:
    write(folder / "p" / "other.poml", HELLO)
    code, printed, shown = Terminal(monkeypatch, capsys, "utf-8").run("register", "p")
    assert (code, len(printed.splitlines())) == (0, 2)
    assert b"registering [###############---------------] 2 of 2" in shown
    pomlflow.autolog(register=False)
    pomlflow.render(Path("p/other.poml"), {"name": "Ada"})
    pomlflow.autolog(disable=True)
    pomlflow.flush()
    import mlflow

    trace = str(mlflow.get_last_active_trace_id())
    code, printed, shown = Terminal(monkeypatch, capsys, "utf-8").run("replay", trace, trace)
    assert (code, printed.count("1 identical")) == (0, 2)
    assert b"replaying [###############---------------] 2 of 2" in shown
