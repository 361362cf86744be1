"""A render error has a message and a place: file, line, column, the line with a caret, all that POML found."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import rendering

from pomlflow import engine
from pomlflow.exceptions import Problem, RenderError

Fail = Callable[..., RenderError]


@pytest.fixture
def fail(tmp_path: Path) -> Fail:
    """Render markup that fails, as a file in tmp_path (name=None: inline), and return the RenderError."""

    def failed(markup: str, name: str | None = "main.poml", **variables: object) -> RenderError:
        path = None if name is None else str(tmp_path / name)
        with pytest.raises(RenderError) as caught:
            rendering.render(markup, variables, path=path)
        return caught.value

    return failed


def marked(markup: str) -> tuple[str, tuple[int, int, str, int]]:
    """Return the markup without the marks, and line, column, text and width of what they enclose."""
    before, meant, after = markup.split("¦")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    clean = before + meant + after
    shown = clean.split("\n")[line - 1].rstrip("\r")
    return clean, (line, column, shown, len(meant))


def place(problem: Problem) -> tuple[int | None, int | None, str | None, int]:
    return problem.line, problem.column, problem.text, problem.width


# The place is between the marks.
PLACES = {
    "text": ("<poml>\n  <p>Hello ¦{{ nobody.x }}¦!</p>\n</poml>", "nobody is not defined"),
    "attribute": ('<poml>\n  <cp caption="to ¦{{ nobody }}¦.">x</cp>\n</poml>', "nobody is not defined"),
    "whole attribute": ('<poml>\n  <cp caption="¦{{nobody}}¦">x</cp>\n</poml>', "nobody is not defined"),
    "if": ('<poml>\n  <p if=¦"nobody > 1"¦>x</p>\n</poml>', "nobody is not defined"),
    "if in braces": ('<poml>\n  <p if=¦"{{ nobody }}"¦>x</p>\n</poml>', "nobody is not defined"),
    "for": ('<poml>\n  <p for=¦"x in nobody"¦>x</p>\n</poml>', "nobody is not defined"),
    "for over no list": ('<poml>\n  <p for=¦"x in 5"¦>x</p>\n</poml>', "List is expected in for attribute."),
    "for of no kind": (
        '<poml>\n  <p for=¦"x of xs"¦>x</p>\n</poml>',
        "item in list syntax is expected in for attribute.",
    ),
    "let": ('<poml>\n  <let name="a" value=¦"nobody + 1"¦/>x\n</poml>', "nobody is not defined"),
    "syntax": ("<poml>\n  <p>¦{{ a + }}¦</p>\n</poml>", "Unexpected token '}'"),
    "thrown": ("<p>¦{{ (() => { throw new Error('mine') })() }}¦</p>", "mine"),
    "unknown tag": ("<poml>\n  <¦nope¦>x</nope>\n</poml>", "Component nope not found. Do you mean: code, role?"),
    "unclosed tag": (
        "<poml>\n  <p>x\n</poml¦>¦",
        "Expecting token of type --> SLASH_OPEN <-- but found --> '' <--",
    ),
    "ampersand": (
        "<poml>\n  <p>a ¦&¦ b</p>\n</poml>",
        "unexpected character: ->&<- at offset: 14",
    ),
    "missing include": ('<poml>\n  <include src=¦"none.poml"¦/>\n</poml>', "ENOENT: no such file or directory"),
    "missing let file": ('<poml>\n  <let name="a" src=¦"none.json"¦/>x\n</poml>', "ENOENT: no such file or directory"),
    "missing document": ('<poml>\n  ¦<document src="none.txt"/>¦\n</poml>', "ENOENT: no such file or directory"),
    "missing image": ('<poml>\n  ¦<img src="none.png"/>¦\n</poml>', "Image file not found: "),
    "missing table": (
        '<poml>\n  ¦<table src="none.csv"/>¦\n</poml>',
        "Error in component render of Table",
    ),
    "component": (
        '<poml>\n  ¦<p speaker="dog">x</p>¦\n</poml>',
        '"speaker" should be one of human, ai, system, not dog',
    ),
    "writer": ("<poml>\n  ¦<tool-request>x</tool-request>¦\n</poml>", "Tool request must have id and name attributes."),
    "schema as JavaScript": (
        '<poml>\n<output-schema parser="eval">\n  ¦z¦.nope(\n</output-schema>\nx</poml>',
        "Unexpected token '}'",
    ),
    "stylesheet": ("<poml>\n¦<stylesheet>{ bad }</stylesheet>¦\nx</poml>", "Expected property name or '}' in JSON"),
    "context": ("<poml>\n¦<context>{ bad }</context>¦\nx</poml>", "Expected property name or '}' in JSON"),
    "CRLF": ("<poml>\r\n  <p>a</p>\r\n\r\n  <p>¦{{ nobody }}¦</p>\r\n</poml>\r\n", "nobody is not defined"),
    "CRLF, tag": ("<poml>\r\n  <p>a</p>\r\n\r\n  <¦nope¦>a</nope>\r\n</poml>\r\n", "Component nope not found."),
    "tabs": ("<poml>\n\t\t<p>\t¦{{ nobody }}¦</p>\n</poml>", "nobody is not defined"),
    "emoji before": ("<poml>😀😀\n  <p>😀 é 名 ¦{{ nobody }}¦ 😀</p>\n</poml>", "nobody is not defined"),
    "emoji inside": ("<poml>\n  <p>¦{{ '😀' + nobody }}¦</p>\n</poml>", "nobody is not defined"),
    "free text": ("Hello\n  there ¦{{ nobody }}¦", "nobody is not defined"),
    "free text, blank before": ("\n\n  Hello ¦{{ nobody }}¦\nmore", "nobody is not defined"),
    "two roots": ("<p>a</p>\n<p>¦{{ nobody }}¦</p>", "nobody is not defined"),
    "two roots, CRLF and emoji": ("<p>😀</p>\r\n\r\n<p>¦{{ nobody }}¦</p>", "nobody is not defined"),
    "last character": ("<p>a</p>¦&¦", "unexpected character: ->&<- at offset: 8"),
}


@pytest.mark.parametrize("case", PLACES)
def test_an_error_names_its_place(case: str, fail: Fail, tmp_path: Path) -> None:
    markup, where = marked(PLACES[case][0])
    error = fail(markup)
    assert error.message.startswith(PLACES[case][1])
    assert place(error.problems[0]) == where
    assert (error.line, error.column) == where[:2]
    assert error.file == error.problems[0].file == str(tmp_path / "main.poml")


@pytest.mark.parametrize("case", ["text", "missing document", "unclosed tag"])
def test_inline_markup_says_so(case: str, fail: Fail, tmp_path: Path) -> None:
    """With no path, and with a path that only names a folder."""
    markup, where = marked(PLACES[case][0])
    error = fail(markup, name=None)
    with pytest.raises(RenderError) as caught:
        engine.run(engine.Request(markup, path=str(tmp_path / "<inline>.poml")))
    for one in (error, caught.value):
        assert one.file is None
        assert str(one).startswith(f"<inline>:{where[0]}:{where[1]}: ")


def test_the_text_shows_the_line_and_a_caret(fail: Fail, tmp_path: Path) -> None:
    error = fail("<poml>\n\t<p>é {{ nobody }}</p>\n</poml>")
    assert str(error) == (
        f"{tmp_path}/main.poml:2:7: nobody is not defined\n    \t<p>é {{{{ nobody }}}}</p>\n    \t     ^^^^^^^^^^^^"
    )


def test_a_place_of_several_lines_is_shown_to_the_end_of_the_first(fail: Fail) -> None:
    error = fail('<poml>\n  <p speaker="dog">\n    x\n  </p>\n</poml>')
    assert place(error.problems[0]) == (2, 3, '  <p speaker="dog">', 17)


def test_all_problems_are_reported_once(fail: Fail, tmp_path: Path) -> None:
    error = fail('<poml>\n  <p>{{ one }}</p>\n  <p for="i in [1, 2]">{{ two }}</p>\n  <nope/>\n</poml>')
    assert [(p.message, p.line) for p in error.problems] == [
        ("one is not defined", 2),
        ("two is not defined", 3),
        ("Component nope not found. Do you mean: code, role?", 4),
    ]
    assert str(error).splitlines()[3:] == [
        f"also {tmp_path}/main.poml:3:24: two is not defined",
        f"also {tmp_path}/main.poml:4:4: Component nope not found. Do you mean: code, role?",
    ]


def test_a_byte_order_mark_of_an_included_file_is_left_out(tmp_path: Path) -> None:
    """As it is for the template's own file."""
    (tmp_path / "part.poml").write_bytes("\ufeff<p>Hello</p>".encode())
    output = rendering.render('<poml><include src="part.poml"/></poml>', {}, path=str(tmp_path / "main.poml"))
    assert output["messages"] == [{"speaker": "human", "content": "Hello"}]


