"""The diffs of the migration page for users of POML's own integrations, run unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import openai
import poml
import pytest
from langchain_core.language_models import FakeListChatModel
from tests.model_server import model_server

import pomlflow

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


def programs(name: str) -> tuple[str, str]:
    """The program before and after a diff on the page."""
    found = re.search(rf"<!-- migration: {name} -->\n```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    lines = found[1].splitlines()
    assert {line[0] for line in lines} <= {"-", "+", " "}
    before, after = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in ("- ", "+ "))
    return before, after


def run(program: str, **names: Any) -> dict[str, Any]:
    exec(program, names)
    return names


@pytest.fixture
def _off() -> Iterator[None]:
    yield
    poml.set_trace(False)
    poml.clear_trace()
    pomlflow.autolog(disable=True)
    mlflow.openai.autolog(disable=True, silent=True)


@pytest.mark.usefixtures("_off")
def test_after_the_diff_for_set_trace_the_messages_and_files_are_the_same(
    stored_traces: Callable[[], list[Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("explain_code.poml").write_text(
        '<poml><task>Explain.</task><document src="{{ code_path }}" parser="txt"/></poml>', encoding="utf-8"
    )
    Path("sample.py").write_text("print(1)", encoding="utf-8")
    before, after = programs("set_trace")
    with model_server() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        names = {"poml": poml, "pomlflow": pomlflow, "mlflow": mlflow, "client": client}
        old = run(before, **names)
        theirs = len(stored_traces())
        new = run(after, **names)
    assert new["messages"] == old["messages"]
    assert new["response"].choices[0].message.content == "the answer"
    pomlflow.flush()
    assert len(stored_traces()) == 2 * theirs
    for folder in Path("pomlruns").iterdir():
        assert (folder / "0001.explain_code.result.json").exists()


def test_after_the_diff_for_the_langchain_template_the_results_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("greeting.poml").write_text(
        "<poml><system-msg>Be kind.</system-msg><human-msg>{{name}}</human-msg></poml>", encoding="utf-8"
    )
    old, new = (run(one, model=FakeListChatModel(responses=["Hi!"])) for one in programs("langchain"))
    contents = [[(m.type, m.content) for m in names["value"].to_messages()] for names in (old, new)]
    assert contents == [[("system", "Be kind."), ("human", "Ada")]] * 2
    assert [names["answer"].content for names in (old, new)] == ["Hi!"] * 2
    assert [names["line"] for names in (old, new)] == ["Hello Ada"] * 2
