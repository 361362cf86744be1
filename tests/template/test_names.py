"""Names of prompts: from a file's path, the same on every machine; two files of one name are a warning."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.templates import HELLO, write

from pomlflow.exceptions import ConfigurationError
from pomlflow.template import Template
from pomlflow.template.names import registry_name


def named(file: Path, **options: str) -> tuple[str | None, str | None]:
    template = Template(path=file, **options)
    return template.name, template.trace_path


def test_a_file_outside_every_root_is_named_by_its_folder_and_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (write(tmp_path / place / "q.poml", HELLO) for place in ("a", "b"))
    assert [named(file) for file in (one, two, one)] == [("a.q", "a/q.poml"), ("b.q", "b/q.poml"), ("a.q", "a/q.poml")]
    assert caplog.records == []


def test_two_files_outside_every_root_that_share_a_name_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two apps that each have prompts/system.poml, with another working folder."""
    one, two = (write(tmp_path / app / "prompts" / "system.poml", HELLO) for app in ("one", "two"))
    assert [named(file)[0] for file in (one, two)] == ["prompts.system"] * 2
    (warning,) = caplog.records
    assert str(one) in warning.getMessage()
    assert str(two) in warning.getMessage()


@pytest.mark.parametrize("options", [{}, {"name": "p.q"}], ids=["by its path", "given"])
def test_a_moved_file_is_not_reported_as_a_name_clash(
    options: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = write(tmp_path / "a" / "p" / "q.poml", HELLO)
    assert named(one, **options) == ("p.q", "p/q.poml")
    one.unlink()
    assert named(write(tmp_path / "b" / "p" / "q.poml", HELLO), **options) == ("p.q", "p/q.poml")
    assert caplog.records == []


def test_a_link_is_the_file_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = write(tmp_path / "a" / "p" / "q.poml", HELLO)
    (tmp_path / "b" / "p").mkdir(parents=True)
    (tmp_path / "b" / "p" / "q.poml").symlink_to(one)
    assert named(one) == named(tmp_path / "b" / "p" / "q.poml") == ("p.q", "p/q.poml")
    assert caplog.records == []


def test_a_prompt_root_in_pyproject_names_the_files_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from every working folder; the nearest pyproject.toml decides."""
    write(tmp_path / "pyproject.toml", '[tool.pomlflow]\nprompt_root = "src/prompts"\n')
    file = write(tmp_path / "src" / "prompts" / "support" / "q.poml", HELLO)
    other = write(tmp_path / "src" / "other" / "q.poml", HELLO)
    assert named(file) == ("support.q", "support/q.poml")
    assert named(other) == ("other.q", "other/q.poml")
    monkeypatch.chdir(tmp_path)
    assert named(file) == ("support.q", "support/q.poml")
    assert named(other) == ("src.other.q", "src/other/q.poml")
    write(tmp_path / "lib" / "pyproject.toml", "[project]\n")
    assert named(write(tmp_path / "lib" / "q.poml", HELLO)) == ("lib.q", "lib/q.poml")


def test_a_prompt_root_that_is_no_path_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", "[tool.pomlflow]\nprompt_root = 1\n")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml: prompt_root under .* must be a path, got 1"):
        named(write(tmp_path / "q.poml", HELLO))


@pytest.mark.parametrize("settings", ["tool = 3", "[tool]\npomlflow = 3"])
def test_settings_that_are_not_a_table_are_ignored(tmp_path: Path, settings: str) -> None:
    write(tmp_path / "pyproject.toml", settings)
    assert named(write(tmp_path / "a" / "q.poml", HELLO)) == ("a.q", "a/q.poml")


def test_an_unknown_key_in_pyproject_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "pyproject.toml", '[tool.pomlflow]\nprompt_rot = "prompts"\nstrict = true\n')
    for file in ("a/b.poml", "c/d.poml"):
        Template(path=write(tmp_path / file, "<p>Hi</p>"))
    (warning,) = caplog.records
    assert "[tool.pomlflow] has no prompt_rot; its keys are ignore, prompt_root, select, strict" in warning.getMessage()


def test_a_pyproject_that_cannot_be_read_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "pyproject.toml", "[tool.pomlflow\n")
    for _ in range(2):
        assert named(write(tmp_path / "a" / "q.poml", HELLO)) == ("a.q", "a/q.poml")
    assert len(caplog.records) == 1


def test_a_file_in_a_package_has_its_dotted_path_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every working folder; the path in traces stays that from the working folder."""
    for place in ("app", "app/prompts"):
        write(tmp_path / "src" / place / "__init__.py", "")
    file = write(tmp_path / "src" / "app" / "prompts" / "q.poml", HELLO)
    assert named(file) == ("app.prompts.q", "app/prompts/q.poml")
    monkeypatch.chdir(tmp_path)
    assert named(file) == ("app.prompts.q", "src/app/prompts/q.poml")
    data = write(tmp_path / "src" / "app" / "data" / "q.poml", HELLO)  # a folder without __init__.py
    assert named(data) == ("src.app.data.q", "src/app/data/q.poml")


def test_a_removed_working_folder_only_breaks_relative_paths(tmp_path: Path) -> None:
    """A service whose working folder is removed while it runs."""
    file = write(tmp_path / "abs" / "v.poml", '<poml><include src="part.poml"/></poml>')
    write(tmp_path / "abs" / "part.poml", HELLO)
    code = f"""
        import os, pathlib, pomlflow
        from pomlflow.exceptions import TemplateNotFoundError
        from pomlflow.template import Template
        pathlib.Path("gone").mkdir()
        os.chdir("gone")
        os.rmdir({str(tmp_path / "gone")!r})
        record = Template(path={str(file)!r}).render({{"name": "Ada"}})
        assert (record.result()["messages"][0]["content"], record.name) == ("Hello Ada", "abs.v")
        assert Template("<p>Hello</p>").render({{}}).result()["messages"][0]["content"] == "Hello"
        assert Template("<include src='x.poml'/>").render({{}}).error.message.startswith("ENOENT")
        assert pomlflow.render(pathlib.Path({str(file)!r}), {{"name": "Ada"}}).messages[0].content == "Hello Ada"
        try:
            Template(path="v.poml")
        except TemplateNotFoundError as error:
            assert "the working folder was removed" in str(error)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


def test_a_name_given_to_two_files_is_reported_once_with_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The given name is kept: one file may replace the other, and each content is its own version."""
    one, two = (write(tmp_path / place / "q.poml", HELLO) for place in ("a", "b"))
    for _ in range(3):
        assert [named(file, name="greet")[0] for file in (one, two)] == ["greet", "greet"]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(one) in warning.getMessage()
    assert str(two) in warning.getMessage()


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
    assert names[3:] == ["files.e", "files.e"]  # two files of one name have different paths
