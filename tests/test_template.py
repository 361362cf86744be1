"""A template: its markup, its files, its name, and the records of its renders."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pomlflow import engine, settings, variables
from pomlflow.exceptions import (
    MissingVariableError,
    PomlError,
    RenderError,
    RenderTimeoutError,
    TemplateNotFoundError,
    VariableError,
)
from pomlflow.template import Template

HELLO = "<p>Hello {{name}}</p>"


def text(template: Template, **variables: Any) -> str:
    messages = template.render(variables).result()["messages"]
    return messages if isinstance(messages, str) else "|".join(str(message["content"]) for message in messages)


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prompt_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(settings, "_current", settings.Settings(prompt_root=root))
    return root


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that were asked for by `os.stat`, in order."""
    asked: list[str] = []
    real = os.stat

    def counted(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        asked.append(os.fspath(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", counted)
    return asked


def write(file: Path, content: str) -> Path:
    """Write a file that is seen to be new, also on a file system that counts in seconds."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8", newline="")
    if before:
        os.utime(file, ns=(before + 10**9, before + 10**9))
    return file


# --- where the markup comes from ---


def test_markup_is_never_a_path(folder: Path) -> None:
    write(folder / "hello.poml", HELLO)
    for markup in ("hello.poml", "./hello.poml", str(folder / "hello.poml")):
        assert text(Template(markup)) == markup
    assert text(Template(path="hello.poml"), name="Ada") == "Hello Ada"


def test_a_missing_file_is_told_at_construction(folder: Path) -> None:
    with pytest.raises(TemplateNotFoundError, match="cannot read the template") as caught:
        Template(path="missing.poml")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, PomlError)
    assert caught.value.filename == str(folder / "missing.poml")
    assert "from_template" in str(caught.value)


def test_a_folder_is_no_template(folder: Path) -> None:
    with pytest.raises(TemplateNotFoundError):
        Template(path=folder)


def test_a_template_needs_something() -> None:
    with pytest.raises(TypeError, match="needs markup or a path"):
        Template()


def test_the_working_folder_may_change_after_construction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "part.poml", "<p>part of {{name}}</p>")
    template = Template(path=write(folder / "a.poml", '<poml><include src="part.poml"/></poml>').name)
    write(folder / "other" / "a.poml", "<p>another</p>")
    monkeypatch.chdir(folder / "other")
    assert text(template, name="Ada") == "part of Ada"


def test_the_home_folder_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "a.poml", HELLO)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder))
    assert Template(path="~/a.poml").path == folder / "a.poml"


def test_bytes_that_are_no_utf_8_are_read_as_node_reads_them(folder: Path) -> None:
    (folder / "a.poml").write_bytes(b"<p>caf\xe9 \xf0\x9f\x98\x80</p>\r\n")
    template = Template(path="a.poml")
    assert template.source == "<p>caf\ufffd 😀</p>\r\n"
    assert text(template) == "caf\ufffd 😀"


def test_any_markup_can_be_constructed() -> None:
    """What is wrong with it is the render's to say."""
    for markup in ("", "<poml><p>", "{{", "{{ ) }}", "<include/>", "\x00", "}}{{"):
        Template(markup)
    error = Template("<poml><p>").render({}).error
    assert isinstance(error, RenderError)
    assert str(error).startswith("<inline>:1:")


def test_nothing_is_started_at_construction() -> None:
    code = """
        import sys
        started = []
        sys.addaudithook(lambda event, _: started.append(event) if event in ("subprocess.Popen", "os.fork") else None)
        from pomlflow.template import Template
        template = Template("<p>{{x.map(y => y)}}</p>")
        assert template.inference.variables == ("x",)
        assert started == [], started
        template.render({"x": []}).result()
        assert "subprocess.Popen" in started, started
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# --- its folder ---


def test_inline_markup_has_the_folder_that_it_is_given(folder: Path) -> None:
    write(folder / "parts" / "note.txt", "a note")
    template = Template("<poml><document src='note.txt'/></poml>", base_dir="parts")
    assert text(template) == "a note"


def test_inline_markup_without_a_folder_is_at_home_in_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never in the folder for temporary files."""
    for name in ("one", "two"):
        write(folder / name / "part.poml", f"<p>{name} {{{{of_{name}}}}}</p>")
    monkeypatch.chdir(folder / "one")
    template = Template("<poml><include src='part.poml'/></poml>")
    assert (template.inference.variables, text(template, of_one=1)) == (("of_one",), "one 1")
    first = template.digest
    monkeypatch.chdir(folder / "two")
    assert (template.inference.variables, text(template, of_two=2)) == (("of_two",), "two 2")
    assert template.digest != first


# --- its digest ---


def test_the_digest_is_that_of_the_source(folder: Path) -> None:
    assert Template(HELLO).digest == sha(HELLO)
    assert Template(path=write(folder / "a.poml", HELLO)).digest == sha(HELLO)
    assert Template(HELLO).render({}).digest == sha(HELLO)
    umlaut = "<p>ü \ud800</p>"
    assert Template(umlaut).digest == hashlib.sha256(umlaut.encode("utf-8", "surrogatepass")).hexdigest()


def test_the_digest_changes_with_every_included_file(folder: Path) -> None:
    write(folder / "inner.poml", "<p>inner</p>")
    write(folder / "part.poml", '<poml><include src="inner.poml"/></poml>')
    template = Template(path=write(folder / "a.poml", '<poml><include src="part.poml"/></poml>'))
    digests = [template.digest]
    for name in ("part.poml", "inner.poml", "a.poml"):
        write(folder / name, (folder / name).read_text() + " ")
        digests.append(template.digest)
    assert len(set(digests)) == 4
    assert sha(template.source) not in digests


def test_the_digest_is_the_same_in_another_folder(folder: Path) -> None:
    digests = set()
    for name in ("here", "there"):
        write(folder / name / "parts" / "part.poml", "<p>part</p>")
        file = write(folder / name / "a.poml", '<poml><include src="parts/part.poml"/></poml>')
        digests.add(Template(path=file).digest)
        digests.add(Template(file.read_text(), base_dir=folder / name).digest)
    assert len(digests) == 1


# --- its name ---


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("answer.poml", "answer"),
        ("support/answer.poml", "support.answer"),
        ("support/v2/answer.poml", "support.v2.answer"),
        ("answer.v2.poml", "answer.v2"),
        ("answer.txt", "answer.txt"),
        ("my prompt: (1).poml", "my-prompt-1"),
        ("über/naïve.poml", "ber.na-ve"),
        (".hidden.poml", "hidden"),
        ("a--b_c.poml", "a--b_c"),
    ],
)
def test_a_name_comes_from_the_path_under_the_working_folder(folder: Path, path: str, name: str) -> None:
    template = Template(path=write(folder / path, HELLO))
    assert (template.name, template.relative) == (name, path)
    record = template.render({"name": "Ada"})
    assert (record.name, record.path) == (name, path)


def test_a_name_without_a_letter_for_mlflow_is_made_of_its_digest(folder: Path) -> None:
    names = {Template(path=write(folder / f"{name}.poml", HELLO)).name for name in ("日本", "中国")}
    assert names == {f"prompt-{sha(name)[:12]}" for name in ("日本", "中国")}


def test_a_long_name_is_cut_and_stays_unique() -> None:
    names = {Template(HELLO, name="x" * 300 + end).name for end in "ab"}
    assert len(names) == 2
    assert all(name is not None and len(name) == 256 for name in names)


def test_a_given_name_wins_and_is_cleaned(folder: Path) -> None:
    assert Template(HELLO, name="Support / answer").name == "Support-.-answer"
    assert Template(path=write(folder / "a.poml", HELLO), name="b").name == "b"


def test_inline_markup_has_no_name() -> None:
    for template in (Template(HELLO), Template(HELLO, name="")):
        record = template.render({"name": "Ada"})
        assert (template.name, template.relative, record.name, record.path) == (None, None, None, None)


def test_names_are_relative_to_the_prompt_root(folder: Path, prompt_root: Path) -> None:
    assert Template(path=write(prompt_root / "support" / "a.poml", HELLO)).name == "support.a"
    assert Template(path=write(folder / "elsewhere" / "b.poml", HELLO)).name == "elsewhere.b"


def test_a_way_through_a_link_gives_the_same_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")
    write(folder / "support" / "a.poml", HELLO)
    assert Template(path=link / "support" / "a.poml").name == "support.a"


def test_outside_of_all_roots_it_is_the_files_own_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = write(tmp_path_factory.mktemp("far") / "deep" / "a.poml", HELLO)
    assert (Template(path=file).name, Template(path=file).relative) == ("a", "a.poml")


# --- its files change ---


def test_a_changed_file_is_picked_up_with_its_variables(folder: Path) -> None:
    file = write(folder / "a.poml", HELLO)
    template = Template(path=file)
    assert text(template, name="Ada") == "Hello Ada"
    write(file, "<p>Bye {{who}}</p>")
    assert template.inference.variables == ("who",)
    assert (text(template, who="Ada"), template.source, template.digest) == (
        "Bye Ada",
        "<p>Bye {{who}}</p>",
        sha("<p>Bye {{who}}</p>"),
    )


def test_a_file_of_the_same_size_and_time_is_told_by_its_replacement(folder: Path) -> None:
    """Editors and deployments put a new file in the old one's place."""
    file = write(folder / "a.poml", "<p>1</p>")
    template, stamp = Template(path=file), file.stat()
    other = write(folder / "b.poml", "<p>2</p>")
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(file)
    assert text(template) == "2"


def test_a_changed_include_is_picked_up_with_its_variables(folder: Path) -> None:
    part = write(folder / "part.poml", "<p>{{x}}</p>")
    template = Template(path=write(folder / "a.poml", '<poml><include src="part.poml"/></poml>'))
    again = Template('<poml><include src="part.poml"/></poml>', base_dir=folder)
    assert (text(template, x=1), text(again, x=1)) == ("1", "1")
    write(part, "<p>{{y}}{{y}}</p>")
    for one in (template, again, Template(path="a.poml"), pickle.loads(pickle.dumps(template))):
        assert (one.inference.variables, text(one, y=2)) == (("y",), "22")


def test_an_include_that_comes_later_is_picked_up(folder: Path) -> None:
    template = Template(path=write(folder / "a.poml", '<poml><include src="part.poml"/></poml>'))
    assert isinstance(template.render({}).error, RenderError)
    write(folder / "part.poml", '<poml><include src="inner.poml"/></poml>')
    write(folder / "inner.poml", "<p>{{x}}</p>")
    assert (template.inference.variables, text(template, x=1)) == (("x",), "1")
    write(folder / "inner.poml", "<p>{{y}}</p>")
    assert (template.inference.variables, text(template, y=2)) == (("y",), "2")


def test_a_deleted_file_keeps_its_last_content_with_one_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(folder / "a.poml", HELLO)
    template = Template(path=file)
    file.unlink()
    for _ in range(3):
        assert text(template, name="Ada") == "Hello Ada"
    assert [(record.name, record.levelname) for record in caplog.records] == [("pomlflow", "WARNING")]
    assert str(file) in caplog.text
    write(file, "<p>back</p>")
    assert text(template) == "back"
    file.unlink()
    assert text(template) == "back"
    assert len(caplog.records) == 2


def test_content_given_beside_a_missing_file_stands_in_for_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a copy of a template does, where it is loaded on another machine."""
    template = Template(HELLO, path="missing.poml")
    assert text(template, name="Ada") == "Hello Ada"
    assert "its last content stays" in caplog.text
    write(folder / "missing.poml", "<p>here</p>")
    assert text(template) == "here"


def test_a_render_asks_once_for_each_file(folder: Path, stats: list[str]) -> None:
    one = Template(path=write(folder / "a.poml", HELLO))
    for name in ("part", "inner"):
        write(folder / f"{name}.poml", "<p>{{x}}</p>")
    both = '<poml><include src="part.poml"/><include src="inner.poml"/><include src="part.poml"/></poml>'
    many = Template(path=write(folder / "b.poml", both))
    inline = Template(HELLO)
    text(inline, name="Ada")  # the engine is warm
    expected = [["a.poml"], ["b.poml", "part.poml", "inner.poml"], []]
    for template, files in zip((one, many, inline), expected, strict=True):
        stats.clear()
        template.render({"name": "Ada", "x": 1}).result()
        assert stats == [str(folder / file) for file in files]


def test_a_change_while_the_file_is_read_is_seen_next_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata is taken before its content."""
    file = write(folder / "a.poml", "<p>1</p>")
    read = Path.read_bytes

    def changed_meanwhile(path: Path) -> bytes:
        content = read(path)
        monkeypatch.setattr(Path, "read_bytes", read)
        write(file, "<p>2</p>")
        return content

    monkeypatch.setattr(Path, "read_bytes", changed_meanwhile)
    template = Template(path=file)
    assert text(template) == "2"


def test_a_change_while_an_include_is_read_is_seen_next_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write(folder / "part.poml", "<p>{{x}}</p>")
    file = write(folder / "a.poml", '<poml><include src="part.poml"/></poml>')
    calls: list[str] = []

    def changed_meanwhile(markup: str, base: Path) -> variables.Inference:
        found = variables.infer(markup, base)
        calls.append(markup)
        if len(calls) == 2:  # the first looked for includes, the second read them
            write(part, "<p>{{y}}</p>")
        return found

    monkeypatch.setattr("pomlflow.template.infer", changed_meanwhile)
    template = Template(path=file)
    assert len(calls) == 2
    assert template.inference.variables == ("y",)


def test_threads_share_a_template_while_its_file_changes(folder: Path) -> None:
    file = write(folder / "a.poml", "<p>{{x}} v0</p>")
    template = Template(path=file)
    seen: list[str] = []

    def work(number: int) -> None:
        seen.extend(text(template, x=number) for _ in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for version in range(1, 6):
        write(folder / "new.poml", f"<p>{{{{x}}}} v{version}</p>").replace(file)
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert {entry.split(" v")[0] for entry in seen} == {"0", "1", "2", "3"}
    assert text(template, x=1) == "1 v5"


# --- copies ---


def test_copies_are_equal_and_render_alike(folder: Path) -> None:
    options = {"name": "n", "stylesheet": {"p": {"syntax": "json"}}, "chat": False, "register": True}
    for template in (
        Template(HELLO),
        Template(HELLO, base_dir=folder, **options),
        Template(path=write(folder / "a", HELLO)),
    ):
        for one in (pickle.loads(pickle.dumps(template)), copy.deepcopy(template), copy.copy(template)):
            assert one == template
            assert text(one, name="Ada") == text(template, name="Ada")
    assert Template(HELLO) != Template(HELLO, name="n")
    assert Template(HELLO) != Template(HELLO, chat=False)
    assert Template(HELLO) != HELLO
    with pytest.raises(TypeError, match="unhashable"):
        hash(Template(HELLO))


def test_the_stylesheet_is_the_templates_own(folder: Path) -> None:
    stylesheet = {"p": {"syntax": "json"}}
    template = Template(HELLO, stylesheet=stylesheet)
    before = text(template, name="Ada")
    stylesheet.clear()
    assert text(template, name="Ada") == before == '"Hello Ada"'
    assert template.render({"name": "Ada"}).stylesheet == {"p": {"syntax": "json"}}


# --- what a render tells ---


def test_a_record_tells_all(folder: Path) -> None:
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
    assert (record.engine, record.poml_version) == ("warm", engine.poml_version())
    assert record.static == {"runtime"}
    assert isinstance(record.start_ns, int)
    assert isinstance(record.end_ns, int)
    assert before <= record.start_ns < record.end_ns
    assert record.end_ns - record.start_ns <= after - before + 10**6


async def test_records_follow_each_other_in_time() -> None:
    template = Template(HELLO)
    records = [template.render({"name": 1}), await template.arender({"name": 2}), template.render({})]
    times = [time for record in records for time in (record.start_ns, record.end_ns)]
    # The wall clock's steps may be as long as a render; a duration is measured on the finer clock.
    assert all(later - earlier > -(10**7) for earlier, later in itertools.pairwise(times))
    assert all(record.start_ns < record.end_ns for record in records)


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
            f"{file}: the template needs the variables a, c; given: b. Pass it, or guard it in the template: "
            "{{ typeof a === 'undefined' ? '' : a }}"
        )
        assert (record.output, record.variables, record.digest) == (None, {"b": 1}, template.digest)
        assert record.start_ns < record.end_ns
        with pytest.raises(KeyError, match="needs the variables a, c"):
            record.result()


def test_a_failed_render_is_a_record(folder: Path) -> None:
    file = write(folder / "a.poml", "<poml>\n  <p>{{ x.y.z }}</p>\n</poml>")
    record = Template(path=file).render({"x": {}})
    assert isinstance(record.error, RenderError)
    assert (record.error.file, record.error.line) == (str(file), 2)
    assert (record.output, record.variables) == (None, {"x": {}})


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
    [("my-key", "my-key"), ("my-key", "(my-key)"), ("class", "class"), ("class", "class.name"), ("new", " new ")],
)
def test_a_name_that_is_no_identifier_is_refused_where_the_template_tries_it(name: str, expression: str) -> None:
    record = Template(f"<p>{{{{{expression}}}}}</p>").render({name: 1, "my": 2, "key": 3})
    assert isinstance(record.error, VariableError)
    assert record.error.variable == name
    assert f"the variable {name!r} is no plain JavaScript identifier" in str(record.error)


@pytest.mark.parametrize(
    ("name", "expression"),
    [("new", "new Date(0).getTime()"), ("in", "'a' in {a: 1}"), ("class", "x.class"), ("key", "x['my-key']")],
)
def test_reserved_words_in_their_own_sense_are_no_variables(name: str, expression: str) -> None:
    record = Template(f"<p>{{{{ {expression} }}}}</p>").render({name: 1, "x": {}})
    assert record.error is None


def test_an_extra_variable_without_a_form_in_json_is_left_out() -> None:
    """Its name may be part of other words, and of properties."""
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


def test_nothing_is_logged_for_all_that(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="pomlflow"):
        Template(HELLO).render({"name": "Ada", "extra": object()})
        Template(HELLO).render({})
    assert caplog.records == []
