"""The warnings of ``pomlflow check``: wrong and right markup for each rule, the page that lists them, and settings."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import poml
import pytest
from click.testing import CliRunner
from tests.corpus.cases import Case, cases
from tests.templates import write

from pomlflow.cli import cli
from pomlflow.exceptions import ConfigurationError
from pomlflow.template import Template
from pomlflow.template.attribute_rules import attributes
from pomlflow.template.lint import RULES, LintSettings

PAGE = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
# Warnings that cases of the corpus cause on purpose.
ON_PURPOSE = {
    "audio-vanishes": {"media-as-text", "missing-file"},
    "element-paragraphs-and-headers": {"unknown-attribute"},
    "expression-in-attributes": {"media-as-text", "unknown-attribute"},
    "expression-javascript": {"jinja-syntax"},
    "expression-over-lines": {"unclosed-braces"},
    "image-alt": {"media-as-text", "missing-file"},
    "include-for-and-if": {"missing-file"},
    "include-nested": {"media-as-text", "missing-file"},
    "let-forms": {"let-value"},
    "message-free-text": {"dropped-text"},
    "message-speaker-attribute": {"dropped-text"},
    "meta-versions": {"unknown-attribute"},
    "runtime": {"unknown-setting"},
    "schema-unchecked": {"invalid-schema", "unknown-attribute"},
    "table-sources": {"missing-file"},
    "text-cdata-and-entities": {"dropped-text"},
}


def found(markup: str, **given: Any) -> list[tuple[str, int]]:
    template = Template(markup)
    error = template.check(given).error
    findings = template.lint(LintSettings(), errors=getattr(error, "problems", ()))
    return [(one.rule, one.column) for one in findings]


WRONG = [
    ("<p>{user.name} {price:.2f} {x!r} {x[0]}</p>", [("single-braces", c) for c in (4, 16, 28, 34)]),
    ("<p>{{a}} and {b}</p>", [("single-braces", 14)]),
    ("<output-format>{a} {{a}}</output-format>", [("single-braces", 16)]),
    ("<p>{{ name</p>", [("unclosed-braces", 4)]),
    ("<p>a {{}} b</p>", [("unclosed-braces", 6)]),
    ("<p>a {{ }} b</p>", [("unclosed-braces", 6)]),
    ("<p>{{ a\n+ b }}</p>", [("unclosed-braces", 4)]),
    ("<p>{{ a <b>c</b> }}</p>", [("unclosed-braces", 4)]),
    ("<p>{% for x in xs %}a{% endfor %}{# note #}</p>", [("jinja-syntax", c) for c in (4, 22, 34)]),
    ("<p>{{ x | upper | trim }}</p>", [("jinja-syntax", 11), ("jinja-syntax", 19)]),
    ("<p>{{{x}}}</p>", [("jinja-syntax", 6)]),
    ("<p>{{ True }} {{ None }} {{ x.upper() }}</p>", [("python-expression", c) for c in (7, 18, 31)]),
    ("<p for='i in range(3)'>a</p>", [("python-expression", 14)]),
    ("<p>{{ xs[-1] }} {{ f(xs[ - 2 ]) }} {{ x // 2 }}</p>", [("python-expression", c) for c in (9, 24, 41)]),
    ("<p for='k, v in Object.entries(d)'>{{k}} {{v}}</p>", [("python-expression", 9)]),
    ("<poml>a<runtime n='{{[1, b]}}' seed='{{ ({a: 1}) }}'/></poml>", [("unknown-setting", c) for c in (22, 41)]),
    ("<p if='isinstance(x, str)'>a</p>", [("python-expression", 8)]),
    ("<img scr='a.png'/>", [("unknown-attribute", 6)]),
    ("<p>a&nbsp;b &#65;<![CDATA[c]]></p>", [("dropped-text", c) for c in (5, 13, 18)]),
    ("<poml>a <ai-msg>Q</ai-msg> b <let name='x' value='1'/>{{x}}</poml>", [("dropped-text", c) for c in (7, 28, 55)]),
    ("<p speaker='ai'>A</p> b", [("dropped-text", 23)]),
    ("<p class='a' speeker='ai'>a</p>", [("unknown-attribute", 4), ("unknown-attribute", 14)]),
    ("<let nam='a' name='b' value='1'/>{{b}}", [("unknown-attribute", 6)]),
    ("<poml>a<runtime maxToken='1' creativity='2'/></poml>", [("unknown-setting", 17), ("unknown-setting", 30)]),
    ('<poml>a<output-schema>{"type": "nope"}</output-schema></poml>', [("invalid-schema", 32)]),
    ('<poml>a<output-schema>{"type": "array", "items": "a"}</output-schema></poml>', [("invalid-schema", 50)]),
    ("<poml>a<output-schema/></poml>", [("invalid-schema", 8)]),
    ("<poml>a<output-schema>null</output-schema></poml>", [("invalid-schema", 23)]),
    ('<poml>a<tool name="t" description="d">{"x": 1}</tool></poml>', [("invalid-schema", 39)]),
    ('<p>a <audio base64="AAAA" type="audio/mpeg"/></p>', [("media-as-text", 6)]),
    ('<p>a <img base64="{{x}}" syntax="xml"/></p>', [("media-as-text", 6)]),
    ('<p>a <img src="no.png" alt="b"/></p>', [("media-as-text", 6), ("missing-file", 16)]),
    ("<poml>a<include if='false' src='no.poml'/></poml>", [("missing-file", 33)]),
    (f"<p>a <img src='{'A' * 300}' alt='b'/></p>", [("media-as-text", 6), ("missing-file", 16)]),
    ("<poml version='1'>a</poml>", [("unknown-attribute", 7)]),
    ("<let name='a' value='one, two'/>{{a}}", [("let-value", 22)]),
    ("<let name='a'>{b: 1}</let>{{a}}", [("let-value", 15)]),
    ("<let name='a'>x {{b}}</let>{{a}}", [("let-value", 17)]),
    ("<let name='a' value='1'/>b", [("unused-variable", 12)]),
    ("<let name='a' value='1'/><let name='a' value='2'/>{{a}}", [("shadowed-variable", 37)]),
]  # fmt: skip

# Variants of each mistake, with the rule and the start of the remedy.
VARIANTS = [
    ("<p>{user.name.title()}</p>", "single-braces", "write {{user.name.title()}}, in JavaScript: x.charAt"),
    ("<p>{xs[0]['a']}</p>", "single-braces", "write {{xs[0]['a']}}"),
    ("<p>{len(xs)} of them</p>", "single-braces", "write {{len(xs)}}, in JavaScript: xs.length"),
    ("<p>{{a}}{b}</p>", "single-braces", "write {{b}}"),
    ("<cp caption='About {topic}'>a</cp>", "single-braces", "write {{topic}}"),
    ("<p for='x in xs'>{{loop.index0}} {{x}}</p>", "jinja-syntax", "write loop.index"),
    ("<p>{{ price | filesizeformat }}</p>", "jinja-syntax", "write it with"),
    ("<p>{{ x ~ 'a' }}</p>", "jinja-syntax", "write +"),
    ("<p if='x is not defined'>a</p>", "jinja-syntax", "write typeof x !== 'undefined'"),
    ("<p>{{@index}}</p>", "jinja-syntax", "write a for= or an if= of an element, or loop.index"),
    ("<cp caption='Q&amp;A'>a</cp>", "dropped-text", "write #amp;"),
    ("<list><item fro='x in xs'>a</item></list>", "unknown-attribute", "write for"),
    ("<p forr='x in xs'>a</p>", "unknown-attribute", "write for"),
    ("<p v-for='x in xs'>a</p>", "unknown-attribute", "write for"),
    ("<p iff='x'>a</p>", "unknown-attribute", "write if"),
    ("<document src='a.csv' format='b'/>", "unknown-attribute", "remove it"),
    ("<poml><runtime max-token-count='1'/>a</poml>", "unknown-setting", "write maxTokens"),
    (
        '<poml>a<output-schema>{"type": "object", "propertes": {}}</output-schema></poml>',
        "invalid-schema",
        "write prop",
    ),
    ("<poml><let name='a' value='2024-01-05'/>{{a}}</poml>", "let-value", "put it in quotes of its own"),
    ("<poml><let name='a' value='1'/>{{b.a}} {{'a'}} {{ {a: 1}.b }}</poml>", "unused-variable", "remove the <let>"),
    ("<poml><meta min-version='9.9'/>a</poml>", "unknown-attribute", "write <meta minVersion"),
    ("<poml minVersion='9.9'>a</poml>", "unknown-attribute", "write <meta minVersion"),
]

# Python in an expression, and the start of the JavaScript to write instead.
PYTHON = [
    ("x.get('b')", "x.key ?? y"), ("'%s' % x", "`…${x}…`"), ("'{}'.format(x)", "`…${x}…`"), ("f'{x}'", "`…${x}…`"),
    ("lambda x: x", "x => …"), ("[x.a for x in xs]", "xs.map(x => …)"), ("x if c else y", "condition ? a : b"),
    ("'a' in ['a']", "xs.includes(x)"), ("x in (1, 2)", "xs.includes(x)"), ("x not in xs", "!xs.includes(x)"),
    ("x is None", "==="), ("x is not None", "!=="), ("xs[1:3]", "xs.slice"),
    ("xs[::-1]", "xs.slice"), ("json.dumps(x)", "JSON.stringify(x)"), ("datetime.now()", "new Date()"),
    ("x.split()", "x.trim().split("), ("x.capitalize()", "x.charAt(0)"), ("'-' * 20", "x.repeat(n)"),
    ("20 * '-'", "x.repeat(n)"), ("xs == []", "xs.length == 0"), ("xs != []", "xs.length != 0"),
    ("x === {}", "Object.keys(x).length == 0"), ("x !== {}", "Object.keys(x).length != 0"),
    ("9 > x > 1", "a > b && b > c"),
    ("price:.2f", "x.toFixed(2)"), ("price:,.2f", "x.toFixed(2)"), ("name!r", "x.toFixed(2)"),
    ("d.keys()", "Object.keys(x)"), ("d.values()", "Object.values(x)"), ("math.floor(x)", "Math"),
    ("', '.join(xs)", "xs.join(', ')"), ("getattr(x, 'y')", "x.y ?? z"), ("x.zfill(3)", "x.padStart(n, '0')"),
]  # fmt: skip

# JavaScript that resembles it.
JAVASCRIPT = [
    "new Intl.NumberFormat('en').format(n)", "f.format(n)", "m.get('a')", "[...xs.keys()]", "Array.from(xs.values())",
    "new Map(xs).get('a')", "Date.now()", "'a' in x", "a % b", "a * b", "a > b && c > d", "(a > b) == c", "x?.y ?? z",
    "xs[a ? 1 : 2]", "'a:f'", "x ? 'a:f' : 'b'", "{a: 1, b: 2}", "a ** b", "~a", "!a", "x.split(' ')", "'%' + x",
    "loop.index", "x.count + x.index", "xs.find(x => x.a === 3)", "n % 2 === 0", "xs.at(-1)", "xs.length > 0",
]  # fmt: skip

RIGHT = [
    "<poml>a <b>b</b><human-msg>Q</human-msg>\n<!-- c --><ai-msg>a <p speaker='ai'>b</p> c</ai-msg></poml>",
    '<p>{"a": 1} ${x} \\frac{a}{b} {} {0} { x } /users/{id} {{x}}</p>',
    "<code>f'{name}' {% if x %} {{ '{' }}</code>",
    "<output-format>Write {title} and {summary}.</output-format>",
    "<p>{{ a || b }} {{ a | b }} {{ x.length }} {{ {a: 1}.a }} {{ x ? 'a' : 'b' }}</p>",
    "<p>{{ /if/.test(x) }} {{ 1 / a }} </p><let name='größe' value='1'/>{{größe}}",
    "<p>{{ 'len(x) and None' }} {{ Math.max(1, 2) }} {{ x.items }} {{ and }}</p>",
    "<let name='max' value='(a) => a'/><p>{{ max(1) }}</p>",
    "<p>Tom #amp; Ada <!-- &amp; --></p>",
    "<p className='a' white-space='pre' for='x in [1]' if='x' speaker='ai'>a</p>",
    "<poml>a<runtime max-tokens='3' topK='2' stopSequences='[1]' reasoningEffort='low'/></poml>",
    '<poml>a<output-schema>{"type": "object", "properties": {}, "required": []}</output-schema></poml>',
    "<poml>a<output-schema>z.object({a: z.string()})</output-schema></poml>",
    '<poml>a<output-schema>{"$ref": {{ref}} }</output-schema></poml>',
    '<img base64="{{x}}" alt="b"/>',
    '<p>a <img base64="{{x}}"/><audio base64="{{x}}" syntax="multimedia"/></p>',
    '<poml><stylesheet>{"img": {"syntax": "multimedia"}}</stylesheet><img base64="{{x}}" alt="b"/></poml>',
    "<poml><meta minVersion='0.0.7' maxVersion='1.0'/>a</poml>",
    "<let name='a' value='b.c'/><let name='d'>[1, 2]</let><let name='e'>text</let>{{a}}{{d}}{{e}}",
    "<let name='a' value='typeof a === \"undefined\" ? 1 : a'/>{{a}}",
    "<let name='a' value='1'/><let name='a' value='a + 1'/>{{a}}",
    "<poml><p for='x in xs'>{{x}}</p><p for='x in ys'>{{x}}</p></poml>",
    "<p for='{a, b} in xs'>{{a}} {{loop.index}}</p>",
    "<p>{{ s.replace(/\"*/g, '') }} {{ s.split(/\\s*\"/) }} {{ s.match(/a[-1]/) }} {{ s.match(/len\\(x/) }}</p>",
    "<p for='[a, b] in xs'>{{a}} {{ xs[n - 1] }} {{ [-1] }} {{ 'https://a.b' + '[-1]' }} {{ x /* // 2 */ }}</p>",
    "<p>{{ x // the total of all }}</p>",
    '<p>x^{n} {"a": {"b": 1}} {"a": {"b": c}}</p>',
    """<tool-request id="1" name="a" parameters='{"a": {"b": "{c}"}}'/>""",
    "<poml><example><input captionEnding='none'>a</input></example></poml>",
    '<poml>a<output-schema>{"properties": {"propertes": {}, "a": {"enum": ["require"]}}}</output-schema></poml>',
    "<poml><let name='a' value='1'/><let name='b' value='a + 1'/><p for='x in xs' if='b'>{{x}}</p></poml>",
    "<poml>a<runtime temperature='{{t}}' top-p='.5' maxTokens='1e3'/></poml>",
    """<poml>a<runtime stop='["a"]' seed='{{ [1, 2][0] }}' metadata='{{ JSON.stringify({a: 1}) }}'/></poml>""",
]


@pytest.mark.parametrize(("markup", "expected"), WRONG)
def test_each_rule_reports_its_column(markup: str, expected: list[tuple[str, int]]) -> None:
    assert found(markup) == expected


@pytest.mark.parametrize(("markup", "rule", "remedy"), VARIANTS)
def test_variants_of_each_mistake_are_reported_with_a_remedy(markup: str, rule: str, remedy: str) -> None:
    assert any(one.rule == rule and one.remedy.startswith(remedy) for one in Template(markup).lint(LintSettings()))


def reported(code: str) -> list[str]:
    lets = "<let name='f' value='1'/><let name='m' value='1'/>"
    findings = Template(f"<poml>{lets}<p>{{{{ {code} }}}}</p></poml>").lint(
        LintSettings(ignore=frozenset({"unused-variable"}))
    )
    return [one.remedy for one in findings]


@pytest.mark.parametrize(("code", "instead"), PYTHON)
def test_python_in_an_expression_is_reported_with_the_javascript(code: str, instead: str) -> None:
    assert reported(code)[0].startswith(f"write {instead}")


@pytest.mark.parametrize("code", JAVASCRIPT)
def test_javascript_that_resembles_python_is_not_reported(code: str) -> None:
    assert reported(code) == []


@pytest.mark.parametrize("markup", RIGHT)
def test_valid_markup_has_no_warnings(markup: str) -> None:
    assert found(markup) == []


@pytest.mark.parametrize(
    ("markup", "remedy"),
    [
        ("<p>{{ a.b[-1] }}</p>", "write xs.at(-1)"),
        ("<p>{{ total // 2 }}</p>", "write Math.floor(a / b)"),
        ("<p for='k, v in d.items()'>{{k}}{{v}}</p>", "write [k, v] in …"),
        ("<p>{{ d.items() }}</p>", 'write Object.entries(x), in a loop for="[k, v] in Object.entries(x)"'),
        ("""<poml>a<runtime stop="{{['a']}}"/></poml>""", """write stop="{{ JSON.stringify(['a']) }}\""""),
        (
            """<poml>a<runtime response-format="{{ {type: 'json_object'} }}"/></poml>""",
            """write response-format="{{ JSON.stringify({type: 'json_object'}) }}\"""",
        ),
        ("<poml>a<runtime stop='{{ [x] }}'/></poml>", "write stop='{{ JSON.stringify([x]) }}'"),
    ],
)
def test_the_remedy_of_valid_javascript_with_another_meaning(markup: str, remedy: str) -> None:
    assert remedy in [one.remedy for one in Template(markup).lint(LintSettings())]


