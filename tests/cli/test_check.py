"""``pomlflow vars`` and ``pomlflow check``: variables, problems with their places and remedies, example values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import MARKUP, Run
from tests.templates import write

import pomlflow
from pomlflow.exceptions import RenderError


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


def test_a_missing_file_is_named(run: Run, folder: Path) -> None:
    write(folder / "a.poml", '<poml><include if="false" src="rules.poml"/><p>Hello</p></poml>')
    assert run("check", "a.poml").stdout == (
        "a.poml:1:32: warning: there is no file rules.poml: a path is relative to the folder of the .poml file "
        "[missing-file]\n"
    )


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


@pytest.mark.parametrize(
    "markup",
    [
        "<poml>\n<p>{{ a & b }}</p>\n</poml>\n",
        "<poml><p>x</p><output-schema>{a: 1,}}</output-schema></poml>",
        '<poml><document src="/etc/hostname" parser="txt"/></poml>',
    ],
    ids=["ampersand", "schema", "a file"],
)
def test_the_remedy_of_an_error_is_shown(run: Run, folder: Path, markup: str) -> None:
    write(folder / "a.poml", markup)
    with pytest.raises(RenderError) as error:
        pomlflow.render(folder / "a.poml", {"a": 1, "b": 1})
    assert error.value.hint
    for arguments in (["check", "a.poml"], ["render", "a.poml", "-c", "a:=1", "-c", "b:=1"]):
        done = run(*arguments)
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
