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
from pathlib import Path
from typing import Any

import pytest
from tests import rendering
from tests.template.inference_table import TABLE, XS, Row, names

from pomlflow.engine import is_identifier
from pomlflow.exceptions import RenderError
from pomlflow.template.inference import infer
from pomlflow.template.source import Inference


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
