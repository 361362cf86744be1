"""The patches of the bundle (js/patches.cjs, js/bundle.cjs): each still applies, and is still needed."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import poml
import pytest
from tests import rendering

import pomlflow
from pomlflow.engine import installation

ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
PROGRAM = """
const { PATCHES, CUT, moduleAt } = require(process.argv[1]);
const text = require('fs').readFileSync(process.argv[2]).latin1Slice();
const code = text.slice(0, text.lastIndexOf('//# sourceMappingURL=data:'));
const times = PATCHES.map(({ find, why }) => [why, code.split(find).length - 1]);
const cut = CUT.map((id) => [id, moduleAt(code, id).end - moduleAt(code, id).start]);
console.log(JSON.stringify({ times: Object.fromEntries(times), cut: Object.fromEntries(cut) }));
"""


@cache
def report() -> dict[str, dict[str, int]]:
    found = installation.find()
    patches = installation.WORKER.parent / "patches.cjs"
    command = [str(found.node), "-e", PROGRAM, str(patches), str(found.bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, dict[str, int]] = json.loads(done.stdout)
    return result


def test_each_patch_finds_its_text_once_in_the_bundle() -> None:
    """Else the start fails, and with a newer poml the patch may no longer be needed: see docs/upstream.md."""
    times = report()["times"]
    assert len(times) >= 17
    assert {why: count for why, count in times.items() if count != 1} == {}


def test_poml_still_collapses_the_whitespace_of_a_value() -> None:
    rendered: Any = poml.poml("<p>{{x}}</p>", {"x": "a\n  b"}, format="dict")
    assert rendered["messages"][0]["content"] == "a b"


def refused_by_poml(file: Path) -> str:
    """Return what poml's own command line prints for a prompt that it refuses."""
    found = installation.find()
    command = [str(found.node), str(found.bundle), "-f", str(file)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr


def test_poml_still_names_no_file_for_a_component_in_an_include(tmp_path: Path) -> None:
    (tmp_path / "part.poml").write_text('<poml><p speaker="dog">x</p></poml>', encoding="utf-8")
    (tmp_path / "main.poml").write_text('<include src="part.poml"/>', encoding="utf-8")
    printed = refused_by_poml(tmp_path / "main.poml")
    assert '"speaker" should be one of' in printed
    assert "part.poml" not in printed


def test_poml_still_reports_a_place_in_an_attribute_one_character_early(tmp_path: Path) -> None:
    markup = '<cp caption="to {{nobody}}">x</cp>'
    (tmp_path / "main.poml").write_text(markup, encoding="utf-8")
    assert f"startIndex: {markup.index('{{') - 1}," in refused_by_poml(tmp_path / "main.poml")


def test_scripts_and_styles_in_the_body_of_a_web_page_are_left_out(tmp_path: Path) -> None:
    """The nodes of scripts and styles have types of their own in cheerio."""
    body = "<p>Seen.</p><script>hidden()</script><style>p { hidden: 1 }</style>"
    (tmp_path / "page.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    (tmp_path / "main.poml").write_text('<webpage src="page.html"/>', encoding="utf-8")
    (message,) = pomlflow.render(tmp_path / "main.poml", format="message_dict")
    assert message["content"].strip() == "Seen."


def test_the_modules_that_are_cut_out_are_the_largest() -> None:
    sizes = report()["cut"]
    assert len(sizes) == 2
    assert min(sizes.values()) > 500_000


@pytest.fixture
def loaded_anew(fresh: None) -> None:
    """A process of its own, in which nothing deferred is loaded."""


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ('<document src="report.docx"/>', "# Quarterly report"),
        ('<document src="report.pdf"/>', "First page"),
        ('<table src="staff.xlsx"/>', "Ada"),
        ('<p tokenLimit="3">one two three four five six seven</p>', "one two"),
        ('<poml syntax="xml"><cp caption="a">b</cp></poml>', "<a>b</a>"),
        ('<img src="box.gif"/>', "R0lGOD"),
    ],
    ids=["mammoth", "pdf", "xlsx", "js-tiktoken", "xmlbuilder2", "sharp"],
)
def test_a_module_that_is_loaded_in_a_render_serves_that_and_later_ones(
    markup: str, expected: str, loaded_anew: None
) -> None:
    """Also after the timers of the first render were cleared at its end."""
    results: list[Any] = [rendering.render(markup, {}, path=str(ASSETS / "prompt.poml")) for _ in range(3)]
    assert expected in str(results[0])
    assert results[1:] == results[:1] * 2


def test_an_element_looks_like_react_s_own_to_components() -> None:
    """The patches remove from an element what only warnings use; components still find children and their props."""
    markup = '<poml><list listStyle="decimal"><item>{{x}}</item><item><b>{{x}}</b></item></list></poml>'
    assert rendering.render(markup, {"x": "a"})["messages"][0]["content"] == "1. a\n2. **a**"
