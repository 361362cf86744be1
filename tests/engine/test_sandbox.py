"""What a template may read: its own folder's tree, the prompt root, the working folder, and what the user allows."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests import rendering
from tests.corpus.cases import FOLDER

from pomlflow import engine, settings
from pomlflow.engine.file_access import FileAccess
from pomlflow.exceptions import RenderError

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
SECRET = "the neighbour's secret"


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a working folder of its own, and with the settings put back."""
    monkeypatch.setattr(settings, "_current", settings.settings())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The template's folder, with a secret in the one next to it."""
    (tmp_path / "home" / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.txt").write_text(SECRET, encoding="utf-8")
    (tmp_path / "home" / "note.txt").write_text("a note", encoding="utf-8")
    (tmp_path / "home" / "inner" / "note.txt").write_text("an inner note", encoding="utf-8")
    for folder in ("home", "other"):
        for asset in ("box.png", "report.docx", "report.pdf"):
            shutil.copy(FOLDER / "assets" / asset, tmp_path / folder / asset)
    return tmp_path / "home"


def read(home: Path, markup: str, **variables: Any) -> str:
    output = rendering.render(markup, variables, path=str(home / "prompt.poml"))
    return str(output["messages"][0]["content"])


def refused(home: Path, markup: str, **variables: Any) -> str:
    with pytest.raises(RenderError) as failed:
        read(home, markup, **variables)
    assert SECRET not in str(failed.value)
    return str(failed.value)


DOCUMENT = '<document src="{{path}}" parser="txt"/>'


# --- which folders


@pytest.mark.parametrize("path", ["note.txt", "inner/note.txt", "./inner/../note.txt"])
def test_the_templates_own_tree_is_read(path: str, home: Path) -> None:
    assert "note" in read(home, DOCUMENT, path=path)
    assert "note" in read(home, DOCUMENT, path=str(home / path))


def test_the_working_folder_and_the_prompt_root_are_read(home: Path, tmp_path: Path) -> None:
    """The working folder as it is at the render."""
    (tmp_path / "work" / "a.txt").write_text("of the working folder", encoding="utf-8")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "b.txt").write_text("of the prompt root", encoding="utf-8")
    assert read(home, DOCUMENT, path=str(tmp_path / "work" / "a.txt")) == "of the working folder"
    refused(home, DOCUMENT, path=str(tmp_path / "root" / "b.txt"))
    settings.configure(prompt_root=tmp_path / "root")
    assert read(home, DOCUMENT, path=str(tmp_path / "root" / "b.txt")) == "of the prompt root"
    os.chdir(tmp_path / "root")
    refused(home, DOCUMENT, path=str(tmp_path / "work" / "a.txt"))


def test_what_is_elsewhere_is_refused_with_both_remedies(home: Path, tmp_path: Path) -> None:
    message = refused(home, DOCUMENT, path="../other/secret.txt")
    other = str(tmp_path / "other")
    assert f"pomlflow.configure(allow_read=[{other!r}])" in message
    assert "pomlflow.configure(sandbox=False)" in message
    assert str(home) in message


def test_a_folder_that_was_allowed_is_read(home: Path, tmp_path: Path) -> None:
    settings.configure(allow_read=[tmp_path / "other"])
    assert read(home, DOCUMENT, path="../other/secret.txt") == SECRET
    settings.configure(allow_read=[])
    refused(home, DOCUMENT, path="../other/secret.txt")


