"""`infer`: the variables and files of a markup, from a table that is checked against Node."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests import rendering

from pomlflow.engine import is_identifier
from pomlflow.exceptions import RenderError
from pomlflow.template.inference import infer
from pomlflow.template.source import Inference


@dataclass(frozen=True)
class Row:
    """A markup and the variables that it takes; names are separated by spaces.

    Attributes:
        values: The values of variables that must not be a text.
        broken: POML refuses the markup whatever the variables are, so that its errors show nothing about them.
        hidden: Variables that Node does not miss: they are in a branch that is not taken, or are globals of Node.
    """

    markup: str
    variables: str = ""
    optional: str = ""
    messages: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    broken: bool = False
    hidden: str = ""


XS: dict[str, Any] = {"xs": [1, 2]}
TABLE = [
    # Expressions in text
    Row("<p>Hello</p>"),
    Row(""),
    Row(" \n "),
    Row("<p>Hello {{name}}</p>", "name"),
    Row("<p>{{ b }} {{a}} {{b}}</p>", "b a"),
    Row("<p>{{\n name \n}}</p>", "name"),
    Row("<p>{{ a +\n b }} {{c}}</p>", "c"),
    Row("<p>{{ a\r+ b }} {{ c\u2028+ d }} {{\ufeff e }}</p>", "e"),
    Row("<p>{{{a}}}</p>", "a"),
    Row("<p>{{ {a, b: c, [d]: 1} }}</p>", "a c d"),
    Row("<p>{{a.b.c}} {{d?.e}} {{f['g']}} {{h?.[i]}}</p>", "a d f h i", values={"a": {"b": {}}, "f": {}}),
    Row("<p>{{ a ?? b }}</p>", "a b", hidden="b"),
    Row("<p>{{ a ? b : c }}</p>", "a b c", hidden="c"),
    Row("<p>{{ a || b }}</p>", "a b", hidden="b"),
    Row("<p>{{ `${a} and ${b.c} and {{d}` }}</p>", "a b", values={"b": {}}),
    Row("<p>{{ `plain a` + 'b' }}</p>"),
    Row("<p>{{ /a+b/.test(c) }}</p>", "c"),
    Row("<p>{{ a / b / c }}</p>", "a b c"),
    Row("<p>{{ [...xs, ...ys].length }} {{ Math.max(...xs) }}</p>", "xs ys", values={**XS, "ys": []}),
    Row("<p>{{ {...a, b} }}</p>", "a b"),
    Row("<p>{{ new Date(a).getFullYear() }} {{ JSON.stringify(b) }}</p>", "a b"),
    Row("<p>{{ process.env.HOME }} {{ Buffer.from(a) }} {{ undefined }} {{ NaN }} {{ Infinity }}</p>", "a"),
    Row("<p>{{ URL }} {{ structuredClone(a) }} {{ encodeURIComponent(b) }} {{ arguments.length }}</p>", "a b"),
    Row(
        "<p>{{ global.x }} {{ crypto.x }} {{ performance.x }}</p>",
        "global crypto performance",
        hidden="global crypto performance",
    ),
    Row("<p>{{name}} {{event}} {{status}} {{history}} {{location}}</p>", "name event status history location"),
    Row("<p>{{ require }} {{ module }}</p>", "require module"),
    Row("<p>{{ true }} {{ null }} {{ 'x' in a }} {{ a instanceof Array }}</p>", "a", values={"a": {}}),
    Row("<p>{{ größe }} {{ $a }} {{ _b }} {{ 名前.x }}</p>", "größe $a _b 名前", values={"名前": {}}),
    Row("<p>{{ let }} {{ static }} {{ await }} {{ of }} {{ async }}</p>", "let static await of async"),
    Row("<p>{{ a; b }} {{ c // d }}</p>", "a c"),
    Row("<p>{{ (a, b) }}</p>", "a b"),
    Row("<p>{{ -a + +b + !c }} {{ void d }}</p>", "a b c d"),
    Row("<p>{{ n++ }} {{ m += 1 }}</p>", "n m", values={"n": 1, "m": 1}),
    Row("<p>{{ a.b = c }}</p>", "a c", values={"a": {}}),
    Row("<p>{{ f`x${a}` }}</p>", "f a", broken=True),
    # Functions
    Row("<p>{{ xs.map(x => x + y) }}</p>", "xs y", values=XS),
    Row("<p>{{ xs.map((x, i) => x + i) }}</p>", "xs", values=XS),
    Row(
        "<p>{{ xs.map(({a, b: [c, ...d], e = f}, g = h, ...r) => [a, c, d, e, g, r, q]) }}</p>",
        "xs f h q",
        values={"xs": [{"b": [1]}]},
        hidden="h",
    ),
    Row(
        "<p>{{ xs.map(x => { const y = x; let {z} = w; for (const [k, v] of Object.entries(y)) { z += k + v } "
        "try { z() } catch (e) { return e } }) }}</p>",
        "xs w",
        values={"xs": [{}], "w": {}},
    ),
    Row("<p>{{ (function f(n) { var m = n; return n > 1 ? f(n - 1) : m + q })(2) }}</p>", "q"),
    Row("<p>{{ (() => { function g() { return h } return g() })() }}</p>", "h"),
    Row("<p>{{ (() => { for (var a of [1]) { var b = a } return [a, b] })() }}</p>"),
    Row("<p>{{ (() => { for (let i = 0, n = 1; n > i; i++) { const {j} = {}; class K {} } return q })() }}</p>", "q"),
    Row("<p>{{ (() => { try { throw a } catch ({b}) { return b } })() }} {{b}}</p>", "a b", hidden="a"),
    Row("<p>{{ ({m(a) { return a + b }, get c() { return d } }).m(1) }}</p>", "b d", hidden="d"),
    Row("<p>{{ new (class A extends B { c = d; e(f) { return f + A } })() }}</p>", "B d", broken=True),
    Row("<p>{{ xs.map(function (x) { return arguments.length + x }) }} {{x}}</p>", "xs x", values=XS),
    Row("<p>{{ xs.map(x => x) }} {{x}}</p>", "xs x", values=XS),
    Row("<p>{{ xs.reduce((a, x) => a + x, start) }}</p>", "xs start", values=XS),
    Row("<p>{{ xs.filter(x => x > 1).map(y => x) }}</p>", "xs x", values=XS),
    Row("<p>{{ Object.entries(o).map(([k, v]) => `${k}: ${v}`).join(sep) }}</p>", "o sep", values={"o": {"a": 1}}),
    Row("<p>{{ (async x => await x)(y) }}</p>", "y"),
    # typeof
    Row("<p>{{ typeof a }}</p>", optional="a"),
    Row("<p>{{ typeof (a) === 'undefined' ? b : a.c }}</p>", "b", "a"),
    Row("<p>{{ typeof a === 'undefined' || a }} {{ a }}</p>", "a"),
    Row("<p>{{ typeof a.b }}</p>", "a"),
    Row("<p if=\"typeof a !== 'undefined'\">{{a}} <b title='{{a.b}}'>{{b}}</b></p>{{c}}", "b c", "a", hidden="b"),
    Row("<p if=\"typeof a !== 'undefined'\">{{a}}</p><p>{{a}}</p>", "a"),
    Row("<p>{{ typeof b }}{{ c }}{{ typeof a }}</p>", "c", "b a"),
    # Attributes, for and if
    Row("<p class='{{a}}' title=\"x {{b}} {{c}}\">{{d}}</p>", "a b c d"),
    Row("<p if='a'>{{b}}</p>", "a b"),
    Row("<p if='{{ a }}'>b</p>", "a"),
    Row("<p if=' {{a}} \n'>b</p>", "a"),
    Row("<p if='!a && b > 3'>c</p>", "a b", values={"a": False}),
    Row('<p if="\n a">b</p>'),
    Row('<p if="a &lt; 3">b</p>', "a", broken=True),
    Row('<p if="a &amp;&amp; b">c</p>', "a b", broken=True),
    Row('<p if="">b</p>', broken=True),
    Row('<p for="x in xs">{{x}} {{loop.index}} {{loop.last}}</p>', "xs", values=XS),
    Row('<p for="x in xs">{{x}}</p>{{x}}{{loop}}', "xs x loop", values=XS),
    Row('<p for="x in xs.filter(x => x > min)">{{x}}</p>', "xs min", values=XS),
    Row('<p for="x in [1, 2, a]">{{x}}</p>', "a"),
    Row('<p for="{a, b: {c}} in xs">{{a}} {{b}} {{c}}</p>', "xs b", values={"xs": [{"b": {}}]}),
    Row('<p for="[k, v] in Object.entries(o)">{{k}}={{v}}</p>', "o", values={"o": {"a": 1}}),
    Row('<p for="{a, b = c} in xs">{{a}}{{b}}</p>', "xs", values={"xs": [{"b": 1}]}),
    Row('<p for="x, rest in xs">{{x}} {{rest}}</p>', "xs", values=XS),
    Row('<p for="\n x\n in\n xs">{{x}}</p>', "xs", values=XS),
    Row('<p if="x.a" for="x in xs" title="{{x}}">{{y}}</p>', "xs y", values={"xs": [{"a": 1}]}),
    Row('<p title="{{t}}" if="c" for="x in xs">{{x}}</p>', "xs c t", values=XS),
    Row(
        '<list><item for="x in xs"><b for="y in x.ys">{{x.n}} {{y}} {{z}}</b></item></list>',
        "xs z",
        values={"xs": [{"ys": [1]}]},
    ),
    Row('<p for="x in x">{{x}}</p>', "x", values={"x": [1]}),
    Row('<p for="x of xs">{{x}} {{a}}</p>', "a", broken=True),
    Row('<p for="x in {{xs}}">{{x}}</p>', broken=True),
    Row('<p for="x in xs.filter(y => y in m)">{{x}}</p>', broken=True),
    Row("<P IF='a' FOR='x in xs'>{{x}}</P>", "xs a", values=XS),
    Row("<table records='{{rows}}' maxRecords='{{n}}'/>", "rows n", values={"rows": [{"a": 1}], "n": 1}),
    Row("<document src='{{file}}'/>", "file", broken=True),
    # let, context, stylesheet
    Row("<let name='a' value='b + 1'/><p>{{a}} {{c}}</p>", "b c"),
    Row("<let name='a' value='{{ b }}'/><p>{{a}}</p>", "b"),
    Row("<p>{{a}}</p><let name='a' value='1'/><p>{{a}}</p>", "a"),
    Row("<let name='a' value='a || 1'/><p>{{a}}</p>", "a"),
    Row("<p><let name='a'>1</let></p><p>{{a}}</p>"),
    Row("<let name='a'>{{b}}</let><p>{{a}}</p>"),
    Row('<let>{"a": 1, "b": {"c": 2}}</let><p>{{a}} {{b.c}} {{c}}</p>', "c"),
    Row("<let name='o' type='object'>{\"a\": 1}</let><p>{{o.a}} {{a}}</p>", "a"),
    Row("<let name='{a, b}' value='{a: 1, b: 2}'/><p>{{a}} {{b}}</p>"),
    Row("<let name='a' if='q' for='x in ys' value='1'/><p>{{a}}</p>"),
    Row("<p for='x in xs'><let name='y' value='x'/></p><p>{{y}}</p>", "xs", values=XS),
    Row("<p if='c'><let name='y' value='1'/></p><p>{{y}}</p>", "c"),
    Row("<LET Name='a' Value='1'/><p>{{a}}</p>"),
    Row("<poml><let>[1, 2]</let><p>{{a}}</p></poml>", "a", broken=True),
    Row('<poml><context>{"a": 1, "b": {}}</context><p>{{a}} {{b.c}} {{d}}</p></poml>', "d"),
    Row('<poml><p>{{a}}</p><Context>{"a": "{{b}}"}</Context></poml>'),
    Row('<!-- note -->\n<poml><context>{"a": 1}</context><p>{{a}}</p></poml>\n'),
    Row('before <poml><context>{"a": 1}</context><p>{{a}}</p></poml>', "a"),
    Row('<context>{"a": 1}</context><p>{{a}}</p>'),
    Row('<poml><stylesheet>{"p": {"title": "{{a}}"}}</stylesheet><p>{{b}}</p></poml>', "b"),
    # Schemas, tools, runtime, meta
    Row(
        "<output-schema>z.object({a: z.enum(options), b: z.string()})</output-schema>",
        "options",
        values={"options": ["x"]},
    ),
    Row("<output-schema parser='eval'>{{ z.object({a: z.literal(b)}) }}</output-schema>", "b"),
    Row('<output-schema>{"type": "object", "title": "{{a}}"}</output-schema>', "a"),
    Row("<output-schema>{{ schema }}</output-schema>", "schema", values={"schema": {"type": "object"}}),
    Row("<output-schema>{{ z.object({}) }}</output-schema>", "z", broken=True),
    Row("<output-schema>z.object({a: <!-- note -->z.enum(b)})<i>{{c}}</i></output-schema>", "b", values={"b": ["x"]}),
    Row("<OutputSchema parser='{{p}}'>z.object({a: z.literal(b)})</OutputSchema>", "p b", values={"p": "eval"}),
    Row(
        "<tool-definition name='{{a}}' description='{{b}}' other='{{c}}'>{\"type\": \"object\", "
        '"properties": { "x": {{d}} } }</tool-definition>',
        "a b d",
        values={"d": {}},
    ),
    Row("<tool name='t' parser='eval'>{type: 'object', properties: {x: y}}</tool>", "y"),
    Row("<tool name='t'>{{ {type: 'object', properties: {x} } }}</tool>", "x"),
    Row("<runtime temperature='{{t}}' max-tokens='{{n}}' if='c'>{{x}}</runtime><p>a</p>", "c t n"),
    Row("<meta title='{{a}}' if='b'>{{c}}</meta><p>d</p>", "b"),
    Row("<p>{{z}}</p>", "z"),
    Row("<p><output-schema if='a'>z.object({})</output-schema></p>", "a"),
    # Message histories
    Row("<conversation messages='{{history}}'/>", optional="history", messages="history"),
    Row("<Conversation Messages=' {{ history }} '/><p>{{q}}</p>", "q", "history", "history"),
    Row("<conversation if='history.length > 0' messages='{{history}}'/>", "", "history", "history"),
    Row(
        "<p if='history'>{{history.length}}</p><p for='m in history'>{{m}}</p><conversation messages='{{history}}'/>",
        "",
        "history",
        "history",
    ),
    Row("<p>{{history[0]}}</p><conversation messages='{{history}}'/>", "", "history", "history"),
    Row("<p>{{history.length}}</p>", "history"),
    Row("<conversation messages='{{history.slice(1)}}'/>", "history", values={"history": []}),
    Row("<p for='h in hs'><conversation messages='{{h}}'/></p>", "hs", values={"hs": [[]]}),
    Row("<p title='{{history}}'/><i messages='{{history}}'/>", "history"),
    # Markup
    Row("Hello {{name}}, no tags", "name"),
    Row("<p>{{a}}</p>\n<p>{{b}}</p>", "a b"),
    Row("{{a}} <p>{{b}}</p> {{c}}", "a b c"),
    Row("<p>{{a}}<!-- {{b}} <p>{{c}}</p> -->{{d}}</p>", "a d"),
    Row("<p>{{a}}<![CDATA[ {{b}} ]]></p>", "a"),
    Row("<p><?pi {{a}} ?>{{b}}</p>", "b"),
    Row("<p><?a ?>{{a}}<?b ?>\n{{b}}</p>", "b"),
    Row("<p>{{a<!-- x -->}}</p>"),
    Row("<p>{{a &amp;&amp; b}} &lt;{{c}}&#65;</p>", "c"),
    Row("<p>#lbrace;#lbrace;a}} {{b}}</p>", "b"),
    Row("<p>{{ }} {{}} {a} {{b</p>", "", broken=True),
    Row("<p>{ {a} } {{b} {c} }</p>"),
    Row("<p>\r\n{{a}}\r\n{{ b\r\n }}\r\n</p>\r\n", "a b"),
    Row("<p>a</q>{{x}}", "x"),
    Row("<x:p y:if='a' title='{{b}}'>{{c}}</x:p>", "b c"),
    Row("<p title='a > b {{ c }}' >{{d}}</p >", "c d"),
    Row("<p><b/>{{a}}<i>{{b}}</i></p>", "a b"),
    # Markup and expressions that POML refuses
    Row("<p>{{a}} <b>{{c}}", "a c", broken=True),
    Row("<p>{{a < b}} {{c}}</p>", "a b c", broken=True),
    Row("<p>{{a && b}}</p>", "a b", broken=True),
    Row("a & b {{x}}", "x", broken=True),
    Row('<p if="a < 3">{{b}}</p>', "a b", broken=True),
    Row("<p title='{{a}}>{{b}}</p>", "b", broken=True),
    Row("<p disabled>{{a}}</p></p></p>{{b}}", "a b", broken=True),
    Row("<p>{{ user name }} {{ ( c }} {{d}}</p>", "d", broken=True),
    Row("<let name='job' value='primary coding task'/><p>{{job}}</p>", broken=True),
    Row("<p>{{ class }} {{ class.a }}</p>", broken=True),
    Row("<p>{{ my-key }}</p>", "my key"),
    Row("<p if='{{a}} && {{b}}'>c</p>", broken=True),
    Row('<?xml version="1.0"?>\n<poml>{{a}}</poml>', "a", broken=True),
    Row("<!DOCTYPE poml>\n<poml>{{a}}</poml>", "a", broken=True),
    Row("<unknown-thing title='{{a}}'>{{b}}</unknown-thing>", "a", broken=True),
    Row("<foreach item='x' in='xs'>{{x}}</foreach>", broken=True),
]


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def label(row: Row) -> str:
    return row.markup or "empty"


@pytest.mark.parametrize("row", TABLE, ids=label)
def test_the_variables_are_those_of_the_table(row: Row) -> None:
    found = infer(row.markup)
    assert (found.variables, found.optional, found.messages) == (
        names(row.variables),
        names(row.optional),
        names(row.messages),
    )


def bound(row: Row) -> dict[str, Any]:
    """The variables of a render: a value for each needed one, and an empty list for a history."""
    given = {name: row.values.get(name, "text") for name in names(row.variables)}
    return {**{name: [] for name in names(row.messages)}, **given}


def refusal(markup: str, variables: Mapping[str, Any], path: str | None = None) -> str:
    """Return the errors of the engine, or an empty text if it renders."""
    try:
        rendering.render(markup, variables, path=path)
    except RenderError as error:
        return "; ".join(problem.message for problem in error.problems)
    return ""


@pytest.mark.parametrize("row", [row for row in TABLE if not row.broken], ids=label)
def test_the_engine_needs_exactly_the_variables_of_the_table(row: Row) -> None:
    """With all of them POML renders; without one it reports that this one is not defined."""
    given = bound(row)
    assert refusal(row.markup, given) == ""
    for name in names(row.variables):
        reported = refusal(row.markup, {key: value for key, value in given.items() if key != name})
        assert (f"{name} is not defined" in reported) != (name in names(row.hidden)), reported


@pytest.mark.parametrize("row", [row for row in TABLE if row.broken], ids=label)
def test_the_engine_refuses_the_markups_that_are_broken(row: Row) -> None:
    assert refusal(row.markup, bound(row)) != ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "head.poml": "<poml class='{{unread}}' if='no'><let name='inner' value='seed'/>{{inner}} {{x}} {{name}}</poml>",
        "sub/part.poml": "<p>{{part}}</p><include src='deep.poml'/>",
        "sub/deep.poml": "<p if='deep'>{{outer}}</p>",
        "text.poml": "plain {{words}}",
        "loop.poml": "<p>{{again}}</p><include if='again' src='loop.poml'/>",
        "frame.poml": "<poml><output-schema>z.object({a: z.literal(lost)})</output-schema><p>a</p></poml>",
        "fixed.poml": "<poml><runtime a='1'/></poml>",
        "data.json": '{"key": 1, "other": {"a": 2}}',
        "list.json": "[1, 2]",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


FILES: list[tuple[str, str, dict[str, Any]]] = [
    ("{{a}}<include src='head.poml'/>{{b}}", "a seed x name b", {}),
    ("<include src='head.poml'/>{{inner}}", "seed x name inner", {}),
    ("<p for='x in xs'><include src='head.poml'/></p>", "xs seed name", XS),
    ("<include for='x in xs' if='c' src='head.poml'/>", "xs c seed name", XS),
    ("<let name='seed' value='1'/><include src='head.poml'/>", "x name", {}),
    ("<let name='outer' value='1'/><include src='sub/part.poml'/>{{z}}", "part deep z", {}),
    ("<include src='sub/part.poml'/><let name='outer' value='1'/>", "part deep outer", {}),
    ("<include src='text.poml'/><include src='./sub/../text.poml'/>", "words", {}),
    ("<include src='text.poml' other='{{ignored}}'>{{ignored}}</include>", "words", {}),
    ("<include src='frame.poml'/>", "lost", {}),
    ("<let src='data.json'/>{{key}} {{other.a}} {{free}}", "free", {}),
    ("<let name='all' src='data.json'/>{{all.key}} {{key}}", "key", {}),
    ("<let name='all' src='list.json'/><p for='x in all'>{{x}}</p>", "", {}),
]


@pytest.mark.parametrize(("markup", "variables", "values"), FILES)
def test_included_files_take_the_variables_that_the_engine_needs(
    folder: Path, markup: str, variables: str, values: dict[str, Any]
) -> None:
    """Includes and sources are relative to the base folder, as the engine reads them relative to the markup's file."""
    assert infer(markup, folder).variables == names(variables)
    given = {name: values.get(name, "text") for name in names(variables)}
    path = str(folder / "main.poml")
    assert refusal(markup, given, path) == ""
    for name in given:
        reported = refusal(markup, {key: value for key, value in given.items() if key != name}, path)
        assert f"{name} is not defined" in reported


