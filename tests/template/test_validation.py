"""Missing variables, and errors that name the cause with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.templates import text, write

from pomlflow.exceptions import MissingVariableError, RenderError, VariableError
from pomlflow.template import Template
from pomlflow.template.inference import infer


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
        ('<p for="x in want">{{x}}</p>', 1, 14),
        ('<p if="!!want">x</p>', 1, 10),
        ('<let name="a" value="want + 1"/><p>{{a}}</p>', 1, 22),
        ("<p>\U0001f600{{want}}</p>", 1, 7),
        ("<p>x</p>\r\n<p>{{ want }}</p>", 2, 7),
        ("<output-schema>z.object({a: z.literal(want)})</output-schema>", 1, 39),
        ('<img src="{{want}}" />', 1, 13),
    ],
)
def test_a_missing_variable_has_the_place_of_its_first_use(markup: str, line: int, column: int) -> None:
    error = missing(Template(markup), a={})
    assert (error.line, error.column, error.file) == (line, column, None)
    shown, caret = str(error).split("\n")[-2:]
    assert shown[caret.index("^") :].startswith("want")
    assert caret.strip() == "^" * len("want")


def test_a_missing_variable_of_an_include_has_its_place_there(tmp_path: Path) -> None:
    write(tmp_path / "part.poml", "<p>One</p>\n<p>{{want}}</p>")
    error = missing(Template(path=write(tmp_path / "a.poml", '<poml><include src="part.poml"/></poml>')))
    assert (error.file, error.line, error.column) == (str(tmp_path / "part.poml"), 2, 6)


@pytest.mark.parametrize(("given", "near"), [("qestion", True), ("Question", True), ("answer", False)])
def test_a_similar_name_is_suggested(given: str, near: bool) -> None:
    assert (
        f"The given '{given}' may be a misspelling of 'question'."
        in str(missing(Template("<p>{{question}}</p>"), **{given: 1}))
    ) is near


def test_a_history_is_not_among_the_given_variables() -> None:
    template = Template('<poml><conversation messages="{{history}}"/><p>{{question}} {{orders}}</p></poml>')
    assert "needs the variable question; given: orders." in str(missing(template, orders=1))


@pytest.mark.parametrize("name", [1, None, (1, 2), b"x"])
def test_a_name_that_is_no_string_is_an_extra_variable(name: Any) -> None:
    assert Template("<p>{{x}}</p>").render({name: 1, "x": 2}).result()["messages"][0]["content"] == "2"
    assert Template("<p>{{x}}</p>").render({name: 1}).error.variable == "x"


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
def test_a_schema_in_no_known_form_is_an_error_with_the_remedy(markup: str) -> None:
    template = Template(f"<p>Hi</p>{markup}")
    assert template.inference.variables == ()
    error = template.render({}).error
    assert isinstance(error, RenderError)
    assert "a schema is JSON" in str(error)
    assert error.line is not None


def test_another_error_in_a_schema_is_without_that_remedy() -> None:
    error = Template('<output-schema>{"a": {{a.b.c}} }</output-schema>').render({"a": {}}).error
    assert isinstance(error, RenderError)
    assert "a schema is JSON" not in str(error)


@pytest.mark.parametrize(
    ("markup", "given", "expected"),
    [
        ("<p if='mode > 1'>{{x}}</p><p if='2 > mode'>{{y}}</p>", {"mode": 2, "x": 1}, "1"),
        ("<p>{{ a || b }}</p>", {"a": 1}, "1"),
        ("<p>{{ ok ? a : b }}</p>", {"ok": False, "b": 2}, "2"),
        ("<p>{{ a?.b ?? c }}</p>", {"a": {"b": 3}}, "3"),
        ("<p>x</p><p for='x in xs'>{{x}} {{y}}</p>", {"xs": []}, "x"),
        ("<p>{{ xs.map(x => x + y).join() + 'x' }}</p>", {"xs": []}, "x"),
    ],
)  # fmt: skip
def test_variables_of_branches_not_taken_may_be_missing(markup: str, given: dict[str, Any], expected: str) -> None:
    template = Template(markup)
    assert text(template, **given) == expected
    assert set(template.inference.variables) - given.keys()


@pytest.mark.parametrize(
    ("markup", "fault", "remedy"),
    [
        (
            "<p>{{x}} {{ a & b }}</p>",
            "& in text is read",
            "an expression in text cannot hold & or <",
        ),
        ("<p>{{a<b}}</p>", "< in text is read", "an expression in text cannot hold & or <"),
        (
            "<p>AT&T {{x}}</p>",
            "& in text is read",
            "in text, write #amp; for & and #lt; for <",
        ),
        (
            "<p>{{x}} a < b</p>",
            "< in text is read",
            "in text, write #amp; for & and #lt; for <",
        ),
        ("<p title='5 < {{x}}'>a</p>", "the value of the attribute title holds <", "in an attribute, write #lt; for <"),
        ("<p if='x < 5'>a</p>", "the value of the attribute if holds <", "write a < b as b > a"),
        ("<p if='x &lt; 5'>a</p>", "&lt; is not decoded in an expression", "a < b as b > a"),
        ("<p if='x == &quot;a&quot;'>a</p>", "Unexpected", "&quot; is not decoded in an expression"),
        ("<p if='x == &#39;a&#39;'>a</p>", "Unexpected", "&#39; is not decoded in an expression"),
        ("<p if='x #amp;#amp; x'>a</p>", "Unexpected", "#amp; is not decoded in an expression"),
        ("<p>{{ x #amp;#amp; x }}</p>", "Unexpected", "name its value first"),
        ("<p if='x &amp;&amp; y'>a</p>", "Unexpected token '&'", "write && as it is"),
        (
            "<examples chat={{true}}>{{x}}</examples>",
            "the value of the attribute chat has no quotes",
            'chat="{{true}}"',
        ),
        ("<let name='x' value='primary coding task'/>", "Unexpected identifier", "value=\"'primary coding task'\""),
        ("<foreach item='x' in='xs'>{{x}}</foreach>{{y}}", "Component foreach not found", 'for="item in items"'),
        ("<p for='(k, v) in xs'>{{k}}</p>", "for= binds one name", "loop.index"),
        ("<p for='x in xs'><tsk>{{x}}</tsk></p>", "Component tsk not found", None),
        ("<p if='a'>{{ b. }}</p>", "Unexpected token '}'", None),
        ("<if test='x'>{{x}}</if>{{y}}", "Component if not found", 'if="condition"'),
        ("<user>{{x}}</user>{{y}}", "Component user not found", "<human-msg>"),
        ("<let name='x' value='You are a helper.'/>", "Unexpected identifier", "value=\"'You are a helper.'\""),
        ('<let name="x" value="Don\'t"/>', "Invalid or unexpected token", 'value="`Don\'t`"'),
        ("<let name='x' value='[1, 2'/>", "Unexpected token", None),
        ("<p for='x in {{xs}}'>{{x}}</p>", "Unexpected token '{'", "for= takes no braces"),
        ("<p for='x of xs'>{{x}}</p>", "item in list syntax is expected", "write x in xs"),
        ("<p for='const x of xs.all'>{{x}}</p>", "item in list syntax is expected", "write x in xs.all"),
        ("<p for='xs'>{{x}}</p>", "item in list syntax is expected", 'write for="item in items"'),
        ("<p>Hi {{x, {{y}} and</p>", "Unexpected token '{'", "close the first {{ with }}"),
        ("<p className='{{x {{y}}'>a</p>", "Unexpected token '{'", "close the first {{ with }}"),
        ("<p>{{ {{x}} }}</p>", "Unexpected token '{'", None),
        ("<p if='not x'>a</p>", "Unexpected identifier", "'not' is Python: write !"),
        ("<p>{{ x | default('a') }}</p>", "Unexpected token", "'default' is Jinja: write x ?? y"),
        ("<p for='x in xs'>{{x}}</p><document src='nowhere.txt'/>", "ENOENT", "a path is relative to"),
        ("<include src='{{x}}.poml'/>", "ENOENT", "the src of <include> is not evaluated: write <include"),
    ],
)
def test_a_fault_of_the_markup_comes_before_a_missing_variable_with_its_remedy(
    markup: str, fault: str, remedy: str | None
) -> None:
    error = Template(markup).render({}).error
    assert type(error) is RenderError
    assert error.message.startswith(fault)
    assert error.hint is None if remedy is None else remedy in str(error).split("\n")[-1]


@pytest.mark.parametrize(
    ("markup", "line", "column", "fault", "remedy"),
    [
        ("<p>score <threshold means {{x}}</p>", 1, 10, "< in text is read as", "#lt; for <"),
        ("<p>email <me@example.com></p>", 1, 10, "< in text is read as", "#lt; for <"),
        ("<p>Use <your name> here</p>", 1, 8, "< in text is read as", "#lt; for <"),
        ("<p>List<String> x</p>", 1, 8, "< in text is read as", "#lt; for <"),
        ("<poml>\n<p>a <- b</p>\n</poml>", 2, 6, "< in text is read as", "#lt; for <"),
        ("<poml>\n<p>{{x}}\n</poml>", 2, 1, "<p> has no end tag", "write </p>"),
        ("<poml><p>a</p>", 1, 1, "<poml> has no end tag", "write </poml>"),
        ("<p>a</p></poml>", 1, 9, "</poml> has no start tag", "put everything into one <poml>"),
        ("<poml><p>a</p></p></poml>", 1, 15, "</p> has no start tag", "remove it"),
        ("<p title=x>a</p>", 1, 4, "the value of the attribute title has no quotes", 'title="x"'),
        ("<p a='1'\nb=2>x</p>", 2, 1, "the value of the attribute b has no quotes", 'b="2"'),
        ('<p title="a>b</p>', 1, 4, "the value of the attribute title has no closing quote", "close the quote"),
        ("<p disabled>a</p>", 1, 4, "the attribute disabled has no value", 'disabled="true"'),
        ('<p title="{{ x["a"] }}">b</p>', 1, 16, "the value of the attribute title ends inside", "other quotes"),
        ("\ufeff<p>a & b</p>", 1, 6, "& in text is read as", "#amp; for &"),
        ('<poml><p title="a" <b>c</b></p></poml>', 1, 7, "the tag <p is not closed", "close it with >"),
        ("<p>a</p><!-- b", 1, 9, "the comment has no end", "-->"),
        ("<p>a <![CDATA[ b < c </p>", 1, 6, "the CDATA section has no end", "]]>"),
        ("<p for='(x, i) in [1]'>{{x}}</p>", 1, 9, "for= binds one name", "loop.index"),
        ("<p for='if in [1]' title='{{1}}'>{{1}}</p>", 1, 9, "for= binds one name", "item in items"),
        ('<?xml version="1.0"?><poml><p>a</p></poml>', 1, 1, "POML does not accept an XML declaration", "remove it"),
    ],
)
def test_broken_markup_is_reported_at_the_fault(markup: str, line: int, column: int, fault: str, remedy: str) -> None:
    """POML reports where its parser stops, often far after the fault."""
    error = Template(markup).render({}).error
    assert type(error) is RenderError
    assert (error.line, error.column) == (line, column)
    assert error.message.startswith(fault)
    assert remedy in str(error).split("\n")[-1]


@pytest.mark.parametrize(
    ("markup", "remedy"),
    [
        ("<p if='len([1]) > 3'>a</p>", "'len' is Python, and an expression is JavaScript: write xs.length"),
        ("<p>{{ None }}</p>", "write null"),
        ("<p for='i in range(3)'>a</p>", "write Array.from({length: n}, (_, i) => i)"),
        ("<let name='x' value='hello'/>{{x}}", "put it in quotes of its own: value=\"'hello'\""),
        ("<output-schema>string</output-schema>", "write a schema"),
    ],
)
def test_python_names_and_unquoted_text_have_their_own_remedy(markup: str, remedy: str) -> None:
    assert remedy in str(missing(Template(markup)))


def test_an_entity_in_an_expression_is_named_with_and_without_the_variable() -> None:
    template = Template("<p if='n &lt; 5'>a</p>")
    for error in (template.render({}).error, template.render({"n": 1}).error, template.check().error):
        assert isinstance(error, RenderError)
        assert error.message == "&lt; is not decoded in an expression"
        assert "a < b as b > a" in str(error).split("\n")[-1]


def test_a_missing_variable_is_listed_after_the_fault() -> None:
    error = Template("<poml><tsk/><p>{{x}}</p></poml>").render({}).error
    assert isinstance(error, RenderError)
    assert [problem.message.split(".")[0] for problem in error.problems] == [
        "Component tsk not found",
        "x is not defined",
    ]


@pytest.mark.parametrize(
    "markup",
    [
        "<document src='{{x}}'/>",
        "<p for='y in x'>{{y}}</p>",
        "<let name='y' value='x'/>{{y.z}}",
        "<table records='{{x}}'/>",
    ],
)
def test_what_follows_from_a_missing_variable_is_not_a_fault_of_its_own(markup: str) -> None:
    assert missing(Template(markup)).variable == "x"


@pytest.mark.parametrize(
    ("markup", "given"),
    [
        ("<p>score <threshold means " + "a word " * 600 + "</p>", {}),
        ("<p>" + "&\n" * 5000 + "</p>", {}),
        ("<p>" + "".join(f"{{{{a{n}}}}}" for n in range(100)) + "</p>", {}),
        ("<p>{{x}}</p>", {f"name{n}": n for n in range(3000)}),
        ("<p>{{ (() => { throw new Error('no\\n'.repeat(5000)) })() }}</p>", {}),
        ("<p>" + "x" * 50_000 + "{{ y.z }}" + "x" * 50_000 + "</p>", {"y": None}),
    ],
)
def test_an_error_has_25_lines_and_2000_characters_at_most(markup: str, given: dict[str, Any]) -> None:
    error = str(Template(markup).render(given).error)
    assert len(error) <= 2000
    assert error.count("\n") < 25


def test_a_long_error_ends_with_how_many_more_and_the_remedy() -> None:
    last, remedy = str(Template("<p>" + "&\n" * 500 + "</p>").render({}).error).split("\n")[-2:]
    assert last.startswith("and 4")
    assert last.endswith(" more problems")
    assert remedy.startswith("in text, write #amp; for &")


def test_the_caret_stays_below_its_character_in_a_long_line() -> None:
    error = str(Template("<p>" + "x" * 5000 + "{{ y.z }}" + "x" * 5000 + "</p>").render({"y": None}).error)
    _, line, caret = error.split("\n")
    assert line[caret.index("^") :].startswith("{{ y.z }}")
    assert caret.strip() == "^" * len("{{ y.z }}")


def test_each_use_of_a_variable_has_its_place() -> None:
    markup = (
        "\ufeff<poml>\r\n<let name='n' value='a'/>\r\n<p for='x in a' if='b' title='t {{a}}'>{{ a.b }} {{c}}</p>\r\n"
        "<output-schema>z.literal(c)</output-schema></poml>"
    )
    found = [
        (use.name, *use.expression.source.locate(use.offset)[:2], use.expression.kind, use.alone)
        for use in infer(markup).uses
    ]
    assert found == [
        ("a", 2, 22, "value", True),
        ("a", 3, 14, "for", True),
        ("b", 3, 21, "if", True),
        ("a", 3, 35, "attribute", True),
        ("a", 3, 43, "text", False),
        ("c", 3, 52, "text", True),
        ("c", 4, 26, "schema", False),
    ]


def test_a_use_is_guarded_by_typeof() -> None:
    uses = infer("<p if=\"typeof a === 'string'\">{{a}}</p>{{a}}").uses
    assert [use.guarded for use in uses] == [True, True, False]


@pytest.mark.parametrize(
    ("value", "kind", "pairs"),
    [({"a": 1}, "of the type dict", True), ("ab", "of the type str", False), (None, "None", False)],
)
def test_a_loop_over_no_list_names_the_variable_and_its_type(value: Any, kind: str, pairs: bool) -> None:
    error = Template("<p for='x in xs'>{{x.a}} {{loop.index}}</p>").render({"xs": value}).error
    assert isinstance(error, RenderError)
    assert [problem.message for problem in error.problems] == [f"List is expected in for attribute: xs is {kind}"]
    assert str(error.hint).startswith("pass a list as xs")
    assert ('for="[key, value] in Object.entries(xs)"' in str(error)) is pairs


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('\n{\n  "title": "ö 🙂\\n",\n}\n', ", in line 5"),
        ('{"title": "a"', ", in line 2"),
        ('{"title": "a",\n}{{x}}', ""),
        ('<!-- a\n-->{"title": "a",\n}', ", in line 4"),
        ('{"title": "a",<!-- a\n-->\n}', ""),
    ],
)
def test_a_fault_in_the_json_of_a_schema_has_its_line_in_the_file(body: str, line: str) -> None:
    error = Template(f"<poml>\n<output-schema>{body}</output-schema>a</poml>").render({"x": "1"}).error
    assert isinstance(error, RenderError)
    assert error.message.endswith(f"in JSON{line}")


def test_a_loop_over_an_expression_that_is_no_list_is_one_problem() -> None:
    error = Template("<p for='[k, v] in xs.all'>{{k}} {{v}}</p>").render({"xs": {"all": 1}}).error
    assert isinstance(error, RenderError)
    assert [problem.message for problem in error.problems] == ["List is expected in for attribute."]


BRANCH = "<p if='branch'><let name='x' value='1'/></p>"  # without the branch, x is not set


@pytest.mark.parametrize(
    ("markup", "messages"),
    [
        (f"<poml>{BRANCH}{{{{x}}}}<p>{{{{a.b.c}}}}</p></poml>", ["x is not defined", "Cannot read"]),
        (f"<poml>{BRANCH}{{{{x}}}}<p>{{{{missing}}}}</p></poml>", ["x is not defined", "missing is not defined"]),
        (f"<poml><let name='y' value='a.b.c'/>{BRANCH}{{{{y}}}}{{{{x}}}}</poml>", ["Cannot read", "x is not defined"]),
        ("<poml><let name='x' value='a.b.c'/><let name='y' value='x'/>{{x}}{{y}}</poml>", ["Cannot read"]),
        ("<poml><let src='no.json' name='x'/>{{x}}{{a.b.c}}</poml>", ["ENOENT", "Cannot read"]),
        ("<poml><p for='x of xs'>{{x}}{{loop.index}}</p></poml>", ["item in list syntax is expected"]),
        ("<poml><p for='{x, y} in a.b.c'>{{x}}{{y}}{{loop.index}}</p></poml>", ["Cannot read", "List is expected"]),
    ],
)
def test_a_name_that_is_not_set_is_left_out_only_if_the_cause_is_reported(markup: str, messages: list[str]) -> None:
    error = Template(markup).render({"branch": False, "a": {}}).error
    assert isinstance(error, RenderError)
    assert [problem.message[: len(start)] for problem, start in zip(error.problems, messages, strict=True)] == messages


@pytest.mark.parametrize("given", [{}, {"history": []}])
def test_a_history_without_messages_that_is_indexed_has_the_remedy(given: dict[str, Any]) -> None:
    markup = '<poml><p>{{{{ {} }}}}</p><conversation messages="{{{{history}}}}"/></poml>'
    template = Template(markup.format("history[0].content"))
    for error in (template.render(given).error, template.check(given).error):
        assert isinstance(error, RenderError)
        assert (error.line, error.column) == (1, 10)
        assert error.hint == (
            'history has no messages in this render: write history[0]?.content, or if="history.length"'
        )
    assert Template(markup.format("history[0]?.content")).render(given).error is None
    assert template.render({"history": [{"role": "user", "content": "Hi"}]}).error is None


def table_value(kind: str) -> Any:
    """Return a value of numpy or pandas, which a test is skipped without."""
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    table = pd.DataFrame({"a": [1, 2]})
    return {"array": np.array([1, 2]), "series": table["a"], "matrix": np.array([[1]]), "frame": table}[kind]


@pytest.mark.parametrize("value", [[1, 2], ["Emma", "Dune"], (None,), "array", "series"])
def test_records_without_rows_are_named_with_the_remedy(value: Any) -> None:
    value = table_value(value) if isinstance(value, str) else value
    error = Template("<poml>\n<table records='{{sales}}'/></poml>").render({"sales": value}).error
    assert isinstance(error, VariableError)
    assert error.variable == "sales"
    assert str(error).startswith(
        f"<inline>:2:19: sales is of the type {type(value).__name__} and has no rows; records="
    )
    assert "a list of dicts or of lists, or a DataFrame; for a Series, pass series.reset_index()" in str(error)


@pytest.mark.parametrize("value", [[{"a": 1}], [[1, 2]], (("a", 1),), "matrix", "frame", '[{"a": 1}]'])
def test_records_with_rows_are_a_table(value: Any) -> None:
    value = table_value(value) if value in ("matrix", "frame") else value
    assert text(Template("<table records='{{sales}}'/>"), sales=value).startswith("| ")


@pytest.mark.parametrize(
    "markup",
    [
        "<poml><table records='{{rows}}' if='Array.isArray(rows[0])'/><p>a, b</p></poml>",
        "<poml><cp if='Array.isArray(rows[0])'><table records='{{rows}}'/></cp><p>a, b</p></poml>",
        "<poml><table for='row in rows.slice(2)' records='{{rows}}'/><p>a, b</p></poml>",
    ],
)
def test_records_of_a_table_that_is_not_rendered_are_not_checked(markup: str) -> None:
    assert text(Template(markup), rows=["a", "b"]) == "a, b"


@pytest.mark.parametrize("value", ["a,b", {"a": 1}, [], 5, None])
def test_records_that_poml_refuses_have_the_remedy(value: Any) -> None:
    error = Template("<table records='{{sales}}'/>").render({"sales": value}).error
    assert "records= takes rows: a list of dicts or of lists, or a DataFrame" in str(error)


@pytest.mark.parametrize(
    "markup",
    [
        "<p>a <img base64='{{data}}' syntax='multimedia'/></p>",
        "<p for='x in [data]'><img base64='{{x}}' type='image/png' syntax='multimedia'/></p>",
    ],
)
def test_bytes_as_base64_have_the_remedy(markup: str) -> None:
    error = Template(markup).render({"data": b"\x89PNG"}).error
    assert "of bytes, write base64=\"{{x.toString('base64')}}\"" in str(error)


def test_each_error_of_a_line_has_its_own_remedy() -> None:
    error = Template("<p>{{ len(x) }} {{ x.upper() }} {{ x.get('a') }}</p>").render({"x": 5}).error
    assert isinstance(error, RenderError)
    assert [one.column for one in error.problems] == [4, 17, 33]
    remedies = [(one.remedy or "").partition(": write ")[2] for one in error.problems]
    assert remedies == ["xs.length", "x.toUpperCase()", "x.key ?? y"]
    assert str(error).split("\n")[-1].startswith("line 1, column 4: ")


def test_errors_are_in_the_order_of_lines_with_missing_variables_last() -> None:
    markup = "<poml>\n<p>{{y}}</p>\n<table records='{{5}}'/>\n<p>{{ x.upper() }}</p>\n<p>{{z}}</p>\n</poml>"
    error = Template(markup).render({"x": 5}).error
    assert isinstance(error, RenderError)
    assert [one.line for one in error.problems] == [3, 4, 2, 5]


@pytest.mark.parametrize(
    ("markup", "remedy"),
    [
        ("<p>{{ 'a' in x }}</p>", "write x.includes(y)"),
        ("<include src='.'/>", "name a file, not a folder"),
        ("<output-schema>z.object({a: 'string'})</output-schema><p>a</p>", "such as z.string()"),
    ],
)
def test_an_operator_a_folder_and_a_schemas_text_have_their_remedies(markup: str, remedy: str) -> None:
    assert remedy in str(Template(markup).render({"x": "abc"}).error)