def test_the_environment_allows_folders_and_lifts_the_sandbox(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POMLFLOW_ALLOW_READ", os.pathsep.join([str(tmp_path / "nowhere"), str(tmp_path / "other")]))
    monkeypatch.setattr(settings, "_current", None)
    assert read(home, DOCUMENT, path="../other/secret.txt") == SECRET
    monkeypatch.delenv("POMLFLOW_ALLOW_READ")
    monkeypatch.setenv("POMLFLOW_SANDBOX", "0")
    monkeypatch.setattr(settings, "_current", None)
    assert settings.settings().sandbox is False


def test_without_the_sandbox_everything_is_read(home: Path, js: Callable[[str], str]) -> None:
    """Node's modules are available too. With the sandbox again they are not, since another process renders."""
    settings.configure(sandbox=False)
    assert read(home, DOCUMENT, path="../other/secret.txt") == SECRET
    seen = js("return typeof process.getBuiltinModule('fs').readFileSync")
    assert read(home, seen) == "function"
    settings.configure(sandbox=True)
    refused(home, DOCUMENT, path="../other/secret.txt")
    assert "blocked by the sandbox" in refused(home, seen)


def test_reading_the_counters_changes_nothing() -> None:
    """A changed setting replaces the engine at the next render, and not before."""
    rendering.render("<p>Hello</p>", {})
    before = engine.stats()
    settings.configure(sandbox=False)
    assert (engine.stats().pids, engine.stats().rendered) == (before.pids, before.rendered)


@posix
def test_the_root_of_the_file_system_counts_only_where_it_is_named(home: Path, tmp_path: Path) -> None:
    """In a container the working folder is often /; /proc/self/environ lies under it, and is this process's."""
    os.chdir("/")
    refused(home, DOCUMENT, path="/proc/self/environ")
    refused(home, DOCUMENT, path=str(tmp_path / "other" / "secret.txt"))
    settings.configure(allow_read=["/"])
    assert read(home, DOCUMENT, path=str(tmp_path / "other" / "secret.txt")) == SECRET


# --- by which paths and elements


@posix
def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_read(home: Path, tmp_path: Path) -> None:
    (home / "out.txt").symlink_to(tmp_path / "other" / "secret.txt")
    (home / "folder").symlink_to(tmp_path / "other")
    (home / "in.txt").symlink_to(home / "note.txt")
    message = refused(home, DOCUMENT, path="out.txt")
    assert f"a link to {str(tmp_path / 'other' / 'secret.txt')!r}, may not be read" in message
    assert f"allow_read=[{str(tmp_path / 'other')!r}]" in message
    refused(home, DOCUMENT, path="folder/secret.txt")
    refused(home, DOCUMENT, path="folder/../other/secret.txt")
    assert read(home, DOCUMENT, path="in.txt") == "a note"


@posix
def test_a_template_that_is_a_link_reads_where_the_link_is(home: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(home)
    output = rendering.render(DOCUMENT, {"path": "note.txt"}, path=str(tmp_path / "linked" / "prompt.poml"))
    assert output["messages"][0]["content"] == "a note"


@pytest.mark.parametrize(
    "spelled",
    [
        "{other}/secret.txt",
        "../other/secret.txt",
        "inner/../../other/secret.txt",
        "././../other/./secret.txt",
        "..//other//secret.txt",
        "file://{other}/secret.txt",
        "file:{other}/secret.txt",
        "//{other}/secret.txt",
        "/proc/self/root{other}/secret.txt",
        "{other}/../other/secret.txt",
        "{home}/../other/secret.txt",
        "{home}x/../other/secret.txt",
        "..\\other\\secret.txt",
        "\\\\host\\share\\secret.txt",
        "{other}/secret.txt\0.png",
        "/dev/fd/0",
        "~/secret.txt",
    ],
)
def test_no_spelling_leads_out(spelled: str, home: Path, tmp_path: Path) -> None:
    assert refused(home, DOCUMENT, path=spelled.format(other=tmp_path / "other", home=home))


def test_a_sibling_folder_with_the_same_prefix_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "homely").mkdir()
    (tmp_path / "homely" / "note.txt").write_text(SECRET, encoding="utf-8")
    assert "disable the sandbox" in refused(home, DOCUMENT, path="../homely/note.txt")


def test_paths_are_case_sensitive(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "HOME"
    if other.exists():
        pytest.skip("this file system knows no case")
    shutil.copytree(tmp_path / "other", other)
    for path in ("../HOME/secret.txt", str(other / "secret.txt"), str(home / ".." / "HOME" / "secret.txt")):
        assert "disable the sandbox" in refused(home, DOCUMENT, path=path)


EVERY = {
    "document": '<document src="{{path}}" parser="txt"/>',
    "document by its end": '<document src="{{path}}"/>',
    "pdf": '<document src="{{path}}" parser="pdf"/>',
    "docx": '<document src="{{path}}" parser="docx"/>',
    "image": '<img src="{{path}}"/>',
    "audio": '<audio src="{{path}}" syntax="multimedia"/>',
    "table": '<table src="{{path}}" parser="csv"/>',
    "xlsx": '<table src="{{path}}" parser="excel"/>',
    "webpage": '<webpage src="{{path}}"/>',
    "folder": '<folder src="{{path}}"/>',
    "include": '<include src="PATH"/>',
    "let": '<let name="x" src="PATH" type="string"/><p>{{x}}</p>',
}


@pytest.mark.parametrize("markup", EVERY.values(), ids=EVERY)
def test_every_file_reading_element_is_sandboxed(markup: str, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in (other / "secret.txt", other / "box.png", other / "report.docx", other / "missing.txt", other):
        message = refused(home, f"<poml>{markup.replace('PATH', str(path))}</poml>", path=str(path))
        assert "allow_read" in message or "Cannot determine parser" in message


def test_an_error_does_not_reveal_which_files_exist_elsewhere(home: Path, tmp_path: Path) -> None:
    """Files that exist and files that do not are refused with the same message."""
    for markup in ('<img src="{{path}}"/>', DOCUMENT):
        there, missing = (
            refused(home, markup, path=str(tmp_path / "other" / name)).replace(name, "NAME")
            for name in ("box.png", "xyz.png")
        )
        assert there == missing


def test_a_text_that_is_a_path_is_that_text(home: Path, tmp_path: Path) -> None:
    """poml.poml() reads the file if a value is its path; here a value is only text."""
    secret = str(tmp_path / "other" / "secret.txt")
    assert read(home, "<p>{{path}}</p>", path=secret) == secret
    assert read(home, '<document buffer="{{path}}" parser="txt"/>', path=secret) == secret


@posix
def test_a_pipe_or_a_device_is_not_waited_for(home: Path) -> None:
    os.mkfifo(home / "pipe")
    (home / "zero").symlink_to("/dev/zero")
    assert "it is a pipe or a device, not a file" in refused(home, DOCUMENT, path="pipe")
    refused(home, DOCUMENT, path="zero")


def test_failures_have_nodes_own_messages(home: Path) -> None:
    assert f"ENOENT: no such file or directory, stat '{home / 'none.txt'}'" in refused(home, DOCUMENT, path="none.txt")
    assert "EISDIR: illegal operation on a directory, read" in refused(home, DOCUMENT, path="inner")


def test_pictures_that_name_other_files_show_none_of_them(home: Path, tmp_path: Path) -> None:
    """An SVG can name other files, which sharp's native code would load from the file's folder."""
    image = f"<image href='file://{tmp_path / 'other' / 'box.png'}' width='12' height='8'/>"
    head = "<svg xmlns='http://www.w3.org/2000/svg' width='12' height='8'>"
    pictures = []
    for content in (image, ""):
        (home / "a.svg").write_text(f"{head}{content}</svg>", encoding="utf-8")
        pictures.append(read(home, '<img src="a.svg" type="png"/>'))
    assert pictures[0] == pictures[1]


# --- for which templates


def test_folders_hold_for_one_render_though_the_process_is_shared(
    home: Path, tmp_path: Path, worker: Callable[[], int]
) -> None:
    """Two templates in two folders render in turns in several threads: each reads its own folder, in one process."""
    before = worker()
    other = tmp_path / "other"

    def one(_: int) -> None:
        assert read(home, DOCUMENT, path=str(home / "note.txt")) == "a note"
        assert read(other, DOCUMENT, path=str(other / "secret.txt")) == SECRET
        refused(home, DOCUMENT, path=str(other / "secret.txt"))
        with pytest.raises(RenderError, match="may not be read"):
            read(other, DOCUMENT, path=str(home / "note.txt"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(20)))
    assert worker() == before


def test_a_template_that_is_not_trusted_reads_its_roots_only(home: Path, tmp_path: Path) -> None:
    """It reads neither the working folder nor what the user allows for trusted templates."""
    settings.configure(allow_read=[tmp_path])
    (tmp_path / "work" / "a.txt").write_text(SECRET, encoding="utf-8")
    for roots, path, fine in (
        ((), home / "note.txt", False),
        ((str(home),), home / "note.txt", True),
        ((str(home),), tmp_path / "work" / "a.txt", False),
        ((str(home / "inner"),), home / "note.txt", False),
    ):
        markup = f'<document src="{path}" parser="txt"/>'
        request = engine.Request(markup, path=str(home / "<inline>.poml"), roots=roots)
        if fine:
            assert engine.run(request).output["messages"][0]["content"] == "a note"
        else:
            with pytest.raises(RenderError, match="this template is not trusted and may read"):
                engine.run(request)


def test_error_excerpts_are_not_read_from_refused_files(home: Path, tmp_path: Path) -> None:
    files = FileAccess(engine.Request("<p/>", path=str(home / "prompt.poml")))
    assert files.text(str(tmp_path / "other" / "secret.txt")) is None
    assert files.text(str(home / "note.txt")) == "a note"


def test_images_work_in_the_sandbox(home: Path) -> None:
    """Node's permissions do not restrict sharp, which is native code: POML gets only four of its methods."""
    assert "iVBORw0KGgo" in read(home, '<img src="box.png"/>')
    assert "iVBORw0KGgo" in read(home, '<img src="box.png" type="png" maxWidth="4"/>')
    assert "/9j/" in read(home, '<img src="box.png" type="jpeg"/>')


def test_a_path_with_half_an_emoji_is_a_path_of_no_file(home: Path) -> None:
    """An expression can make such a path; Python's JSON parser refuses it."""
    assert "ENOENT" in refused(home, '<document src="{{String.fromCharCode(0xd83d)}}.txt" parser="txt"/>')