def test_includes_are_listed_in_order_once_with_missing_ones(folder: Path) -> None:
    markup = (
        "<include src='sub/part.poml'/><include src='nowhere/x.poml'/><include src='text.poml'/>"
        "<include src='{{no}}.poml'/><include src='sub/part.poml'/><include/><include src=''/><include src='\0'/>"
    )
    found = infer(markup, folder)
    expected = ["sub/part.poml", "sub/deep.poml", "nowhere/x.poml", "text.poml", "{{no}}.poml", "\0"]
    assert found.includes == tuple(folder / name for name in expected)
    assert found.variables == ("part", "deep", "outer", "words")


def test_assets_are_listed_where_poml_looks_for_them(folder: Path) -> None:
    """A source in an included file is relative to the root's folder, but for `<let>` and `<include>`."""
    (folder / "sub" / "names.poml").write_text("<img src='a.png'/><let name='x' src='b.json'/>", encoding="utf-8")
    markup = (
        "<include src='sub/names.poml'/><Image src='a.png'/><doc src='c.txt'/><table src='d.csv'/><folder src='e'/>"
        "<audio src='f.mp3'/><webpage src='../g.html'/><img src='{{h}}.png'/><img base64='i'/><p src='j'/>"
    )
    expected = ["a.png", "sub/b.json", "c.txt", "d.csv", "e", "f.mp3", "../g.html"]
    assert infer(markup, folder).assets == tuple(Path(os.path.normpath(folder / name)) for name in expected)


