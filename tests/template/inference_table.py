"""Markups and the variables that each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TABLE", "XS", "Row", "names"]


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
