"""A prompt's length without its variables, and its display."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.prompts.prompt_utils import get_biggest_prompt, get_empty_prompt_messages, get_empty_prompt_txt

from pomlflow import engine
from pomlflow.llama_index import PomlPromptTemplate

HELLO = "<p>hello {{text}} {{foo}}</p>"
CHAT = "<system-msg>System {{sys_param}}</system-msg><human-msg>hello {{text}} {{foo}}</human-msg>"


@pytest.fixture
def engine_calls(monkeypatch) -> list[Any]:
    """Every request that reaches the engine."""
    calls: list[Any] = []
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda request, *rest: calls.append(request) or run(request, *rest))
    return calls


# Measuring.


def test_measuring_costs_no_render(renders, engine_calls) -> None:
    """LlamaIndex measures the prompt without its variables several times per query."""
    prompt = PomlPromptTemplate(HELLO).partial_format(foo="a rather long value")
    measured = get_empty_prompt_txt(prompt)
    assert "hello" in measured
    assert "a rather long value" in measured
    assert get_biggest_prompt([PomlPromptTemplate("<p>{{x}}</p>"), prompt]) is prompt
    helper = PromptHelper(context_window=500, num_output=100)
    assert 0 < helper.get_text_splitter_given_prompt(prompt, padding=0).chunk_size < 400
    assert (renders, engine_calls) == ([], [])


@pytest.mark.parametrize(
    "markup", [HELLO, CHAT, "<task>a</task><output-format>b</output-format><list><item>{{c}}</item></list>"]
)
def test_a_measured_length_is_never_too_short(markup: str) -> None:
    """Otherwise the packed context would not fit."""
    prompt = PomlPromptTemplate(markup)
    shown = prompt.format(llm=object(), **{str(name): "" for name in prompt.template_vars})
    assert len(get_empty_prompt_txt(prompt)) >= len(shown.removesuffix("assistant: "))


def test_measuring_never_raises_and_never_renders(tmp_path: Path, renders, engine_calls) -> None:
    """Also where a render of the empty prompt would fail, or reads files: the length is that of the markup."""
    (tmp_path / "note.txt").write_text("word " * 500)
    for markup in (
        "<p>{{x.y.z}}</p>",
        "<p>{{ x + }} {{y}}</p>",
        '<document src="note.txt"/><p>{{q}}</p>',
        "<nothing title='{{x}}'></p>",
    ):
        prompt = PomlPromptTemplate(markup, base_dir=tmp_path)
        assert get_empty_prompt_txt(prompt) == markup
        assert get_empty_prompt_messages(prompt) == [ChatMessage(role="user", content=markup)]
    assert (renders, engine_calls) == ([], [])


def test_an_intended_empty_value_is_rendered(renders) -> None:
    """Only a component that measures passes ``llm=None``."""
    prompt = PomlPromptTemplate("<p>[{{x}}]</p>")
    assert prompt.format(x="") == "[]"
    assert prompt.format_messages(x="") == [ChatMessage(role="user", content="[]")]
    assert len(renders) == 1  # a text without a model, all variables empty: how a selector is measured


# Display.


def test_the_template_prints_as_the_markup() -> None:
    """LlamaIndex's display_prompt_dict, its TEMPLATING callbacks and MLflow's tracer print get_template()."""
    assert f"{PomlPromptTemplate(HELLO).get_template()}" == HELLO
    assert json.loads(json.dumps(PomlPromptTemplate(HELLO).get_template(llm=None))) == HELLO
