"""A prompt of a file follows its file, also in the fields that LangChain reads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from tests.langchain.prompts import GIVEN, MARKUP, MESSAGES, Model, RunRecorder, poml

from pomlflow.langchain import PomlPromptTemplate


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The prompt's file, in the working folder's folder ``support``."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "support" / "answer.poml"
    file.parent.mkdir()
    file.write_text(MARKUP, encoding="utf-8")
    return file


def rewrite(file: Path, markup: str) -> None:
    stamp = file.stat().st_mtime_ns + 10**9
    file.write_text(markup, encoding="utf-8")
    os.utime(file, ns=(stamp, stamp))


def test_a_file_may_be_named_by_a_path_or_a_text(file: Path) -> None:
    for path in (file, str(file), "support/answer.poml"):
        prompt = PomlPromptTemplate.from_file(path)
        assert prompt.invoke(GIVEN).to_messages() == MESSAGES
        assert (prompt.path, prompt.template, prompt.source, prompt.name) == (str(file), MARKUP, MARKUP, None)
        assert prompt.input_variables == ["role", "question"]


def test_both_constructors_take_the_same_options(file: Path) -> None:
    options: dict[str, Any] = {"name": "n", "chat": False, "register": True, "partial_variables": {"role": "a poet"}}
    for prompt in (PomlPromptTemplate.from_file(file, **options), PomlPromptTemplate.from_template(MARKUP, **options)):
        assert (prompt.name, prompt.chat, prompt.register_prompt) == ("n", False, True)
        assert prompt.invoke("Why?").to_string() == "You are a poet.\nWhy?"


def test_a_changed_file_changes_the_prompt_and_its_fields(file: Path) -> None:
    prompt = PomlPromptTemplate.from_file(file)
    chain = prompt | Model()
    chain.invoke(GIVEN)
    assert dumpd(prompt)["kwargs"]["template"] == MARKUP
    changed = '<poml><conversation messages="{{earlier}}"/><human-msg>{{who}}</human-msg></poml>'
    rewrite(file, changed)
    seen = RunRecorder()
    assert prompt.invoke("Ada", {"callbacks": [seen]}).to_messages() == [HumanMessage("Ada")]
    assert (prompt.input_variables, prompt.optional_variables) == (["who"], ["earlier"])
    assert prompt.template == prompt.source == changed
    assert dumpd(prompt)["kwargs"]["template"] == changed
    assert prompt.get_input_jsonschema()["properties"].keys() == {"who", "earlier"}
    assert chain.invoke({"who": "Ada", "earlier": [AIMessage("x")]}).content == "the answer"


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "format_messages", "aformat_prompt", "member", "partial", "copy"])
async def test_every_way_to_render_sees_the_change(file: Path, way: str) -> None:
    """The history `earlier`, which only the new markup has, gets its default."""
    prompt = PomlPromptTemplate.from_file(file)
    ways = {
        "member": ChatPromptTemplate([prompt]).format_messages,
        "partial": prompt.partial(extra=1).format_messages,
        "copy": prompt.model_copy(deep=True).format_messages,
        "format_messages": prompt.format_messages,
    }
    rewrite(file, '<poml><p if="earlier.length == 0">first of {{who}}</p><conversation messages="{{earlier}}"/></poml>')
    if way == "invoke":
        messages = prompt.invoke({"who": "Ada"}).to_messages()
    elif way == "ainvoke":
        messages = (await prompt.ainvoke({"who": "Ada"})).to_messages()
    elif way == "aformat_prompt":
        messages = (await prompt.aformat_prompt(who="Ada")).to_messages()
    else:
        messages = ways[way](who="Ada")
    assert messages[0].content == "first of Ada"


def test_partial_variables_stay_over_a_change(file: Path) -> None:
    prompt = PomlPromptTemplate.from_file(file).partial(role="a poet")
    rewrite(file, "<p>{{role}} {{question}} {{more}}</p>")
    assert prompt.format(question="Why?", more="x") == "Human: a poet Why? x"
    assert prompt.input_variables == ["question", "more"]
    assert prompt.partial_variables["role"] == "a poet"


async def test_a_render_reads_the_files_state_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = PomlPromptTemplate.from_file(file)
    prompt.invoke(GIVEN)
    seen: list[Any] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **options: (seen.append(path), real(path, *args, **options))[1])
    prompt.invoke(GIVEN)
    await prompt.ainvoke(GIVEN)
    prompt.format(**GIVEN)
    prompt.batch([GIVEN] * 2)
    assert [path for path in seen if "answer.poml" in str(path)] == [file] * 5


def test_a_prompt_outlasts_its_file_and_a_change_of_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = PomlPromptTemplate.from_file("support/answer.poml")
    monkeypatch.chdir(file.parent)
    assert prompt.invoke(GIVEN).to_messages() == MESSAGES
    file.unlink()
    assert [prompt.invoke(GIVEN).to_messages() for _ in range(2)] == [MESSAGES] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


class ForeignTracer(BaseCallbackHandler):
    """Looks like MLflow's tracer."""

    _run_span_mapping: dict[str, Any] = {}  # noqa: RUF012


def test_an_unimportable_tracer_gives_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A version of MLflow without what the handler needs must not fail the user's call."""
    monkeypatch.setitem(sys.modules, "mlflow.langchain.langchain_tracer", sys)  # imported
    monkeypatch.setitem(sys.modules, "pomlflow.langchain.handler", None)
    for _ in range(3):
        assert poml().invoke(GIVEN, {"callbacks": [ForeignTracer()]}).to_messages() == MESSAGES
    assert [(record.name, record.levelname) for record in caplog.records] == [("pomlflow", "WARNING")]
    assert "A render could not be traced (langchain)" in caplog.text
