"""Prompts' names: of the place of a file, the same on every machine, and never one for two files in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.templates import HELLO, write

from pomlflow.template import Template
from pomlflow.template.names import registry_name


def named(file: Path, **options: str) -> tuple[str | None, str | None]:
    template = Template(path=file, **options)
    return template.name, template.relative


def test_two_files_of_one_name_outside_get_two_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two, three = (write(tmp_path / place / "q.poml", HELLO) for place in ("a", "b", "c/b"))
    assert named(one) == ("q", "q.poml")
    assert named(two) == ("b.q", "b/q.poml")
    assert named(three) == ("c.b.q", "c/b/q.poml")
    assert [named(file) for file in (one, two, three)] == [
        ("q", "q.poml"),
        ("b.q", "b/q.poml"),
        ("c.b.q", "c/b/q.poml"),
    ]
    assert caplog.records == []


def test_a_file_that_moved_keeps_its_name(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "q.poml", HELLO)
    assert named(one) == ("q", "q.poml")
    one.unlink()
    assert named(write(tmp_path / "b" / "q.poml", HELLO)) == ("q", "q.poml")


def test_a_link_is_the_file_itself(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "q.poml", HELLO)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "q.poml").symlink_to(one)
    assert named(one) == named(tmp_path / "b" / "q.poml") == ("q", "q.poml")


def test_files_under_the_working_folder_go_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [write(tmp_path / place / "q.poml", HELLO) for place in ("a", "b")]
    assert [named(file) for file in files] == [("a.q", "a/q.poml"), ("b.q", "b/q.poml")]


def test_a_name_given_to_two_files_is_told_once_with_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It holds: one may be about to replace the other, and contents are versions by their digest."""
    one, two = (write(tmp_path / place / "q.poml", HELLO) for place in ("a", "b"))
    for _ in range(3):
        assert [named(file, name="greet")[0] for file in (one, two)] == ["greet", "greet"]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(one) in warning.getMessage()
    assert str(two) in warning.getMessage()


def test_a_prompt_that_moves_into_another_file_keeps_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = write(tmp_path / "a" / "q.poml", HELLO)
    named(one, name="greet")
    one.unlink()
    assert named(write(tmp_path / "b" / "q.poml", HELLO), name="greet")[0] == "greet"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("support/what now?", "support.what-now"),
        ("prüfung/é té", "prufung.e-te"),
        ("名", "prompt-51a5d681a99c"),
        ("files/名", "files-af486ff89b71"),
        ("", None),
    ],
)
def test_names_are_spelled_as_the_registry_allows(text: str, name: str | None) -> None:
    assert registry_name(text) == name


def test_names_of_other_letters_stay_apart() -> None:
    names = [registry_name(f"files/{text}") for text in ("名", "字", "名字", "é", "e")]
    assert len(set(names[:3])) == 3
    assert names[3:] == ["files.e", "files.e"]  # two files of one name are told apart by their paths
