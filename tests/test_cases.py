"""Regression tests: prompts and commands that users reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import poml
import pytest
from click.testing import CliRunner

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


def test_what_is_not_evaluated_needs_no_variable(rendered: Callable[..., str]) -> None:
    markup = (CASES / "branch-not-taken.poml").read_text(encoding="utf-8")
    assert rendered(markup, {"mode": "short", "tone": "kind"}) == "# Short\n\nkind"


def test_a_variable_that_was_needed_is_missing_with_its_place() -> None:
    caught = error(CASES / "branch-not-taken.poml", {"mode": "long", "tone": "kind"})
    assert isinstance(caught, pomlflow.MissingVariableError)
    assert (caught.variable, caught.line) == ("outline", 3)
    assert inputs(CASES / "branch-not-taken.poml") == ["mode", "outline", "tone"]


# --- errors are short, name POML's own fault, and have a remedy ---


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


def test_entities_vanish_as_in_poml() -> None:
    assert text(CASES / "entities-vanish.poml") == "Tom Ada pay 5"


def test_check_warns_of_entities_that_vanish(command_line: Callable[..., tuple[int, str]]) -> None:
    code, shown = command_line("check", str(CASES / "entities-vanish.poml"))
    assert code == 0
    assert ":1:14:" in shown
    assert "&amp;" in shown


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
    code, shown = command_line("check", ".")
    assert code == 1
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
