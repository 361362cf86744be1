"""The records of a template's renders, failed ones too."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest
from tests.templates import HELLO, sha, write

from pomlflow import configure, engine
from pomlflow.exceptions import (
    MissingVariableError,
    RenderTimeoutError,
    VariableError,
)
from pomlflow.template import Template


def test_a_record_has_all_fields(folder: Path) -> None:
    file = write(folder / "support" / "a.poml", '<poml><p>Hello {{name}}</p><runtime temperature="0"/></poml>')
    template = Template(path=file, stylesheet={}, register=False)
    before = time.time_ns()
    record = template.render({"name": "Ada", "extra": [1], "my-key": 2})
    after = time.time_ns()
    assert record.output == {"messages": [{"speaker": "human", "content": "Hello Ada"}], "runtime": {"temperature": 0}}
    assert (record.source, record.digest) == (template.source, template.digest)
    assert (record.name, record.path) == ("support.a", "support/a.poml")
    assert record.variables == {"name": "Ada", "extra": [1]}
    assert (record.stylesheet, record.chat, record.register, record.error) == ({}, True, False, None)
    assert record.poml_version == engine.poml_version()
    assert record.static_fields == {"runtime"}
    assert isinstance(record.start_ns, int)
    assert isinstance(record.end_ns, int)
    assert before <= record.start_ns < record.end_ns
    assert record.end_ns - record.start_ns <= after - before + 10**7


def test_a_record_holds_the_folder_of_files_and_what_was_included(folder: Path) -> None:
    """Relative to the prompt root: on another machine that is elsewhere."""
    write(folder / "prompts" / "tone.poml", "<p>Be kind.</p>")
    markup = '<poml><include src="tone.poml"/></poml>'
    from_file = Template(path=write(folder / "prompts" / "a.poml", markup))
    of_folder, inline = Template(markup, base_dir="prompts"), Template(HELLO)
    outside = Template(path=write(folder.parent / f"{folder.name}-b" / "b.poml", HELLO))
    seen = [template.render({"name": 1}) for template in (from_file, of_folder, inline, outside)]
    assert [record.folder for record in seen] == ["prompts", "prompts", ".", f"../{folder.name}-b"]
    files = [[(file.path, file.sha256) for file in record.files] for record in seen]
    assert files == [[("tone.poml", sha("<p>Be kind.</p>"))]] * 2 + [[]] * 2

    configure(prompt_root=folder / "prompts")
    assert inline.render({"name": 1}).folder == ".."
    assert from_file.render({}).folder == "prompts", "made before prompt_root changed"


async def test_render_and_arender_give_the_same() -> None:
    template = Template(HELLO, chat=False)
    one, other = template.render({"name": "Ada"}), await template.arender({"name": "Ada"})
    assert one.output == other.output == {"messages": "Hello Ada"}
    assert (one.variables, one.digest, one.chat) == (other.variables, other.digest, False)
    both = await asyncio.gather(*(template.arender({"name": number}) for number in range(5)))
    assert [record.output for record in both] == [{"messages": f"Hello {number}"} for number in range(5)]


# --- what can be wrong ---


async def test_a_missing_variable_is_a_record_with_error_and_variables(folder: Path) -> None:
    file = write(folder / "a.poml", "<p>{{a}} {{b}} {{c}}</p>")
    template = Template(path=file)
    for record in (template.render({"b": 1}), await template.arender({"b": 1})):
        assert isinstance(record.error, MissingVariableError)
        assert isinstance(record.error, KeyError)
        assert record.error.variable == "a"
        assert str(record.error) == (
            f"{file}:1:6: the template needs the variables a, c; given: b. Pass it, or guard it in the template: "
            "{{ typeof a === 'undefined' ? '' : a }}\n"
            "    <p>{{a}} {{b}} {{c}}</p>\n"
            "         ^"
        )
        assert (record.output, record.variables, record.digest) == (None, {"b": 1}, template.digest)
        assert record.start_ns < record.end_ns
        with pytest.raises(KeyError, match="needs the variables a, c"):
            record.result()


@pytest.mark.parametrize("code", ["rows", "rows.slice(1)"])
def test_the_remedy_for_a_missing_loop_variable_is_valid_in_for(code: str) -> None:
    remedy = "typeof rows === 'undefined' ? [] : rows"
    error = Template(f'<p for="row in {code}">{{{{row}}}}</p>').render({}).error
    assert f"guard it in the template: {remedy}\n" in str(error)
    guarded = code.replace("rows", f"({remedy})")
    assert Template(f'<p for="row in {guarded}">{{{{row}}}}</p>').render({}).error is None


def test_a_render_that_takes_too_long_is_a_record() -> None:
    record = Template("<p>{{ (() => { for (;;); })() }}</p>").render({}, timeout=0.5)
    assert isinstance(record.error, RenderTimeoutError)
    assert record.end_ns - record.start_ns >= 4 * 10**8


@pytest.mark.parametrize("name", ["my-key", "a b", "1st", "a.b", "", "{a=1}", "日 本"])
def test_a_name_that_is_no_identifier_is_ignored_as_an_extra(name: str) -> None:
    record = Template(HELLO).render({"name": "Ada", name: "x"})
    assert record.result()["messages"][0]["content"] == "Hello Ada"
    assert record.variables == {"name": "Ada"}


@pytest.mark.parametrize(
    ("name", "expression"),
    [("new", "new Date(0).getTime()"), ("in", "'a' in {a: 1}"), ("class", "x.class"), ("key", "x['my-key']")],
)
def test_reserved_words_are_no_variables(name: str, expression: str) -> None:
    record = Template(f"<p>{{{{ {expression} }}}}</p>").render({name: 1, "x": {}})
    assert record.error is None


def test_an_extra_variable_without_a_form_in_json_is_left_out() -> None:
    """Also if its name is part of other names, a property or a text of the template."""
    variables = {"name": "Ada", "am": object(), "lock": threading.Lock(), "deep": {"x": [object()]}}
    record = Template("<p>Hello {{name}}{{name.am}} {{ 'am' }}</p>").render(variables)
    assert record.result()["messages"][0]["content"] == "Hello Ada am"
    assert record.variables == {"name": "Ada"}


async def test_a_variable_that_is_named_and_has_no_form_in_json_is_refused() -> None:
    for markup in ("<p>{{name.deep}}</p>", "<p>{{ typeof name }}</p>", '<p for="x in name">{{x}}</p>'):
        template = Template(markup)
        for record in (template.render({"name": object()}), await template.arender({"name": object()})):
            assert isinstance(record.error, VariableError)
            assert record.error.variable == "name"
            assert record.output is None


def test_ignored_extras_and_missing_variables_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="pomlflow"):
        Template(HELLO).render({"name": "Ada", "extra": object()})
        Template(HELLO).render({})
    assert caplog.records == []
