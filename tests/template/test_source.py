"""A template reads changed files again; each render calls `os.stat` once per file."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.templates import HELLO, sha, text, write

from pomlflow.exceptions import RenderError
from pomlflow.record import PromptFile, content_digest
from pomlflow.template import Template
from pomlflow.template import inference as variables


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were passed to `os.stat`, in order."""
    seen: list[str] = []
    real = os.stat

    def counted(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        seen.append(os.fspath(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", counted)
    return seen


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


def test_a_replaced_file_of_the_same_size_and_time_is_recognised(folder: Path) -> None:
    """Editors and deployments put a new file in the old one's place."""
    file = write(folder / "a.poml", "<p>1</p>")
    template, stamp = Template(path=file), file.stat()
    other = write(folder / "b.poml", "<p>2</p>")
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(file)
    assert text(template) == "2"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no time of the last change that a copy cannot set")
def test_a_file_that_is_written_over_with_its_old_time_is_read_again(folder: Path) -> None:
    """Deployments with one time for all files overwrite a file with one of the same size."""
    file = write(folder / "a.poml", "<p>1</p>")
    template, stamp = Template(path=file), file.stat()
    file.write_text("<p>2</p>", encoding="utf-8")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
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
    assert len(caplog.records) == 1


def test_content_given_with_a_missing_file_replaces_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As for a copy of a template that is unpickled on another machine."""
    template = Template(HELLO, path="missing.poml")
    assert text(template, name="Ada") == "Hello Ada"
    assert "its last content stays" in caplog.text
    write(folder / "missing.poml", "<p>here</p>")
    assert text(template) == "here"


def test_a_render_calls_stat_once_for_each_file(folder: Path, stats: list[str]) -> None:
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

    monkeypatch.setattr("pomlflow.template.template.infer", changed_meanwhile)
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


def test_a_picture_and_a_document_are_part_of_the_content(folder: Path) -> None:
    """A version that names a picture is another one with another picture; paths chosen by variables are not part."""
    write(folder / "data.json", "[]")
    file = write(folder / "a.poml", '<let name="data" src="data.json"/><document src="note.txt"/><img src="{{logo}}"/>')
    write(folder / "note.txt", "first")
    template = Template(path=file)
    first = template.current()
    assert [one.path for one in first.files] == ["data.json", "note.txt"]
    assert first.digest == content_digest(first.source, first.files)

    write(folder / "note.txt", "second")
    second = template.current()
    assert second.digest != first.digest
    assert [one.sha256 for one in second.files] == [sha("[]"), sha("second")]
    assert template.current() is second


def test_a_record_lists_the_files_of_its_content(folder: Path) -> None:
    write(folder / "parts" / "head.poml", "<p>Hello</p>")
    record = Template(path=write(folder / "a.poml", '<include src="parts/head.poml"/>')).render({})
    assert record.files == (PromptFile("parts/head.poml", sha("<p>Hello</p>"), folder / "parts" / "head.poml", folder),)
    assert record.digest == content_digest(record.source, record.files)
