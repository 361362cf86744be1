"""Files that are not what a template takes them for: other encodings, archives whose headers lie, pipes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.cases import FOLDER

import pomlflow
from pomlflow.settings import settings

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")


@pytest.fixture(params=[True, False], ids=["sandbox", "no sandbox"], scope="module", autouse=True)
def sandbox(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Without the sandbox Node reads the files itself."""
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
    shown = error(markup)
    assert "it is a pipe or a device, not a file" in shown or "part.poml" in shown


def test_a_file_that_no_render_can_hold_is_refused() -> None:
    with Path("large.csv").open("wb") as file:
        file.truncate(600_000_000)
    shown = error('<table src="{{name}}"/>', name="large.csv")
    assert "large.csv" in shown
    assert "it has 600 MB, and a render reads at most 500 MB" in shown


DOCUMENTS = {
    "report.docx": ('<document src="report.docx" multimedia="false"/>', "word/document.xml"),
    "staff.xlsx": ('<table src="staff.xlsx"/>', "xl/worksheets/sheet1.xml"),
}
documents = pytest.mark.parametrize(
    ("name", "markup", "part"), [(name, *given) for name, given in DOCUMENTS.items()], ids=DOCUMENTS
)


@documents
def test_a_document_that_unpacks_to_more_than_a_render_may_hold_is_named(name: str, markup: str, part: str) -> None:
    packed = zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(FOLDER / "assets" / name) as whole, packed as large:
        for entry in whole.infolist():
            if entry.filename != part:
                large.writestr(entry, whole.read(entry))
        with large.open(part, "w") as file:
            for _ in range(26):
                file.write(bytes(10_000_000))
    assert f"{name} unpacks to more than 256 MB" in error(markup)
    parser = "docx" if name.endswith("docx") else "excel"
    if parser == "docx":
        shown = error('<document buffer="{{given}}" parser="docx"/>', given=Path(name).read_bytes())
        assert "the document unpacks to more than 256 MB" in shown


def lie(name: str, size: int, headers: str) -> None:
    """Write a document whose headers say that each part unpacks to `size` bytes."""
    content = bytearray((FOLDER / "assets" / name).read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        if headers != "local":
            struct.pack_into("<I", content, at + 24, size)
        if headers != "central":
            struct.pack_into("<I", content, struct.unpack_from("<I", content, at + 42)[0] + 22, size)
    Path(name).write_bytes(content)


@pytest.mark.parametrize("size", [1, 0x7FFFFFFF, 0xFFFFFFFE])
@documents
def test_a_document_whose_headers_lie_is_named(name: str, markup: str, part: str, size: int) -> None:
    lie(name, size, "both")
    shown = error(markup)
    assert f"{name}: " in shown
    assert f"its header says {size}: it is damaged" in shown


@pytest.mark.parametrize("size", [1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_spreadsheets_own_headers_are_compared_too(size: int) -> None:
    """Those that stand before the data, which its reader takes for true."""
    lie("staff.xlsx", size, "local")
    assert "staff.xlsx: [Content_Types].xml has 608 bytes unpacked" in error('<table src="staff.xlsx"/>')


def test_a_document_in_zip64_form_is_read_where_poml_can() -> None:
    """Programs that write as they go make such archives; POML reads those of .docx alone."""
    for name in DOCUMENTS:
        with zipfile.ZipFile(FOLDER / "assets" / name) as whole, zipfile.ZipFile(name, "w") as other:
            for entry in whole.infolist():
                info = zipfile.ZipInfo(entry.filename)
                info.compress_type = zipfile.ZIP_DEFLATED
                with other.open(info, "w", force_zip64=True) as file:
                    file.write(whole.read(entry))
    markup = DOCUMENTS["report.docx"][0]
    shown = pomlflow.render(markup, {})
    shutil.copy(FOLDER / "assets" / "report.docx", "report.docx")
    assert shown == pomlflow.render(markup, {})
    assert "zip64): save it anew" in error('<table src="staff.xlsx"/>')
