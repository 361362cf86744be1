"""GEPA on a POML prompt, from docs/optimise.md, with a local model server."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from tests.markdown import ROOT, blocks
from tests.test_docs import Page, names

__all__ = ["names"]

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore", "error:::pomlflow")]


def test_gepa_finds_a_better_wording_and_drops_a_broken_candidate(names: dict[str, Any], tmp_path: Path) -> None:
    for package in ("gepa", "litellm"):
        pytest.importorskip(package)
    path = ROOT / "docs" / "optimise.md"
    page = list(blocks(path.read_text(encoding="utf-8")))
    before = list(takewhile(lambda block: "GepaPromptOptimizer" not in block.text, page))
    gepa = replace(page[len(before)], kind="run")
    shown = Page(tmp_path, path, names)
    shown.run(before)

    names["chain"] = names["prompt"] | RunnableLambda(
        lambda value: "Yes" if "in one word" in value.to_string() else "That depends."
    )
    source = (tmp_path / "harbour.poml").read_text(encoding="utf-8")
    lost = source.replace("in {{language}}", "in English, in one word")
    better = source.replace("{{language}}.", "{{language}}, in one word.")
    server = names["server"]
    server.answers = [f"```\n{lost}```", f"```xml\nBetter:\n{better}```", f"Here it is:\n```xml\n{better}```"]
    shown.run([gepa])

    assert shown.printed.splitlines()[-1] == "0.0 1.0 prompts:/harbour/2"  # GEPA prints its progress
    assert [path for path in server.paths if not path.endswith("/chat/completions")] == []
    assert len(server.bodies) == 3, "it went on after the best candidate, or stopped before"
    asked = server.bodies[0]["messages"][0]["content"]
    assert asked.startswith("These are the instructions of an assistant, as a POML document:\n<poml>")
    assert '<img src="chart.png"' in asked

    best = names["PomlPromptTemplate"].from_registry("harbour", version=2)
    assert best.source == better.strip()
    system, human = best.invoke({"question": "May I?", "language": "English"}).to_messages()
    assert system.content == "Answer the crews of small boats in English, in one word."
    assert [part["type"] for part in human.content] == ["text", "image"]