# --- includes

INCLUDED = {
    "expression": ("<poml>\r\n  <p>😀</p>\r\n  <p>¦{{ nobody }}¦</p>\r\n</poml>", "nobody is not defined"),
    "attribute": ('<poml>\n\n<cp caption="¦{{ nobody }}¦">x</cp></poml>', "nobody is not defined"),
    "unknown tag": ("<p>\n<¦nope¦/></p>", "Component nope not found."),
    "missing document": ('<poml>\n\n\n ¦<document src="none.txt"/>¦</poml>', "ENOENT"),
    "missing image": ('<poml>\n\n\n ¦<img src="none.png"/>¦</poml>', "Image file not found"),
    "component": ('<poml>\n\n\n ¦<p speaker="dog">x</p>¦</poml>', '"speaker" should be one of'),
    "writer": ("<poml>\n\n\n ¦<tool-request>x</tool-request>¦</poml>", "Tool request must have"),
    "unclosed tag": ("<poml>\n  <p>x\n</poml¦>¦", "Expecting token of type --> SLASH_OPEN"),
}


@pytest.mark.parametrize("case", INCLUDED)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_error_in_an_include_names_the_included_file(case: str, depth: int, fail: Fail, tmp_path: Path) -> None:
    """Includes are nested, each in another folder. In poml itself, errors of components name no file."""
    markup, where = marked(INCLUDED[case][0])
    folder = tmp_path
    for level in range(1, depth):
        following = folder / f"level{level}"
        following.mkdir()
        text = f'<poml>\n<p>level {level}</p><include src="level{level}/part.poml"/></poml>'
        (folder / "part.poml").write_text(text, encoding="utf-8")
        folder = following
    (folder / "part.poml").write_bytes(markup.encode())
    error = fail('<poml>\n<p>main</p>\n<include src="part.poml"/>\n</poml>')
    assert error.message.startswith(INCLUDED[case][1])
    assert error.file == str(folder / "part.poml")
    assert place(error.problems[0]) == where


