"""A parsed file that the engine keeps renders as a new one does, whatever was rendered between.

poml 0.0.8 parses each file anew for each render, so it does not reset a ``PomlFile``: the output schema, tools, runtime
and disabled components remain in it after a render, and errors of its construction are reported only once.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import rendering
from tests.corpus.cases import FOLDER, Case, case, cases, shapes
from tests.corpus.compare import assert_expected

import pomlflow
from pomlflow.exceptions import RenderError


@pytest.fixture(scope="module", autouse=True)
def _without_the_sandbox() -> Iterator[None]:
    """Lift the sandbox: test_corpus.py renders the same cases in it."""
    pomlflow.configure(sandbox=False)
    yield
    pomlflow.configure(sandbox=True)


CASES = [one for one in cases() if one.name != "limit-tokens"]  # which takes 3 s a render
SHAPES = shapes()
SHARED: dict[Path, list[Case]] = defaultdict(list)
for _one in CASES:
    SHARED[_one.file].append(_one)


def render(one: Case, **changes: Any) -> dict[str, Any] | RenderError:
    given = {"stylesheet": one.stylesheet, "chat": one.chat, "variables": one.variables, **changes}
    try:
        return rendering.render(one.markup, path=str(one.file), **given)
    except RenderError as error:
        return error


def outcome(one: Case) -> Any:
    """The frame, or the problems, each once, since POML reads a picture up to twice."""
    result = render(one)
    return list(dict.fromkeys(result.problems)) if isinstance(result, RenderError) else result


def attempt(markup: str, variables: Any = None, **options: Any) -> Any:
    try:
        return rendering.render(markup, variables or {}, **options)
    except RenderError as error:
        return list(dict.fromkeys(error.problems))


def text(markup: str, **variables: Any) -> Any:
    """The only message's content, or the problems' messages."""
    result = attempt(markup, variables)
    return result["messages"][0]["content"] if isinstance(result, dict) else [problem.message for problem in result]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_a_case_renders_as_expected_after_its_markup_was_rendered_with_a_change(number: int) -> None:
    """One case of each shape is rendered with one of three changes first; some cases come after an error.

    For an error of construction, the kept file reports it again.
    """
    one = CASES[number]
    changes: list[dict[str, Any]] = [
        {"variables": {}},
        {"chat": not one.chat},
        {"stylesheet": {"*": {"syntax": "json"}}},
    ]
    if one in SHAPES:
        render(one, **changes[number % 3])
        if number % 4 == 0:
            render(case("error-several-problems"))
    result = render(one)
    assert_expected(one, result)
    if isinstance(result, RenderError):
        assert outcome(one) == list(dict.fromkeys(result.problems))


@pytest.mark.parametrize("file", [file for file in SHARED if len(SHARED[file]) > 1], ids=lambda file: file.stem)
def test_renders_of_one_markup_do_not_mix(file: Path) -> None:
    """Schemas, tools, runtime, components and lets of one render are not the next one's, in every order of two."""
    for one in orders_of_two(SHARED[file]):
        result = outcome(one)
        if one.fails:
            assert result[0].message == one.expected["error"]["message"]
        else:
            assert result == one.expected, one.name


def orders_of_two(some: list[Case]) -> list[Case]:
    """Return a de Bruijn sequence: each pair of cases occurs once."""
    sequence, seen = [0], set()
    while new := [n for n in reversed(range(len(some))) if (sequence[-1], n) not in seen]:
        seen.add((sequence[-1], new[0]))
        sequence.append(new[0])
    assert len(seen) == len(some) ** 2
    return [some[number] for number in sequence]


def test_one_markup_in_two_folders_reads_each_folder_s_files(tmp_path: Path) -> None:
    markup = '<poml><document src="note.txt"/><include src="part.poml"/></poml>'
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").write_text(f"note {name}")
        (tmp_path / name / "part.poml").write_text(f"<p>part {name}</p>")
    paths = [str(tmp_path / name / "prompt.poml") for name in "abab"]
    contents = [attempt(markup, path=path)["messages"][0]["content"] for path in paths]
    assert contents == [f"note {name}\n\npart {name}" for name in "abab"]


def test_files_that_a_template_reads_are_read_anew(tmp_path: Path) -> None:
    """Includes, tables, pictures, documents and lets follow their files, though the template's parse is kept."""
    path = str(tmp_path / "prompt.poml")
    markup = (
        '<poml><include src="part.poml"/><let name="n" src="n.json"/><p>{{n}}</p><table src="t.csv" syntax="csv"/>'
        '<document src="d.txt"/><img src="i.png"/></poml>'
    )
    seen = []
    for number, picture in enumerate(("box.png", "wide.png", "box.png")):
        (tmp_path / "part.poml").write_text(f"<p>part {number}</p>")
        (tmp_path / "n.json").write_text(str(number))
        (tmp_path / "t.csv").write_text(f"a\n{number}\n")
        (tmp_path / "d.txt").write_text(f"document {number}")
        os.utime(tmp_path / "d.txt", (number, number))
        shutil.copy(FOLDER / "assets" / picture, tmp_path / "i.png")
        words, image = attempt(markup, path=path)["messages"][0]["content"]
        assert words == f"part {number}\n\n{number}\n\na\n{number}\ndocument {number}"
        seen.append(image["base64"])
    assert seen[0] == seen[2] != seen[1]


def test_a_document_that_changed_within_its_time_stamp_is_read_anew(tmp_path: Path) -> None:
    """Copies, archives and container images give files a fixed time; poml.poml() reads the file in each call."""
    document = tmp_path / "d.txt"
    for content in ("one", "two"):
        document.write_text(content)
        os.utime(document, (1e9, 1e9))
        result = attempt('<document src="d.txt"/>', path=str(tmp_path / "prompt.poml"))
        assert result["messages"][0]["content"] == content


def test_variables_that_a_template_changes_are_new_in_the_next_render() -> None:
    markup = "<poml><p>{{ [list.push(9), delete user.name, JSON.stringify([list, user])].at(-1) }}</p></poml>"
    results = [text(markup, list=[1], user={"name": "Ada", "id": 1}) for _ in range(3)]
    assert results == ['[[1,9],{"id":1}]'] * 3


def test_a_name_that_an_expression_assigns_is_unknown_to_the_next_render() -> None:
    """An assignment without a declaration makes a global in JavaScript; another user's render must not see it."""
    assert text("<p>{{ leaked = secret }}</p>", secret="s3") == "s3"
    assert text("<p>{{ leaked }}</p>") == ["leaked is not defined"]


def test_work_that_goes_on_after_a_failed_render_does_not_fail_the_next_one() -> None:
    """POML collects errors in one global list, so a render must wait for everything that is still being read.

    A broken picture is the everyday case: React has POML read it twice, and the second reading ends after the render.
    Here the paragraph fails immediately, and the document, which is a promise, 50 ms later.
    """
    late = "{{ new Promise((_, refuse) => setTimeout(refuse, 50, new Error('late'))) }}"
    bad = f'<poml><document parser="docx" buffer="{late}"/><p style="refused by React">x</p></poml>'
    slow = '<document parser="docx" buffer="{{ new Promise(give => setTimeout(give, 300, data)) }}"/>'
    data = (FOLDER / "assets" / "report.docx").read_bytes()
    expected = attempt(slow, {"data": data})
    assert isinstance(expected, dict)
    for _ in range(2):
        assert isinstance(attempt(bad), list)
        assert attempt(slow, {"data": data}) == expected
