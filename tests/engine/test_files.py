"""Files that are not what a template takes them for: other encodings, documents that unpack to gigabytes, pipes."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.cases import FOLDER

import pomlflow
from pomlflow import engine
from pomlflow.exceptions import RenderTimeoutError
from pomlflow.settings import settings

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")


@pytest.fixture(params=[True, False], ids=["sandbox", "no sandbox"], scope="module", autouse=True)
def sandbox(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Without the sandbox too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), sandbox=request.param))
        yield request.param


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(markup: str, **variables: Any) -> str:
    """The text of the message."""
    (message,) = pomlflow.render(markup, variables, format="message_dict")
    assert isinstance(message["content"], str)
    return message["content"]


def error(markup: str, **variables: Any) -> str:
    with pytest.raises(pomlflow.RenderError) as caught:
        pomlflow.render(markup, variables)
    return str(caught.value)


# The markup that reads a file of text, by the file's name, and a content for it.
READERS = {
    "data.json": ('<poml><let name="d" src="data.json"/><p>{{d.a}}</p></poml>', '{"a": "é"}'),
    "data.txt": ('<poml><let name="d" src="data.txt" type="string"/><p>{{d}}</p></poml>', "aé"),
    "table.csv": ('<table src="table.csv"/>', "a,b\n1,é\n"),
    "table.tsv": ('<table src="table.tsv"/>', "a\tb\n1\té\n"),
    "table.json": ('<table src="table.json"/>', '[{"a": "é"}]'),
    "table.jsonl": ('<table src="table.jsonl"/>', '{"a": "é"}\n{"a": "2"}'),
    "note.txt": ('<document src="note.txt"/>', "aé"),
    "page.html": ('<webpage src="page.html"/>', "<html><body><p>aé</p></body></html>"),
    "part.poml": ('<poml><include src="part.poml"/></poml>', "<p>aé</p>"),
    "shown.md": ('<folder src="." filter="shown.md" showContent="true"/>', "aé"),
}
files = pytest.mark.parametrize(
    ("name", "markup", "content"), [(name, *given) for name, given in READERS.items()], ids=READERS
)


@files
def test_a_byte_order_mark_is_no_part_of_the_text(name: str, markup: str, content: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    without = text(markup)
    assert "é" in without
    Path(name).write_text(content, encoding="utf-8-sig")
    assert text(markup) == without


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030", "utf-16", "utf-16-be"])
@files
def test_a_file_of_another_encoding_is_an_error_with_its_place(
    name: str, markup: str, content: str, encoding: str
) -> None:
    encoded = content.encode(encoding)
    Path(name).write_bytes(encoded)
    wrong = 0 if encoding.startswith("utf-16") else encoded.index("é".encode(encoding))
    line = encoded.count(b"\n", 0, wrong) + 1
    column = wrong - (encoded.rfind(b"\n", 0, wrong) + 1) + 1
    shown = error(markup)
    assert f"{name}:{line}:{column}" in shown
    assert "the file is not UTF-8" in shown
    assert "Save it as UTF-8" in shown
    assert ("looks like UTF-16" in shown) == encoding.startswith("utf-16")


def test_a_replacement_character_in_a_file_stays_one() -> None:
    Path("note.txt").write_text("a\ufffdb", encoding="utf-8")
    assert text('<document src="note.txt"/>') == "a\ufffdb"
    Path("note.txt").write_bytes("a\ufffdb\nc".encode() + b"\xff")
    assert "note.txt:2:2: the file is not UTF-8: its byte 8 is 0xff" in error('<document src="note.txt"/>')
    Path("note.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    assert "note.txt:1:3: the file is not UTF-8: its byte 6 is 0xff" in error('<document src="note.txt"/>')


@posix
@pytest.mark.parametrize(
    "markup",
    [
        *(markup for markup, _ in READERS.values()),
        '<img src="picture.png"/>',
        '<img src="picture.png" maxWidth="8"/>',
        '<audio src="sound.mp3" syntax="multimedia"/>',
        '<document src="report.docx"/>',
        '<document src="report.pdf"/>',
        '<table src="table.xlsx"/>',
    ],
)
def test_a_pipe_is_not_waited_for(folder: Path, markup: str) -> None:
    for name in (*READERS, "picture.png", "sound.mp3", "report.docx", "report.pdf", "table.xlsx"):
        os.mkfifo(folder / name)
    assert "it is a pipe or a device, not a file" in error(markup)


@posix
@pytest.mark.parametrize("argument", ["context", "stylesheet"])
def test_a_pipe_as_context_or_stylesheet_is_not_waited_for(folder: Path, argument: str) -> None:
    os.mkfifo(folder / "data.json")
    with pytest.raises(pomlflow.ConfigurationError, match="not a regular file"):
        pomlflow.poml("<p>a</p>", **{argument: "data.json"})


@pytest.mark.parametrize("argument", ["context", "stylesheet"])
def test_a_context_or_stylesheet_of_another_encoding_is_an_error_with_its_place(folder: Path, argument: str) -> None:
    (folder / "data.json").write_bytes('{"p": "é"}'.encode("latin-1"))
    with pytest.raises(pomlflow.RenderError, match=r"data.json:1:8: the file is not UTF-8"):
        pomlflow.poml("<p>a</p>", **{argument: "data.json"})


@posix
@pytest.mark.parametrize("markup", ["<img src='/etc/hostname'/>", "<audio src='/etc/hostname' syntax='multimedia'/>"])
def test_media_that_may_not_be_read_are_not_called_missing(sandbox: bool, markup: str) -> None:
    if not sandbox:
        pytest.skip("every file may be read")
    shown = error(markup)
    assert "reading '/etc/hostname' is not allowed" in shown
    assert "allow_read=['/etc']" in shown


@posix
def test_a_prompt_that_is_a_link_to_itself_is_named(folder: Path) -> None:
    (folder / "loop.poml").symlink_to("loop.poml")
    with pytest.raises(pomlflow.TemplateNotFoundError, match=r"loop\.poml"):
        pomlflow.render(folder / "loop.poml")


def test_a_file_that_no_render_can_hold_is_refused() -> None:
    with Path("large.csv").open("wb") as file:
        file.truncate(600_000_000)
    shown = error('<table src="{{name}}"/>', name="large.csv")
    assert "large.csv" in shown
    assert "it has 600 MB, and a render reads at most 500 MB" in shown


def packed_pdf(size: int) -> bytes:
    """A PDF of one page, whose content unpacks to so many bytes."""
    content = zlib.compress(b"BT (x) Tj ET ".ljust(64) * (size // 64), 1)
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%b\nendstream" % (len(content), content),
    ]
    whole = b"%PDF-1.4\n" + b"".join(b"%d 0 obj%b\nendobj\n" % (at, part) for at, part in enumerate(parts, 1))
    return whole + b"trailer<</Size 5/Root 1 0 R>>\n%%EOF"


def packed_docx(size: int) -> bytes:
    """A .docx whose text unpacks to so many bytes."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(FOLDER / "assets" / "report.docx") as whole,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as large,
    ):
        for entry in whole.infolist():
            large.writestr(entry, whole.read(entry))
            if entry.filename == "word/document.xml":
                large.writestr(entry, whole.read(entry).replace(b"</w:body>", b"<w:p/>" * (size // 6) + b"</w:body>"))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("name", "make"), [("report.pdf", packed_pdf), ("report.docx", packed_docx)])
def test_a_document_that_unpacks_to_a_hundred_megabytes_is_named(name: str, make: Callable[[int], bytes]) -> None:
    """The limits of the process hold, and the error names what it had read."""
    markup = f'<document src="{name}" multimedia="false"/>'
    shutil.copy(FOLDER / "assets" / name, name)
    engine.run(engine.Request(markup, path=os.path.abspath("x.poml")))  # noqa: PTH100 - loads what reads it
    Path(name).write_bytes(make(100_000_000))
    with pytest.raises(RenderTimeoutError, match=rf"it had read '.*{name}'"):
        engine.run(engine.Request(markup, path=os.path.abspath("x.poml")), 0.5)  # noqa: PTH100


def test_a_document_with_false_headers_is_named() -> None:
    """Each part of it declares 4 GB, for which its reader allocates."""
    content = bytearray((FOLDER / "assets" / "staff.xlsx").read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        struct.pack_into("<I", content, struct.unpack_from("<I", content, at + 42)[0] + 22, 0xFFFFFFF0)
    Path("staff.xlsx").write_bytes(content)
    with pytest.raises(pomlflow.PomlError, match=r"staff\.xlsx"):
        pomlflow.render('<table src="staff.xlsx"/>', {})


@posix
def test_a_file_that_becomes_a_link_after_its_check_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, data = folder.parent / "secret.txt", folder / "data.txt"
    secret.write_text("hidden", encoding="utf-8")
    data.write_text("open", encoding="utf-8")

    def replace_by_link(path: str) -> str:
        if path == str(data.resolve()) and not data.is_symlink():
            data.unlink()
            data.symlink_to(secret)
        return ""

    monkeypatch.setattr("pomlflow.engine.file_access._unreadable", replace_by_link)
    shown = error('<poml><let name="d" src="data.txt" type="string"/><p>{{d}}</p></poml>')
    assert data.is_symlink()
    assert "hidden" not in shown


@posix
@pytest.mark.parametrize("times", [1, 100])
def test_a_file_that_an_editor_replaces_while_it_is_read_is_read_again(
    times: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor saves a file by renaming another to its name; one that is always replaced is an error."""
    file = folder / "data.txt"
    file.write_text("version 0", encoding="utf-8")
    opened, real_open = 0, os.open

    def open_and_replace(path: Any, *arguments: Any, **options: Any) -> int:
        nonlocal opened
        descriptor = real_open(path, *arguments, **options)
        if str(path).endswith("data.txt") and opened < times:
            opened += 1
            saved = folder / "saved"
            saved.write_text(f"version {opened}", encoding="utf-8")
            saved.replace(file)
        return descriptor

    markup = READERS["data.txt"][0]
    with monkeypatch.context() as patch:
        patch.setattr("pomlflow.engine.file_access.os.open", open_and_replace)
        result = text(markup) if times == 1 else error(markup)
    assert ("version 1" if times == 1 else "EACCES") in result