def test_errors_in_several_files_each_name_their_own(fail: Fail, tmp_path: Path) -> None:
    """Also in a second render, when the root file is kept and its includes are read anew."""
    (tmp_path / "a.poml").write_text('<poml>\n<p speaker="dog">x</p></poml>', encoding="utf-8")
    (tmp_path / "b.poml").write_text('<poml>\n\n<p speaker="cat">x</p></poml>', encoding="utf-8")
    markup = '<poml>\n<include src="b.poml"/><p speaker="cow">x</p><include src="a.poml"/></poml>'
    for _ in range(2):
        problems = {(Path(p.file or "").name, p.line, p.message.rsplit(" ", 1)[1]) for p in fail(markup).problems}
        assert problems >= {("main.poml", 2, "cow"), ("a.poml", 2, "dog"), ("b.poml", 3, "cat")}


def test_an_include_of_inline_markup_has_a_file(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "part.poml").write_text("<p>{{ nobody }}</p>", encoding="utf-8")
    markup = '<poml><include src="part.poml"/><p>{{ nothing }}</p></poml>'
    with pytest.raises(RenderError) as caught:
        engine.run(engine.Request(markup, path=str(tmp_path / "<inline>.poml")))
    assert [(p.file, p.message) for p in caught.value.problems] == [
        (str(tmp_path / "part.poml"), "nobody is not defined"),
        (None, "nothing is not defined"),
    ]


def test_an_include_that_vanishes_after_the_error_is_still_named(no_sandbox: None, fail: Fail, tmp_path: Path) -> None:
    """Its line cannot be shown then."""
    part = tmp_path / "part.poml"
    part.write_text("<p>{{ process.getBuiltinModule('fs').unlinkSync(FILE), nobody }}</p>", encoding="utf-8")
    part.write_text(part.read_text(encoding="utf-8").replace("FILE", repr(str(part))), encoding="utf-8")
    error = fail('<poml><include src="part.poml"/></poml>')
    assert (error.file, error.line, error.message) == (str(part), None, "nobody is not defined")


# --- what is thrown


@pytest.mark.parametrize(
    ("thrown", "message"),
    [
        *(
            (value, "Error evaluating expression: (() => { throw VALUE })()")
            for value in ("'text'", "undefined", "5", "[]")
        ),
        ("null", "Cannot read properties of null (reading 'message')"),
        ("new (class extends Error {})('x')", "x"),
    ],
)
def test_any_thrown_value_becomes_an_error_message(thrown: str, message: str, fail: Fail) -> None:
    error = fail(f"<p>{{{{ (() => {{ throw {thrown} }})() }}}}</p>")
    assert error.message == message.replace("VALUE", thrown)


def test_an_error_can_be_pickled(fail: Fail) -> None:
    error = fail("<p>{{ nobody }}</p><nope/>")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
