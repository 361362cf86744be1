"""What a template is given against what it takes: told at its place, and never a riddle of POML's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.templates import text, write

from pomlflow.exceptions import MissingVariableError, RenderError
from pomlflow.template import Template


def missing(template: Template, **given: Any) -> MissingVariableError:
    error = template.render(given).error
    assert isinstance(error, MissingVariableError)
    return error


@pytest.mark.parametrize(
    ("markup", "line", "column"),
    [
        ("<p>{{want}}</p>", 1, 6),
        ("<p>want</p>\n\t<p>{{ [1].map(a => a + want) }}</p>", 2, 25),
        ("<!-- {{want}} -->\n<p>{{a.want}} {{want.a}}</p>", 2, 17),
        ('<item for="x in want">{{x}}</item>', 1, 17),
        ('<p if="!!want">x</p>', 1, 10),
        ('<let name="a" value="want + 1"/><p>{{a}}</p>', 1, 22),
        ("<p>\U0001f600{{want}}</p>", 1, 7),
        ("<p>x</p>\r\n<p>{{ want }}</p>", 2, 7),
        ("<output-schema>z.object({a: z.literal(want)})</output-schema>", 1, 39),
        ('<img src="{{want}}" />', 1, 13),
    ],
)
def test_a_missing_variable_is_told_at_its_first_use(markup: str, line: int, column: int) -> None:
    error = missing(Template(markup), a={})
    assert (error.line, error.column, error.file) == (line, column, None)
    shown, caret = str(error).split("\n")[-2:]
    assert shown[caret.index("^") :].startswith("want")
    assert caret.strip() == "^" * len("want")


def test_a_missing_variable_of_an_include_is_told_there(tmp_path: Path) -> None:
    write(tmp_path / "part.poml", "<p>One</p>\n<p>{{want}}</p>")
    error = missing(Template(path=write(tmp_path / "a.poml", '<poml><include src="part.poml"/></poml>')))
    assert (error.file, error.line, error.column) == (str(tmp_path / "part.poml"), 2, 6)


@pytest.mark.parametrize(("given", "near"), [("qestion", True), ("Question", True), ("answer", False)])
def test_a_name_that_is_near_is_proposed(given: str, near: bool) -> None:
    assert (f"Did you mean '{given}'?" in str(missing(Template("<p>{{question}}</p>"), **{given: 1}))) is near


def test_a_history_that_nobody_gave_is_not_told_as_given() -> None:
    template = Template('<poml><conversation messages="{{history}}"/><p>{{question}} {{orders}}</p></poml>')
    assert "needs the variable question; given: orders." in str(missing(template, orders=1))
    assert "given: history, orders." in str(missing(template, orders=1, history=[{"speaker": "ai", "content": "Hi"}]))


def test_the_error_can_be_pickled() -> None:
    error = missing(Template("<p>{{want}}</p>"))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.variable, copy.line, copy.column) == (str(error), "want", 1, 6)


@pytest.mark.parametrize("name", [1, None, (1, 2), b"x"])
def test_a_name_that_is_no_string_is_an_extra_variable(name: Any) -> None:
    assert Template("<p>{{x}}</p>").render({name: 1, "x": 2}).result()["messages"][0]["content"] == "2"
    assert Template("<p>{{x}}</p>").render({name: 1}).error.variable == "x"


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ('<p for="[a, b] in [[1, 2]]">{{a}}/{{b}}</p>', "1/2"),
        ('<p for="{a, c: b} in [{a: 1, c: 2}]">{{a}}/{{b}}</p>', "1/2"),
        ('<let name="{a}" value="{a: 1}"/><p>{{a}}/2</p>', "1/2"),
        ('<p for="a in [1]">{{a}}/2</p>', "1/2"),
    ],
)
def test_extra_variables_leave_the_names_of_patterns_alone(markup: str, expected: str) -> None:
    """POML (0.0.8) makes parameters of both and refuses two of one name."""
    assert text(Template(markup), a="extra", b="extra", loop="extra") == expected


@pytest.mark.parametrize(
    "markup",
    [
        "<output-schema>this is my schema</output-schema>",
        "<output-schema>\n  name: string, age: number\n</output-schema>",
        '<tool-definition name="t">no json at all</tool-definition>',
        '<output-schema>{"type": object}</output-schema>',
        "<output-schema>z.object({a: z.string()}</output-schema>",
    ],
)
def test_a_schema_that_is_none_is_told_as_that(markup: str) -> None:
    template = Template(f"<p>Hi</p>{markup}")
    assert template.inference.variables == ()
    error = template.render({}).error
    assert isinstance(error, RenderError)
    assert "a schema is JSON" in str(error)
    assert error.line is not None


def test_another_error_in_a_schema_is_told_without_that_hint() -> None:
    error = Template('<output-schema>{"a": {{a.b.c}} }</output-schema>').render({"a": {}}).error
    assert isinstance(error, RenderError)
    assert "a schema is JSON" not in str(error)
