"""A template: its markup, folder, digest, name and copies."""

from __future__ import annotations

import codecs
import copy
import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.templates import HELLO, sha, text, write

from pomlflow import configure
from pomlflow.exceptions import (
    PomlError,
    RenderError,
    TemplateNotFoundError,
)
from pomlflow.template import Template


@pytest.fixture
def prompt_root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    configure(prompt_root=root)
    return root


# --- where the markup comes from ---


def test_markup_is_never_a_path(folder: Path) -> None:
    write(folder / "hello.poml", HELLO)
    for markup in ("hello.poml", "./hello.poml", str(folder / "hello.poml")):
        assert text(Template(markup)) == markup
    assert text(Template(path="hello.poml"), name="Ada") == "Hello Ada"


def test_a_missing_file_is_reported_at_construction(folder: Path) -> None:
    with pytest.raises(TemplateNotFoundError, match="cannot read the template") as caught:
        Template(path="missing.poml")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, PomlError)
    assert caught.value.filename == str(folder / "missing.poml")
    assert "from_template" in str(caught.value)


def test_a_folder_is_no_template(folder: Path) -> None:
    with pytest.raises(TemplateNotFoundError):
        Template(path=folder)


def test_a_template_needs_markup_or_a_path() -> None:
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


@pytest.mark.parametrize(
    ("content", "line", "column", "named"),
    [
        ("<p>x</p>\n<p>😀 café</p>".encode().replace("é".encode(), b"\xe9"), 2, 9, "byte 21 is 0xe9"),
        ("<p>你好</p>".encode("gbk"), 1, 4, "byte 4 is 0xc4"),
        ("<p>Hello</p>".encode("utf-16"), 1, 1, "UTF-16"),
        ("<p>Hello</p>".encode("utf-16-be"), 1, 1, "UTF-16"),
    ],
)
def test_a_file_that_is_not_utf_8_is_an_error_with_the_place(
    folder: Path, content: bytes, line: int, column: int, named: str
) -> None:
    (folder / "a.poml").write_bytes(content)
    with pytest.raises(RenderError, match="Save it as UTF-8") as caught:
        Template(path="a.poml")
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(folder / "a.poml"), line, column)
    assert named in str(caught.value)


def test_an_include_that_is_not_utf_8_is_an_error_of_the_render(folder: Path) -> None:
    (folder / "part.poml").write_bytes(b"<p>caf\xe9</p>")
    template = Template(path=write(folder / "a.poml", '<poml><include src="part.poml"/></poml>'))
    error = template.render({}).error
    assert isinstance(error, RenderError)
    assert (error.file, error.line, error.column) == (str(folder / "a.poml"), 1, 20)
    assert f"{folder / 'part.poml'}:1:7: the file is not UTF-8: its byte 7 is 0xe9" in str(error)
    (folder / "part.poml").write_bytes(codecs.BOM_UTF8 + "<p>café</p>".encode())
    assert text(template) == "café"


def test_a_file_that_is_no_longer_utf_8_keeps_its_last_content(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    template = Template(path=write(folder / "a.poml", "<p>café</p>"))
    (folder / "a.poml").write_bytes(b"<p>caf\xe9!</p>")
    assert text(template) == text(template) == "café"
    (warning,) = caplog.records
    assert "not UTF-8" in warning.getMessage()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_a_template(folder: Path) -> None:
    os.mkfifo(folder / "a.poml")
    with pytest.raises(TemplateNotFoundError, match="a pipe or a device"):
        Template(path="a.poml")


def test_a_byte_order_mark_is_ignored(folder: Path) -> None:
    (folder / "a.poml").write_bytes("\ufeff<p>{{x}} {{y.z}}</p>".encode())
    template = Template(path="a.poml")
    assert text(template, x=1, y={"z": 2}) == "1 2"
    error = template.render({"x": 1, "y": None}).error
    assert str(error).startswith(f"{folder / 'a.poml'}:1:10: ")


def test_any_markup_can_be_constructed() -> None:
    """The render reports what is wrong with it."""
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


def test_inline_markup_without_a_folder_is_in_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the folder for temporary files."""
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
        ("über/naïve.poml", "uber.naive"),
        (".hidden.poml", "hidden"),
        ("a--b_c.poml", "a--b_c"),
    ],
)
def test_a_name_comes_from_the_path_under_the_working_folder(folder: Path, path: str, name: str) -> None:
    template = Template(path=write(folder / path, HELLO))
    assert (template.name, template.trace_path) == (name, path)
    record = template.render({"name": "Ada"})
    assert (record.name, record.path) == (name, path)


def test_a_long_name_is_cut_and_stays_unique() -> None:
    names = {Template(HELLO, name="x" * 300 + end).name for end in "ab"}
    assert len(names) == 2
    assert all(name is not None and len(name) == 256 for name in names)


def test_a_given_name_overrides_the_path_and_is_normalised(folder: Path) -> None:
    assert Template(HELLO, name="Support / answer").name == "Support-.-answer"
    assert Template(path=write(folder / "a.poml", HELLO), name="b").name == "b"


def test_inline_markup_has_no_name() -> None:
    for template in (Template(HELLO), Template(HELLO, name="")):
        record = template.render({"name": "Ada"})
        assert (template.name, template.trace_path, record.name, record.path) == (None, None, None, None)


def test_names_are_relative_to_the_prompt_root(folder: Path, prompt_root: Path) -> None:
    assert Template(path=write(prompt_root / "support" / "a.poml", HELLO)).name == "support.a"
    assert Template(path=write(folder / "elsewhere" / "b.poml", HELLO)).name == "elsewhere.b"


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
    for option in ({"name": "n"}, {"chat": False}, {"stylesheet": {"p": {}}}, {"base_dir": folder}, {"register": True}):
        assert Template(HELLO) != Template(HELLO, **option)
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


def test_a_path_as_markup_is_reported_once_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "once.poml", "<p>Hi</p>")
    for markup in ("once.poml", "once.poml", "other.poml", "a\n.poml", "<p/>.poml"):
        Template(markup)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("'once.poml' looks like the path of a file, which exists, but is used as markup: ")
    assert messages[1].startswith("'other.poml' looks like the path of a file, which does not exist, but is used as ")
    assert all("from_file(path)" in message for message in messages)
