"""The warm engine against poml itself, over the corpus."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import poml
import pytest
from PIL import Image, ImageChops
from tests.corpus.cases import FOLDER, Case, case, cases, portable, run_command_line, run_poml

from pomlflow import engine
from pomlflow.exceptions import Problem, RenderError

CASES = cases()


def every(chosen: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrize a test by cases."""
    return pytest.mark.parametrize("one", [pytest.param(c, id=c.name) for c in chosen])


def render(one: Case) -> dict[str, Any] | RenderError:
    """Render a case warm; an error of the template is a result, any other is the test's."""
    try:
        return engine.render(one.markup, one.variables, path=str(one.file), stylesheet=one.stylesheet, chat=one.chat)
    except RenderError as error:
        return error


def same(actual: Any, expected: Any) -> bool:
    """Compare frames, pictures by what they show.

    POML writes every picture anew with sharp, whose compressors give other bytes on another processor.
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        if actual.keys() != expected.keys():
            return False
        pixels = str(expected.get("type", "")).startswith("image/") and "base64" in expected
        return all(
            (alike if pixels and key == "base64" else same)(actual[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    return type(actual) is type(expected) and bool(actual == expected)


def alike(actual: str, expected: str) -> bool:
    """Whether two pictures, in base64, look the same but for a lossy format's last bits."""
    if actual == expected:
        return True
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in (actual, expected)]
    if images[0].format != images[1].format or images[0].size != images[1].size:
        return False
    difference = ImageChops.difference(*(image.convert("RGBA") for image in images))
    return all(high <= 8 for _, high in difference.getextrema())


def place(error: dict[str, Any], one: Case) -> tuple[str | None, int | None, int | None]:
    """The file, line and column that poml's offset means, from 1 and in characters."""
    file = Path(str(error.get("file") or one.file).replace("<corpus>", str(FOLDER)))
    if error.get("start") is None:
        return str(file), None, None
    units = file.read_bytes().decode().encode("utf-16-le")[: 2 * error["start"]]
    before = units.decode("utf-16-le")
    return str(file), before.count("\n") + 1, len(before) - before.rfind("\n")


def problem_for(error: dict[str, Any], failure: RenderError) -> Problem:
    """The problem that stands for the error which poml's command line died of.

    That is the first, unless it is no error of POML's own but a JavaScript one that ended the render: the engine puts
    what POML had collected by then before it, since that is mostly why.
    """
    return failure.problems[0 if error["kind"] in {"ReadError", "WriteError", "SystemError"} else -1]


@pytest.fixture(scope="module")
def command_line(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What poml's own cli.js makes, in this very run, of the cases that were selected."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    return run_command_line([item.callspec.params["one"] for item in items if "command_line" in item.fixturenames])


@every(CASES)
def test_the_warm_engine_gives_what_poml_gave(one: Case) -> None:
    """Warm output is the expected file's, which poml.poml() wrote; an error has its class and place."""
    expected, result = one.expected, render(one)
    if not one.fails:
        assert same(result, expected), f"{result}\nis not\n{expected}"
        return
    error = expected["error"]
    assert isinstance(result, RenderError), result
    found = problem_for(error, result)
    # Not the message: many are V8's own, which words them anew with its versions. The next test has both from one V8.
    assert (found.kind, found.file, found.line, found.column) == (error["kind"], *place(error, one))


@pytest.mark.timeout(300)
@every(CASES)
def test_the_warm_engine_gives_what_poml_gives_in_this_run(one: Case, command_line: dict[str, dict[str, Any]]) -> None:
    """Warm output is byte for byte that of the installed poml's command line, and the expected file is not stale."""
    live, result = command_line[one.name], render(one)
    assert ("error" in live) == one.fails
    if not one.fails:
        assert result == live
        assert same(live, one.expected), "stale: run `python -m tests.corpus.cases`"
        return
    error = live["error"]
    assert isinstance(result, RenderError), result
    found = problem_for(error, result)
    assert (found.kind, found.message) == (error["kind"], error["message"].strip())
    stored = one.expected["error"]
    assert (stored["kind"], stored.get("start"), stored.get("file")) == (
        error["kind"],
        error.get("start"),
        portable(error.get("file")),
    ), "stale: run `python -m tests.corpus.cases`"


@pytest.mark.timeout(300)
def test_poml_itself_gives_what_its_command_line_gives_in_one_process() -> None:
    """The stand-in for a process per case is one: poml.poml() itself agrees, on a case of each kind."""
    names = "chat-off-parts document-docx error-several-problems everything-in-one include-nested stylesheet-both"
    chosen = [case(name) for name in names.split()]
    outcomes = run_command_line(chosen)
    for one, frame, printed in run_poml(chosen):
        live = outcomes[one.name]
        if frame is None:
            assert f"{live['error']['kind']}: {live['error']['message']}" in printed
        else:
            assert frame == live


def test_the_corpus_holds_every_component() -> None:
    """Each documented component of the installed poml, under some name, and each element that is none, is in a case."""
    bundle = (Path(poml.__file__).parent / "js" / "cli.js").read_text(encoding="utf-8")
    documented = set(re.findall(r'\{"name":"(\w+)","description":', bundle))
    declared = re.findall(r"base_1\.component\)\('(\w+)'(?:, (?:\{ aliases: )?\[([^\]]*)\])?", bundle)
    names = {name: {name.lower(), *re.findall(r"[\w-]+", others.lower())} for name, others in declared}
    markups = [one.markup for one in CASES if not one.fails]
    tags = {tag.lower() for markup in markups for tag in re.findall(r"<([\w-]+)", markup)}
    tags |= {tag.replace("-", "") for tag in tags}
    assert len(documented) > 35
    assert {name for name in documented if not names[name] & tags} == set()
    others = {"context", "include", "let", "meta", "outputschema", "runtime", "stylesheet", "tool", "tooldefinition"}
    assert others <= tags
