"""Prompts and uses that failed for people, without a framework."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import poml
import pytest
from click.testing import CliRunner
from tests.programs import run_program

import pomlflow
from pomlflow import settings
from pomlflow.cli import cli

CASES = Path(__file__).parent / "cases"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run the command in this process; return its exit code and all that it prints."""
    monkeypatch.setattr(settings, "_current", settings.Settings())
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "INFO" if "LEVEL" in name else "1"))  # the command line sets them
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def run(*arguments: str, given: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(cli, arguments, input=given, prog_name="pomlflow", catch_exceptions=False)
        return done.exit_code, done.output

    return run


@pytest.fixture
def process(folder: Path) -> Callable[..., tuple[int, str]]:
    """Run the command in a process of its own; return its exit code and all that it prints."""

    def run(*arguments: str, given: str = "", **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pomlflow", *arguments],
            input=given.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1", **environment},
            timeout=100,
            check=False,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    return run


def text(markup: str | Path, variables: dict[str, Any] | None = None) -> str:
    """The text of all messages."""
    messages = pomlflow.render(markup, variables or {}, format="message_dict")
    return "\n".join(_content(message["content"]) for message in messages)


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def error(markup: str | Path, variables: dict[str, Any] | None = None) -> pomlflow.PomlError:
    """The error of a render."""
    with pytest.raises(pomlflow.PomlError) as caught:
        pomlflow.render(markup, variables or {})
    return caught.value


def inputs(markup: str | Path) -> list[str]:
    """The variables that a prompt lists."""
    from pomlflow.langchain import PomlPromptTemplate

    make = PomlPromptTemplate.from_file if isinstance(markup, Path) else PomlPromptTemplate.from_template
    return sorted(make(markup).input_variables)


# --- a variable is missing where an expression that was evaluated needed it ---

UNTAKEN = {
    "a branch": (
        (CASES / "branch-not-taken.poml").read_text(encoding="utf-8"),
        {"mode": "short", "tone": "kind"},
        "# Short\n\nkind",
    ),
    "or": ("<p>{{ a || b }}</p>", {"a": "x"}, "x"),
    "a choice": ("<p>{{ ok ? a : b }}</p>", {"ok": True, "a": "x"}, "x"),
    "an empty loop": ('<poml><p>Hi</p><p for="x in xs">{{x}}{{y}}</p></poml>', {"xs": []}, "Hi"),
    "a branch with an attribute": ('<poml><p>Hi</p><p if="ok" className="{{c}}">{{y}}</p></poml>', {"ok": False}, "Hi"),
}


@pytest.fixture(params=["render", "poml", "autolog"])
def rendered(request: pytest.FixtureRequest) -> Iterator[Callable[[str, dict[str, Any]], str]]:
    """Render in each way there is without a framework."""

    def render(markup: str, variables: dict[str, Any]) -> str:
        if request.param == "render":
            return text(markup, variables)
        messages = (pomlflow if request.param == "poml" else poml).poml(markup, variables)
        return "\n".join(message["content"] for message in messages)

    if request.param == "autolog":
        pomlflow.autolog(log_traces=False)
    yield render
    if request.param == "autolog":
        pomlflow.autolog(disable=True)


@pytest.mark.parametrize(("markup", "variables", "expected"), UNTAKEN.values(), ids=UNTAKEN)
def test_what_is_not_evaluated_needs_no_variable(
    rendered: Callable[..., str], markup: str, variables: dict[str, Any], expected: str
) -> None:
    assert rendered(markup, variables) == expected


def test_a_variable_that_was_needed_is_missing_with_its_place() -> None:
    caught = error(CASES / "branch-not-taken.poml", {"mode": "long", "tone": "kind"})
    assert isinstance(caught, pomlflow.MissingVariableError)
    assert (caught.variable, caught.line) == ("outline", 3)
    assert inputs(CASES / "branch-not-taken.poml") == ["mode", "outline", "tone"]


# --- errors are short, name POML's own fault, and have a remedy ---


def stray() -> str:
    """40 KB of prose with one stray ``<``."""
    return "<poml>\n<p>score <threshold means " + "\n".join(["one word after the other"] * 1600) + "</p>\n</poml>\n"


def test_an_error_of_a_stray_bracket_is_short() -> None:
    shown = str(error(stray()))
    assert len(shown) <= 2000
    assert len(shown.splitlines()) <= 25
    assert ":2:" in shown


@pytest.mark.parametrize("command", ["check", "render"])
def test_the_command_line_shows_it_short(command_line: Callable[..., tuple[int, str]], command: str) -> None:
    Path("stray.poml").write_text(stray(), encoding="utf-8")
    code, shown = command_line(command, "stray.poml")
    assert code == 1
    assert len(shown) <= 2000
    assert len(shown.splitlines()) <= 25 + (command == "check")  # a line counts the prompts
    assert "stray.poml:2:" in shown


@pytest.mark.parametrize(
    ("markup", "variables"),
    [
        pytest.param(CASES / "let-text-in-value.poml", [], id="text in let"),
        pytest.param(CASES / "entity-in-if.poml", ["a", "b"], id="&amp;&amp;"),
        pytest.param('<p if="n &lt; 5">x</p>', ["n"], id="&lt;"),
    ],
)
def test_no_false_variable_is_listed(markup: str | Path, variables: list[str]) -> None:
    assert inputs(markup) == variables


@pytest.mark.parametrize(
    ("markup", "variables", "words"),
    [
        pytest.param(CASES / "let-text-in-value.poml", {}, r":2:.*(value|quote)", id="text in let"),
        pytest.param(CASES / "entity-in-if.poml", {"a": 1, "b": 1}, "&&", id="&amp;&amp;"),
        pytest.param('<p if="n &lt; 5">x</p>', {"n": 1}, "<", id="&lt;"),
        pytest.param('<poml><for each="x in items"><p>{{x}}</p></for></poml>', {"items": []}, "for", id="no loop"),
    ],
)
def test_pomls_own_fault_comes_first(markup: str | Path, variables: dict[str, Any], words: str) -> None:
    caught = error(markup, variables)
    assert isinstance(caught, pomlflow.RenderError)
    assert re.search(words, str(caught), re.DOTALL)


ENCODINGS = {
    "latin-1": ((CASES / "latin1.poml").read_bytes(), ":2:5"),
    "gbk": ("<poml>\n<p>你好 {{x}}</p>\n</poml>".encode("gbk"), ":2:4"),
    "utf-16": ("<poml>\n<p>hi {{x}}</p>\n</poml>".encode("utf-16"), ":1:1"),
}


@pytest.mark.parametrize("included", [False, True], ids=["prompt", "include"])
@pytest.mark.parametrize(("content", "place"), ENCODINGS.values(), ids=ENCODINGS)
def test_a_file_that_is_not_utf_8_is_an_error(folder: Path, content: bytes, place: str, included: bool) -> None:
    (folder / "other.poml").write_bytes(content)
    (folder / "main.poml").write_text('<poml><include src="other.poml"/></poml>', encoding="utf-8")
    shown = str(error(folder / ("main.poml" if included else "other.poml"), {"x": 1}))
    assert f"other.poml{place}" in shown
    assert "UTF-8" in shown


def remedies(caught: pomlflow.PomlError) -> list[str]:
    """The lines of an error after its place and its caret."""
    lines = str(caught).splitlines()
    caret = max(number for number, line in enumerate(lines) if set(line.strip()) == {"^"})
    return [line.strip() for line in lines[caret + 1 :] if not line.startswith("also ")]


REFUSED = {
    "ampersand": ((CASES / "ampersand-in-expression.poml").read_text(encoding="utf-8")),
    "schema": (CASES / "broken-schema.poml").read_text(encoding="utf-8"),
    "a file": '<poml><document src="/etc/hostname" parser="txt"/></poml>',
}


@pytest.mark.parametrize("command", ["check", "render"])
@pytest.mark.parametrize("markup", REFUSED.values(), ids=REFUSED)
def test_the_command_line_has_the_remedy(
    command_line: Callable[..., tuple[int, str]], command: str, markup: str
) -> None:
    Path("refused.poml").write_text(markup, encoding="utf-8")
    hints = remedies(error(Path("refused.poml"), {"a": 1, "b": 1}))
    code, shown = command_line(command, "refused.poml", *(["-c", "a:=1", "-c", "b:=1"] if command == "render" else []))
    assert code == 1
    assert hints
    assert [hint for hint in hints if hint not in shown] == []


def test_a_missing_quote_is_named() -> None:
    shown = str(error(CASES / "unquoted-attribute.poml"))
    assert "#amp;" not in shown
    assert "quote" in shown


def test_an_expression_in_text_with_ampersands_needs_an_attribute_or_quotes() -> None:
    shown = str(error("<p>{{ a && b }}</p>", {"a": 1, "b": 1}))
    assert "#amp;" not in shown
    assert "if=" in shown or "quote" in shown


def test_entities_vanish_as_in_poml() -> None:
    assert text(CASES / "entities-vanish.poml") == "Tom Ada pay 5"


def test_check_warns_of_entities_that_vanish(command_line: Callable[..., tuple[int, str]]) -> None:
    code, shown = command_line("check", str(CASES / "entities-vanish.poml"))
    assert code == 0
    assert ":1:14:" in shown
    assert "&amp;" in shown


def test_validate_warns_of_entities_that_vanish() -> None:
    from pomlflow.langchain import PomlPromptTemplate

    found = PomlPromptTemplate.from_file(CASES / "entities-vanish.poml").validate()
    assert [(one.line, one.column) for one in found] == [(1, 14), (1, 28)]
    assert "&amp;" in found[0].message


# --- the command line ---


@pytest.mark.parametrize("arguments", [["render", "-"], ["check", "-"], ["vars", "-"]], ids=lambda given: given[0])
def test_what_the_terminal_cannot_encode_is_escaped(
    command_line: Callable[..., tuple[int, str]], process: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    """An emoji in the text, in an error's line and in a variable's place."""
    markup = (
        "<poml><p>🎉</p><p>{{ '🎉'.x.y }}</p></poml>" if arguments[0] == "check" else "<poml><p>🎉 {{a}}</p></poml>"
    )
    given = [*arguments, *(["-c", "a=🎉"] if arguments[0] == "render" else [])]
    expected = command_line(*given, given=markup)
    assert process(*given, given=markup, PYTHONIOENCODING="cp1252:strict")[0] == expected[0]
    shown = process(*given, given=markup, PYTHONIOENCODING="cp1252")
    assert shown == (expected[0], expected[1].replace("🎉", r"\U0001f389"))


def test_broken_values_leave_the_other_prompts_checked(command_line: Callable[..., tuple[int, str]]) -> None:
    for name, markup in (("a", "<p>{{x}}</p>"), ("b", "<p>{{y}}</p>"), ("c", "<p>{{z.q.r}}</p>")):
        Path(f"{name}.poml").write_text(markup, encoding="utf-8")
    Path("a.context.json").write_text('{"x": ', encoding="utf-8")
    Path("c.context.json").write_text('{"z": {}}', encoding="utf-8")
    Path("d.context.json").write_text("{}", encoding="utf-8")
    _, shown = command_line("check", ".")
    assert "a.context.json" in shown
    assert "c.poml:1" in shown
    assert "d.context.json" in shown


@pytest.mark.parametrize("command", [["check"], ["register", "--dry-run"]], ids=lambda given: given[0])
def test_a_prompt_that_is_no_text_leaves_the_others_checked(
    command_line: Callable[..., tuple[int, str]], command: list[str], mlflow_store: str
) -> None:
    Path("a.poml").write_bytes((CASES / "latin1.poml").read_bytes())
    Path("b.poml").write_text("<p>fine</p>", encoding="utf-8")
    Path("c.poml").write_text("<tsk/>", encoding="utf-8")
    code, shown = command_line(*command, ".")
    assert code == 1
    assert "a.poml:2:5: the file is not UTF-8" in shown
    assert "c.poml:1:2" in shown


# --- files and values ---


@pytest.mark.parametrize(
    ("name", "content", "markup"),
    [
        ("data.json", '{"a": 1}', '<poml><let name="d" src="data.json"/><p>{{d.a}}</p></poml>'),
        ("data.csv", "a,b\n1,2\n", '<poml><table src="data.csv" syntax="json"/></poml>'),
        ("data.json", '[{"a": 1}]', '<poml><table src="data.json" syntax="json"/></poml>'),
    ],
    ids=["let", "csv", "json"],
)
def test_a_byte_order_mark_is_no_data(folder: Path, name: str, content: str, markup: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    without = text(markup)
    (folder / name).write_text(content, encoding="utf-8-sig")
    assert text(markup) == without


def test_a_long_run_of_blanks_is_rendered() -> None:
    """In time: with quadratic time it would take minutes, which is more than a render may."""
    assert text("<p>{{x}}</p>", {"x": f"a{' ' * 400_000}b"}) == "a b"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX")
@pytest.mark.parametrize("after", [0.002, 0.02, 0.2])
def test_a_users_timer_raises_the_users_exception(after: float) -> None:
    def handler(*_: object) -> None:
        raise TimeoutError("the user's")

    text("<p>warm</p>")
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with pytest.raises(TimeoutError, match="the user's"):
            text("<p>{{ (function () { let end = Date.now() + 3000; while (end > Date.now()) {} })() }}</p>")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="a working folder cannot be removed")
@pytest.mark.parametrize("module", ["langchain", "llama_index"])
def test_it_renders_where_the_working_folder_was_removed(folder: Path, module: str) -> None:
    (folder / "v.poml").write_text("<p>Hello {{name}}</p>", encoding="utf-8")
    program = f"""
        import os, pathlib, sys, tempfile
        import pomlflow
        from pomlflow.{module} import PomlPromptTemplate
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        os.rmdir(gone)
        file = PomlPromptTemplate.from_file({str(folder / "v.poml")!r})
        markup = PomlPromptTemplate.from_template("<p>Hi {{{{name}}}}</p>")
        print(file.format(name="Ada"), markup.format(name="Ada"))
        print(pomlflow.poml("<p>Hey</p>")[0]["content"])
    """
    done = run_program(textwrap.dedent(program), folder=folder)
    assert re.findall(r"Hello Ada|Hi Ada|Hey", done.stdout) == ["Hello Ada", "Hi Ada", "Hey"]
