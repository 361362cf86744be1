"""Whether a text is POML, by its content alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pomlflow.template.markup import is_poml


@pytest.mark.parametrize(
    "text",
    [
        "<poml><p>Hello</p></poml>",
        "\ufeff<!-- a note -->\n<POML>Hello</POML>\n",
        "<role>Clerk</role>\n<task>{{task}}</task>",
        "<system-msg>Be kind.</system-msg><human-msg>Hello</human-msg>",
        "<SystemMessage>Be kind.</SystemMessage>",
        '<let name="x" value="1"/><p>{{x}}</p>',
        "<p>not closed",
        '<output-schema>{"type": "object"}</output-schema><p>Hello</p>',
    ],
)
def test_poml_is_recognised(text: str) -> None:
    assert is_poml(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "Hello {{name}}",
        "a < b > c",
        "Hello <b>you</b>",
        "<p>Hello</p> and more",
        "<instructions>Be kind.</instructions>",
        "<p>Hello</p><data>x</data>",
        "<!-- nothing but a note -->",
        '{"role": "user"}',
    ],
)
def test_other_text_is_not_poml(text: str) -> None:
    assert not is_poml(text)


def test_the_elements_are_those_of_the_installed_poml() -> None:
    """A component of a newer poml must be added to our list."""
    poml = pytest.importorskip("poml")
    bundle = (Path(poml.__file__).parent / "js" / "cli.js").read_text(encoding="utf-8")
    components = re.findall(r"\(0, base_1\.component\)\('(\w+)'(?:, (\[[^\]]*\]|\{[^}]*\}))?\)", bundle)
    assert len(components) > 40
    names = {name for name, _ in components} | {
        alias for _, options in components for alias in re.findall(r"'([\w-]+)'", options.split("requiredProps")[0])
    }
    inner = {"TableMarkup", "TableSerialize"}  # what <table> is made of
    assert {name for name in names if not is_poml(f"<{name}>a</{name}>")} == inner