def sections() -> list[Any]:
    parts = re.split(r"^### (.+)\n", PAGE, flags=re.MULTILINE)[1:]
    return [
        pytest.param(name, re.findall(r"^```xml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE), id=name)
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]


@pytest.mark.parametrize(("rule", "examples"), sections())
def test_each_rule_of_the_page_reports_its_example_and_not_the_remedy(rule: str, examples: list[str]) -> None:
    wrong, right = examples
    assert Template(wrong).check().error is None
    assert {name for name, _ in found(wrong)} == {rule}
    assert Template(right).check().error is None
    assert found(right) == []


def test_the_page_lists_every_rule_in_order() -> None:
    assert [section.values[0] for section in sections()] == list(RULES)


def test_the_page_shows_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    (markup,) = re.findall(r'^```xml title="greet.poml"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
    (output,) = re.findall(r'^```text title="Output"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
    write(tmp_path / "greet.poml", markup)
    assert CliRunner().invoke(cli, ["check", "greet.poml"]).output == output


@pytest.mark.parametrize("one", [pytest.param(one, id=one.name) for one in cases() if not one.fails])
def test_the_corpus_has_no_false_alarm(one: Case) -> None:
    """Every case renders; what is reported is what the case is about."""
    template = Template(path=one.file, stylesheet=one.stylesheet, chat=one.chat)
    assert {finding.rule for finding in template.lint(LintSettings())} == ON_PURPOSE.get(one.name, set())


def test_an_included_file_is_reported_there(tmp_path: Path) -> None:
    part = write(tmp_path / "part.poml", "<p>Tom\n&amp; Ada {{x}}</p>")
    path = write(tmp_path / "a.poml", '<poml><let name="x" value="1"/>\n<include src="part.poml"/></poml>')
    assert [str(one) for one in Template(path=path).lint()] == [
        f"{part}:2:1: POML (0.0.8) drops &amp; from text: write #amp; [dropped-text]"
    ]


def test_what_the_render_reports_is_not_repeated() -> None:
    template = Template("<p if='x and y'>a</p>\n<p>{b}</p>")
    error = template.check().error
    assert error is not None
    assert [one.rule for one in template.lint(errors=error.problems)] == ["single-braces"]


def test_a_comment_ignores_rules_in_its_line_and_the_next() -> None:
    assert found("<poml><!-- pomlflow: ignore single-braces -->\n<p>{a} &amp;</p>\n<p>{b}</p></poml>") == [
        ("dropped-text", 8),
        ("single-braces", 4),
    ]
    assert found("<poml><!-- pomlflow: ignore --><p>{a} &amp;</p></poml>") == []


def test_several_comments_ignore_the_rules_of_all_of_them() -> None:
    one, other = "<!-- pomlflow: ignore single-braces -->", "<!-- pomlflow: ignore dropped-text -->"
    assert found(f"<poml>{one}{other}<p>{{a}} &amp;</p></poml>") == []
    assert found(f"<poml>{one}\n{other}<p>{{a}} &amp;</p></poml>") == []
    assert found(f"<poml><!-- pomlflow: ignore -->{other}<p>{{a}} &amp;</p></poml>") == []


# --- settings ---

MARKUP = "<p>{a} &amp;</p>"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write(tmp_path / "a.poml", MARKUP)
    return tmp_path


def check(*options: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(cli, ["check", "a.poml", *options])
    return done.exit_code, re.findall(r"\[([\w-]+)\]$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (0, ["single-braces", "dropped-text"])),
        (["--strict"], (1, ["single-braces", "dropped-text"])),
        (["--select", "dropped-text"], (0, ["dropped-text"])),
        (["--ignore", "dropped-text,single-braces", "--strict"], (0, [])),
        (["--ignore", "dropped-text", "--ignore", "single-braces"], (0, [])),
    ],
)
@pytest.mark.usefixtures("project")
def test_options_choose_rules_and_whether_they_fail(options: list[str], expected: tuple[int, list[str]]) -> None:
    assert check(*options) == expected


def test_pyproject_chooses_rules_and_whether_they_fail(project: Path) -> None:
    (project / "p").mkdir()
    write(project / "pyproject.toml", '[tool.pomlflow]\nselect = ["dropped-text"]\nstrict = true\n')
    (project / "a.poml").rename(project / "p" / "b.poml")
    write(project / "a.poml", MARKUP)
    assert check() == (1, ["dropped-text"])
    assert [one.rule for one in Template(path="p/b.poml").lint()] == ["dropped-text"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ('select = ["nope"]', "select under [tool.pomlflow] has no rule 'nope'"),
        ('select = [["x"]]', "select under [tool.pomlflow] has no rule ['x']"),
        ('ignore = "single-braces"', "ignore under [tool.pomlflow] must be a list of rules"),
        ("strict = 1", "strict under [tool.pomlflow] must be true or false"),
    ],
)
def test_wrong_settings_are_an_error_that_names_the_file(project: Path, settings: str, why: str) -> None:
    file = write(project / "pyproject.toml", f"[tool.pomlflow]\n{settings}\n")
    with pytest.raises(ConfigurationError, match=re.escape(f"{file}: {why}")):
        Template(path="a.poml").lint()
    assert CliRunner().invoke(cli, ["check", "a.poml"]).exit_code == 2


@pytest.mark.usefixtures("project")
def test_an_unknown_rule_is_wrong_usage() -> None:
    done = CliRunner().invoke(cli, ["check", "a.poml", "--select", "nope"])
    assert (done.exit_code, "no rule nope; the rules are single-braces" in done.stderr) == (2, True)


@pytest.mark.usefixtures("project")
def test_warnings_are_annotations_in_github_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    shown = CliRunner().invoke(cli, ["check", "a.poml", "--select", "single-braces"]).stdout
    assert shown.startswith("::warning file=a.poml,line=1,col=4::{a} is sent as it is")


@pytest.mark.parametrize("markup", ["<p>" + "&amp;\n" * 500 + "</p>", "<p>" + "&\n" * 500 + "</p>"])
def test_the_output_of_a_check_is_bounded(project: Path, markup: str) -> None:
    write(project / "a.poml", markup)
    shown = CliRunner().invoke(cli, ["check", "a.poml"]).stdout
    assert len(shown) <= 2_000
    assert shown.count("\n") <= 25
    assert re.search(r"^and \d+ more problems$", shown, re.MULTILINE)


def test_the_attributes_are_those_of_pomls_own_python_api() -> None:
    """`poml.Prompt` has a method for each documented element, made from the same documentation."""
    found = attributes()
    methods = {
        name.replace("_", ""): set(inspect.signature(method).parameters) - {"self", "kwargs", "content"}
        for name, method in inspect.getmembers(poml.Prompt, inspect.isfunction)
        if name not in {"dump_xml", "render", "tag"} and not name.startswith("_")
    }
    assert len(methods) >= 40
    for element, parameters in methods.items():
        assert {parameter.lower() for parameter in parameters} <= found[element].keys()
