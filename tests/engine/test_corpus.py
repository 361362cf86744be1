"""The warm engine against poml itself, over the corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import poml
import pytest
from tests import rendering
from tests.corpus.cases import Case, case, cases, run_poml
from tests.corpus.compare import assert_expected, same

from pomlflow.exceptions import RenderError

CASES = cases()


def every(chosen: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrize a test by cases."""
    return pytest.mark.parametrize("one", [pytest.param(c, id=c.name) for c in chosen])


def render(one: Case) -> dict[str, Any] | RenderError:
    """Render a case; an error of the template is a result, any other is the test's."""
    try:
        return rendering.render(one.markup, one.variables, path=str(one.file), stylesheet=one.stylesheet, chat=one.chat)
    except RenderError as error:
        return error


@every(CASES)
def test_the_engine_gives_what_poml_gave(one: Case) -> None:
    """Its output is the expected file's, which poml.poml() wrote; an error has its class and place.

    In the sandbox, in a process that renders one case after another; test_cached_file.py renders them all once more,
    without the sandbox.
    """
    assert_expected(one, render(one))


@pytest.mark.timeout(300)
def test_poml_itself_gives_what_the_engine_gives_in_this_run() -> None:
    """Byte for byte, on a case of each kind: the expected files are those of the installed poml and Node."""
    names = "chat-off-parts error-several-problems everything-in-one stylesheet-both"
    chosen = [case(name) for name in names.split()]
    for one, frame, printed in run_poml(chosen):
        result = render(one)
        if frame is None:
            assert isinstance(result, RenderError)
            assert f"{result.problems[0].kind}: {result.problems[0].message}" in printed
        else:
            assert result == frame
            assert same(frame, one.expected), "stale: run `python -m tests.corpus.cases`"


def test_the_corpus_holds_every_component() -> None:
    """Each documented component of the installed poml, and each other element, is in a case under one of its names."""
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