def test_files_are_read_by_the_given_function(folder: Path) -> None:
    found = infer("<include src='text.poml'/><include src='x.poml'/>", folder, read={folder / "x.poml": "{{y}}"}.get)
    assert found.variables == ("y",)


def test_circular_includes_end(folder: Path) -> None:
    (folder / "twice.poml").write_text("<let name='n' value='m'/><include src='twice.poml'/>" * 3, encoding="utf-8")
    assert infer("<include src='loop.poml'/>", folder).variables == ("again",)
    assert infer("<include src='twice.poml'/>", folder).variables == ("m",)


def test_include_diamonds_stay_cheap(folder: Path) -> None:
    """Thirty files that each include the next one twice are 30 files, not 2 ** 30."""
    for n in range(30):
        (folder / f"{n}.poml").write_text(f"{{{{v{n}}}}}" + f"<include src='{n + 1}.poml'/>" * 2, encoding="utf-8")
    found = infer("<include src='0.poml'/>", folder)
    assert found.variables == tuple(f"v{n}" for n in range(30))
    assert len(found.includes) == 31


def test_the_base_folder_defaults_to_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert infer("<include src='text.poml'/>") == infer("<include src='text.poml'/>", folder)
    assert infer("<include src='text.poml'/>", Path("sub")).includes == (folder / "sub" / "text.poml",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_as_a_source_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert infer("<include src='pipe'/><let src='pipe'/>{{a}}", tmp_path).variables == ("a",)


def test_expressions_are_listed_as_they_are_written() -> None:
    """Those that POML evaluates, in its order."""
    markup = (
        "<p if='{{ class }}' for='x in my-key'>{{ a.b }} {c}</p><let name='y' value='b + 1' if='no'/>"
        "<output-schema>z.object({})</output-schema><p title='{{t}}' if='i'>{{\n d }}</p><p>{{e\n+f}} {{{g}}}</p>"
    )
    found = [expression.code for expression in infer(markup).expressions]
    assert found == ["my-key", "class", "a.b", "b + 1", "z.object({})", "i", "t", "d", "{g}"]


STATIC = [
    ("<p>a</p>", ""),
    ("<runtime temperature='0.5'/>", "runtime"),
    ("<runtime temperature='{{1 / 2}}'/>", "runtime"),
    ("<runtime temperature='{{t}}'/>", ""),
    ("<runtime model='{{process.env.MODEL}}'/>", ""),
    ("<runtime a='1'/><runtime a='{{t}}'/>", ""),
    ("<runtime a='{{t}}'/><runtime a='1'/>", ""),
    ('<output-schema>{"type": "object"}</output-schema>', "schema"),
    ("<output-schema>z.object({a: z.string()})</output-schema><runtime a='1'/>", "schema runtime"),
    ("<output-schema>z.object({a: z.enum(xs)})</output-schema>", ""),
    ('<output-schema>{"title": "{{a}}"}</output-schema>', ""),
    ("<output-schema if='a'>z.object({})</output-schema>", ""),
    ("<output-schema if='1 > 0'>z.object({})</output-schema>", ""),
    ("<p if='a'><b><output-schema>z.object({})</output-schema></b></p>", ""),
    ("<p if=\"typeof a === 'undefined'\"><output-schema>z.object({})</output-schema></p>", ""),
    ("<p for='x in xs'><tool name='t'>z.object({})</tool></p>", ""),
    ("<tool name='a'>{}</tool><tool name='b' description='{{d}}'>{}</tool>", ""),
    ("<tool-def name='a'>{}</tool-def><tooldef name='b'>{}</tooldef>", "tools"),
    ("<let name='s' value='[1]'/><output-schema>z.object({a: z.enum(s)})</output-schema>", "schema"),
    ("<let name='s' value='xs'/><output-schema>z.object({a: z.enum(s)})</output-schema>", ""),
    ("<let name='s' value='xs'/><let name='t' value='s'/><runtime a='{{t}}'/>", ""),
    ("<let name='s'>1</let><runtime a='{{s}}'/>", "runtime"),
    ("<let name='s' value='1'/><let name='s' value='xs'/><runtime a='{{s}}'/>", ""),
    ("<let name='s' src='data.json'/><runtime a='{{s}}'/>", ""),
    ("<let src='data.json'/><runtime a='{{key}}'/>", ""),
    ("<poml><context>{\"a\": 1}</context><runtime a='{{a}}'/></poml>", ""),
    ("<include src='fixed.poml'/>", ""),
    ("<include src='frame.poml'/><runtime a='1'/>", "runtime"),
]


@pytest.mark.parametrize(("markup", "parts"), STATIC)
def test_static_parts_use_no_variable_condition_or_loop(folder: Path, markup: str, parts: str) -> None:
    assert infer(markup, folder).static_fields == set(names(parts))


WORDS = names(
    "break case catch class const continue debugger default delete do else enum export extends false finally for "
    "function if import in instanceof new null return super switch this throw true try typeof var void while with "
    "let static await yield async of get set implements interface package private protected public as from target "
    "arguments eval undefined NaN Infinity constructor $ _ a$b $1 1a größe 名前 ñ x\u0301 \u0301x a\u00b7 € a€"
)


def test_reserved_words_are_those_that_node_refuses_as_a_parameter() -> None:
    markup = (
        "<p>{{ words.filter(word => { try { return !!new Function(word, 'return ' + word) } "
        "catch (e) { return false } }).join(' ') }}</p>"
    )
    message = rendering.render(markup, {"words": list(WORDS)})["messages"][0]["content"]
    assert [word for word in WORDS if is_identifier(word)] == message.split(" ")


@pytest.mark.parametrize(
    "name", ["", " a", "a b", "a-b", "a.b", "a,b", "{a}", "[a]", "a=1", "...a", "a/**/", "\\u0061"]
)
def test_what_node_would_run_as_code_is_no_identifier(name: str) -> None:
    assert not is_identifier(name)


PIECES = [
    piece.replace("~", " ")
    for piece in (
        "{ {{ }} }}} ( ) [ ] ` ${ $ ' \" / \\ < > <a <p> </p> </ /> <!-- --> <! <? ?> <![CDATA[ ]]> & &amp; &# a. a=> "
        "a b ?. => = , ; : ... if=' for=\"x~in~ src='x' name='y' value=' <let~ <include~ <output-schema> typeof~a "
        "class~ <conversation~messages='{{a}}' function( async~ x~=~ \0 \ud800 é \ufeff \u2028 \r \n \t ~"
    ).split(" ")
]


@pytest.mark.parametrize("seed", range(100))
def test_random_text_is_parsed(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    markup = "".join(chance.choices(PIECES, k=chance.choice([3, 10, 100, 400])))
    found = infer(markup, tmp_path)
    assert not set(found.variables) & set(found.optional)
    assert all(map(is_identifier, found.variables + found.optional))
    assert set(found.messages) <= {*found.variables, *found.optional}


def cost(markup: str) -> float:
    """Return the CPU seconds of its inference, with the garbage collector off."""
    gc.disable()
    try:
        before = time.thread_time()
        assert isinstance(infer(markup), Inference)
        return time.thread_time() - before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("around", "pieces"),
    [
        ("%s", "{ {{~ {{^ {{a}^ < <a~ <?a <? <!-- <![CDATA[ &a & <a> </a> <a~b=' <a~b= ^~ ~"),
        ("<p>{{%s}}</p>", "{ ( [ x=> a. a+ ${ ! ~"),
        ('<p if="%s"/>', "{ {{~ {{^ {{a}^ ~ ^ ~^ ^~{{ }} }}~"),
        ('<p for="%s in x"/>', "{ ~ ^ ~^ a~ a^ in~"),
        ("<let>%s</let>", "[ { ~"),
    ],
)
def test_repeated_pieces_take_no_quadratic_time(around: str, pieces: str) -> None:
    """Four times the size costs about four times as much, and not sixteen times."""
    for piece in pieces.replace("^", "\n").replace("~", "\0").split(" "):
        small, large = (piece.replace("\0", " ") * (size // len(piece)) for size in (7_500, 30_000))
        for end in ("", "\n}}>{{a}}?>-->]]>"):
            assert cost(around % (large + end)) < 0.1 + 8 * cost(around % (small + end)), piece


def test_threads_share_nothing() -> None:
    """A tree-sitter parser must not be used by two threads at once."""
    markups = [f"<p>{{{{ a{n} + `${{b{n}}}` }}}}</p>" * 20 for n in range(50)]
    start = threading.Barrier(8)

    def work(_: int) -> list[Inference]:
        start.wait()
        return [infer(markup) for markup in markups]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert all([found.variables for found in result] == [(f"a{n}", f"b{n}") for n in range(50)] for result in results)


def test_plain_expressions_need_no_parser() -> None:
    code = (
        "import sys; from pomlflow.template.inference import infer; infer('<p if=\"a\">{{b.c}}</p>');"
        "assert 'tree_sitter' not in sys.modules; infer('{{a + b}}'); assert 'tree_sitter' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
