"""What is wrong with a template itself, found without values for its variables."""

from __future__ import annotations

import pytest
from tests.corpus.cases import Case, cases
from tests.template.test_history import ONE, TWO, Notes

from pomlflow.template import Template

# A missing file and a disabled component: reported although they are under an `if`.
UNDER_IF = {"include-for-and-if", "state-components"}
FINE = [one for one in cases() if one.variables and not one.fails and one.name not in UNDER_IF]


@pytest.mark.parametrize("one", [pytest.param(one, id=one.name) for one in FINE])
def test_a_check_without_values_reports_nothing_in_valid_templates(one: Case) -> None:
    error = Template(path=one.file, stylesheet=one.stylesheet, chat=one.chat).check().error
    assert error is None, error


@pytest.mark.parametrize(
    "markup",
    [
        "<p for='x in xs'>{{x.price.toFixed(2)}} {{loop.index}}</p>",
        "<p for='{a, b} in xs.filter(x => x.on)'>{{a}} {{b.c}}</p>",
        "<p for='[a, b] in Object.entries(xs)'>{{a}} {{b.c}}</p>",
        "<p>{{ xs.map(x => x.name.toUpperCase()).join(', ') }}</p>",
        "<p>{{ text.split('\\n').filter(line => line.trim()).slice(0, 3).join('\\n') }}</p>",
        "<p>{{ new Date(when).toISOString() }} {{ new Intl.NumberFormat(locale).format(n) }}</p>",
        "<p>{{ JSON.parse(text).a.b }} {{ JSON.stringify(o, null, 2) }} {{ new RegExp(pattern).test(text) }}</p>",
        "<p>{{ `${a}-${b}` }} {{ a + b * 2 }} {{ [...a] }} {{ {...o} }} {{ a ?? 'x' }} {{ a > b }} {{ !a }}</p>",
        "<p>{{ o?.a?.[0]?.b }} {{ 'a' in o }} {{ o instanceof Date }} {{ typeof o === 'string' ? o : o.join() }}</p>",
        "<poml><let name='first' value='xs[0].name'/><p if='first.length > 3'>{{first.trim()}}</p></poml>",
        "<img src='{{file}}'/>",
        "<document src='{{file}}'/>",
        "<img base64='{{data}}' alt='{{text}}'/>",
        "<table records='{{rows}}' columns='{{columns}}'/>",
        "<obj data='{{data}}'/>",
        "<conversation messages='{{history}}'/>",
        "<conversation messages='{{history.slice(-2)}}'/>",
        "<poml><runtime temperature='{{t}}' maxTokens='{{n}}'/><p>x</p></poml>",
        "<poml><output-schema if='a'>{}</output-schema><output-schema if='!a'>{}</output-schema><p>x</p></poml>",
        "<poml><output-schema parser='eval'>z.object({a: z.enum(kinds)})</output-schema><p>x</p></poml>",
        "<poml><output-schema parser='json'>{\"type\": {{t}} }</output-schema><p>x</p></poml>",
        "<tool-request id='{{id}}' name='{{name}}' parameters='{{given}}'/>",
    ],
)  # fmt: skip
def test_a_check_accepts_any_use_of_a_missing_value(markup: str) -> None:
    error = Template(markup).check().error
    assert error is None, error


@pytest.mark.parametrize(
    ("markup", "place", "message"),
    [
        ("<p>{{ JSON.prase(text) }}</p>", (1, 4), "JSON.prase is not a function"),
        ("<p>{{ text. }}</p>", (1, 4), "Unexpected token '}'"),
        ("<p>{{ xs.map( }}</p>", (1, 4), "Unexpected token '}'"),
        ("<p for='x of xs'>{{x}}</p>", (1, 8), "item in list syntax is expected in for attribute."),
        ("<p for='x in 5'>{{x}}</p>", (1, 8), "List is expected in for attribute."),
        ("<poml>\n  <p if='!x'><tsk>do {{y}}</tsk></p>\n</poml>", (2, 15), "Component tsk not found."),
        ("<p for='x in xs'><hnit>{{x.y}}</hnit></p>", (1, 19), "Component hnit not found."),
        ("<document src='missing.txt'/><p>{{x}}</p>", (1, 1), "ENOENT: no such file or directory"),
        ("<img src='{{file}}'/><document src='missing.txt'/>", (1, 22), "ENOENT: no such file or directory"),
        ('<poml><include src="missing.poml"/><p>{{x}}</p></poml>', (1, 20), "ENOENT: no such file or directory"),
        ("<p>{{x}}", (1, 1), "<p> has no end tag"),
    ],
)  # fmt: skip
def test_a_templates_own_problem_is_found(markup: str, place: tuple[int, int], message: str) -> None:
    error = Template(markup).check().error
    assert error is not None
    assert (error.line, error.column) == place
    assert error.message.startswith(message)


def test_all_problems_are_reported_at_once() -> None:
    error = Template("<poml><tsk>{{x}}</tsk><p>{{ x. }}</p><p>{{ y.z }}</p></poml>").check().error
    assert error is not None
    assert [problem.message[:20] for problem in error.problems] == ["Component tsk not fo", "Unexpected token '}'"]


def test_values_that_are_given_are_used() -> None:
    template = Template("<p>{{user.name.toUpperCase()}} of {{place}}</p>")
    assert template.check({"user": {"name": "Ada"}}).result()["messages"][0]["content"] == "ADA of place"
    error = template.check({"user": {}}).error
    assert error is not None
    assert error.message.startswith("Cannot read properties of undefined")


def test_a_check_accepts_native_messages() -> None:
    template = Template('<poml><conversation messages="{{h}}"/><human-msg>{{q}}</human-msg></poml>')
    record = template.check({"h": [ONE, TWO]}, history=Notes())
    assert [message["content"] for message in record.result()["messages"]] == ["one", "a longer two", "q"]


def test_renders_after_a_check_are_as_before() -> None:
    """In the same process of Node, whose POML a check hooks into."""
    template = Template("<p if='x'>{{x.y}}</p><p for='z in zs'>{{z}}</p>")
    given = {"x": {"y": 1}, "zs": [2, 3]}
    before = template.render(given).output
    assert template.check().error is None
    assert template.render(given).output == before
    error = template.render({"x": 1, "zs": 2}).error
    assert error is not None
    assert "List is expected in for attribute" in str(error)
