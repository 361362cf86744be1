"""The whitespace of a variable that stands alone in text, kept where a render requests it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pomlflow import engine
from pomlflow.exceptions import RenderError

TEXT = "def f(r):\n    if r > 0:\n\traise  X {a} {{b}}\r\n\n\n| a | b |\u00a0 \u2003end "


def rendered(markup: str, *, keep: bool = True, path: Path | None = None, **variables: Any) -> engine.Result:
    context, revive = engine.encode(variables)
    file = None if path is None else str(path)
    return engine.run(engine.Request(markup, context, revive, path=file, keep_whitespace=keep))


def text(markup: str, **options: Any) -> str:
    return "\n".join(message["content"] for message in rendered(markup, **options).output["messages"])


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("{{x}}", "{}"),
        ("Context:\n\n{{ x }}\n\nQuery: {{query}}", "Context:\n\n{}\n\nQuery: why?"),
        ("<poml>\n  <p>\n    {{x}}\n  </p>\n</poml>", "{}"),
        ("<poml>Context: {{x}} Query: {{query}}</poml>", "Context: {} Query: why?"),
        ('<cp caption="Context">{{x}}</cp>', "# Context\n\n{}"),
        ("<human-msg>{{x}}</human-msg><ai-msg>{{query}}</ai-msg>", "{}\nwhy?"),
        ("<p>Use <b>{{x}}</b></p>", "Use **{}**"),
        ('<p whiteSpace="pre">{{x}}</p>', "{}"),
        ('<p if="x">{{x}}</p>', "{}"),
        ("<list><item>{{x}}</item></list>", "- {}"),
        ('<code inline="false">{{x}}</code>', "```\n{}\n```"),
        ('<output-schema>{"type": "object"}</output-schema><p>{{x}}</p>', "{}"),
        ("<p>{{x}}</p><p>{{x.length}}</p>", f"{{}}\n\n{len(TEXT)}"),
        ('<cp caption="{{query}}">{{x}}</cp>', "# why?\n\n{}"),
    ],
)
def test_a_variable_alone_in_text_keeps_its_whitespace(markup: str, expected: str) -> None:
    assert text(markup, x=TEXT, query="why?") == expected.replace("{}", TEXT)


@pytest.mark.parametrize(
    "markup",
    [
        "<p>{{x.trim()}}</p>",
        '<poml syntax="json"><cp caption="a">{{x}}</cp></poml>',
        '<poml syntax="yaml"><cp caption="a">{{x}}</cp></poml>',
        '<poml><stylesheet>{"cp": {"syntax": "json"}}</stylesheet><cp caption="a">{{x}}</cp></poml>',
        "<table records='[[1]]'/><p>{{x}}</p>",
        '<p for="i in [x]">{{i}}</p>',
        '<p charLimit="1000">{{x}}</p>',
        '<poml syntax="json"><cp caption="a">{{x}} {{n.push(1)}} {{n}}</cp></poml>',
    ],
)
def test_whitespace_elsewhere_is_as_in_poml(markup: str) -> None:
    """Whitespace is not kept if an expression computes with it, or if it would break the syntax of the output."""
    kept, plain = (rendered(markup, keep=keep, x=TEXT, n=[0]) for keep in (True, False))
    assert (kept.output, kept.kept_whitespace) == (plain.output, False)


def test_schemas_attributes_and_tool_calls_get_the_text_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a  b.txt").write_text("noted", encoding="utf-8")
    markup = '<output-schema>{{schema}}</output-schema><document src="{{file}}"/>'
    output = rendered(markup, path=tmp_path / "p.poml", schema='{\n  "type":  "object"\n}', file="a  b.txt").output
    assert (output["schema"], output["messages"][0]["content"]) == ({"type": "object"}, "noted")
    call = """<ai-msg><p>{{x}}</p><tool-request id="1" name="f" parameters='{"a": [1, null, "b  c"]}'/></ai-msg>"""
    plain, called = rendered(call, x="a\n b").output["messages"][0]["content"]
    assert (plain, called["content"]) == ("a\n b", {"a": [1, None, "b  c"]})


def test_included_files_keep_whitespace_too(tmp_path: Path) -> None:
    (tmp_path / "shows.poml").write_text("<p>{{x}}</p>", encoding="utf-8")
    markup = '<include src="shows.poml"/><p>{{query}}</p>'
    assert text(markup, path=tmp_path / "p.poml", x=TEXT, query="why?") == f"{TEXT}\n\nwhy?"


def test_blanks_at_the_ends_are_kept() -> None:
    assert text("<p>{{x}}</p><p>{{y}}</p>", x=" a b ", y="  c\n") == " a b \n\n  c\n"
    assert [text("<p>{{x}}</p>", x=blank) for blank in (" ", "   ")] == [" ", "   "]


def test_the_whitespace_of_a_text_with_one_of_the_substitutes_is_not_kept() -> None:
    assert text("<p>{{x}} {{y}}</p>", x="a\ufdd0b\n c\ufdd1", y="d\n  e") == "a\ufdd0b c\ufdd1 d e"


def test_kept_whitespace_is_reported_and_holds_for_one_render() -> None:
    assert [
        rendered("<p>{{x}}</p>", keep=keep, x=value).kept_whitespace
        for keep, value in ((True, "a\nb"), (True, "a b"), (False, "a\nb"))
    ] == [True, False, False]
    with pytest.raises(RenderError):
        rendered("<p>{{x}}{{y.z}}</p>", x=TEXT)
    assert text("<p>{{x}}</p>", keep=False, x="a\n b") == "a b"
