"""What users do with a ChatPromptTemplate works with a POML prompt: what it takes, and how it renders.

Tests with the `prompt` or `make` fixture run with both kinds.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.prompts.chat import BaseChatPromptTemplate
from tests.langchain.prompts import GIVEN, MESSAGES, Model, poml

from pomlflow import MissingVariableError
from pomlflow.langchain import PomlPromptTemplate


def test_variables_are_found(prompt: Any) -> None:
    assert sorted(prompt.input_variables) == ["question", "role"]
    assert prompt.optional_variables == ["history"]
    assert prompt.partial_variables == {"history": []}
    assert prompt.input_types["history"] == list[AnyMessage]
    assert isinstance(prompt, BaseChatPromptTemplate)


def test_invoke_gives_messages(prompt: Any) -> None:
    value = prompt.invoke(GIVEN)
    assert isinstance(value, ChatPromptValue)
    assert value.to_messages() == MESSAGES
    assert value.to_string() == "System: You are a poet.\nHuman: Why?"


def test_a_bare_value_is_the_only_variable() -> None:
    expected = [HumanMessage("Hello Ada")]
    assert ChatPromptTemplate([("human", "Hello {name}")]).invoke("Ada").to_messages() == expected
    assert PomlPromptTemplate("<p>Hello {{name}}</p>").invoke("Ada").to_messages() == expected


async def test_a_bare_list_is_the_only_history() -> None:
    given = [("user", "Hi there"), ("ai", "Hello")]
    expected = [HumanMessage("Hi there"), AIMessage("Hello")]
    assert ChatPromptTemplate([("placeholder", ["{h}", False])]).invoke(given).to_messages() == expected
    prompt = PomlPromptTemplate('<conversation messages="{{h}}"/>')
    assert prompt.invoke(given).to_messages() == expected
    assert (await prompt.ainvoke(given)).to_messages() == expected


def test_a_bare_value_is_the_required_variable_and_not_the_history() -> None:
    prompt = PomlPromptTemplate('<poml><conversation messages="{{h}}"/><human-msg>{{q}}</human-msg></poml>')
    assert prompt.invoke("Why?").to_messages() == [HumanMessage("Why?")]


@pytest.mark.parametrize("given", ["Ada", ["Ada"], None, 7])
async def test_a_bare_value_for_several_variables_is_a_type_error(prompt: Any, given: Any) -> None:
    with pytest.raises(TypeError):
        prompt.invoke(given)
    with pytest.raises(TypeError):
        await prompt.ainvoke(given)


async def test_a_missing_variable_is_a_key_error_that_names_it(prompt: Any) -> None:
    with pytest.raises(KeyError, match="question"):
        prompt.invoke({"role": "a poet"})
    with pytest.raises(KeyError, match="question"):
        await prompt.ainvoke({"role": "a poet"})
    with pytest.raises(KeyError, match="question"):
        prompt.format_messages(role="a poet")


def test_the_hint_for_a_missing_variable_is_pomls_and_not_the_f_strings() -> None:
    with pytest.raises(MissingVariableError) as caught:
        poml().invoke({"role": "a poet"})
    hint, line, caret = str(caught.value).split("\n")
    assert hint.partition(" ")[2] == (
        "the template needs the variable question; given: role. Pass it, or guard it in the template: "
        "{{ typeof question === 'undefined' ? '' : question }}"
    )
    assert line[caret.index("^") :].startswith("question")
    assert caught.value.variable == "question"


def test_a_guarded_variable_is_optional() -> None:
    prompt = PomlPromptTemplate("<p>Hi {{ typeof name === 'undefined' ? 'you' : name }}</p>")
    assert (prompt.input_variables, prompt.optional_variables) == ([], ["name"])
    assert prompt.invoke({}).to_string() == "Human: Hi you"
    assert prompt.invoke({"name": "Ada"}).to_string() == "Human: Hi Ada"
    assert prompt.invoke("Ada").to_string() == "Human: Hi Ada"


def test_extra_variables_are_tolerated(prompt: Any) -> None:
    extra = {"lock": asyncio.Lock(), "class": 1, "my-key": object(), "deep": {"model": Model()}, "kinds": {1, "a"}}
    assert prompt.invoke({**GIVEN, **extra}).to_messages() == MESSAGES
    assert prompt.format_messages(**GIVEN, **extra) == MESSAGES


@pytest.mark.parametrize("value", [0, "", "0", 1.5, None])
def test_falsy_values_are_values(value: Any) -> None:
    """They render as JavaScript writes them, and never count as missing."""
    text = PomlPromptTemplate("<p>[{{x}}]</p>").invoke({"x": value}).to_messages()[0].content
    assert text == {None: "[]"}.get(value, f"[{value}]")


def test_a_variable_may_be_called_self() -> None:
    """LangChain hands variables on as keyword arguments, where this name is taken."""
    assert PomlPromptTemplate("<p>{{self}}</p>").invoke({"self": "me"}).to_string() == "Human: me"


def test_stop_is_no_name_for_a_variable_as_in_langchain() -> None:
    for make in (lambda: ChatPromptTemplate([("human", "{stop}")]), lambda: PomlPromptTemplate("<p>{{stop}}</p>")):
        with pytest.raises(ValueError, match="input variable named 'stop'"):
            make()


def test_lists_and_objects_are_variables() -> None:
    prompt = PomlPromptTemplate('<list><item for="d in docs">{{d.page_content}} ({{d.metadata.page}})</item></list>')
    docs = [Document("One", metadata={"page": 1}), Document("Two", metadata={"page": 2})]
    assert prompt.invoke({"docs": docs}).to_messages()[0].content == "- One (1)\n- Two (2)"


async def test_every_way_to_format_gives_the_same(prompt: Any) -> None:
    text = "System: You are a poet.\nHuman: Why?"
    assert prompt.format(**GIVEN) == await prompt.aformat(**GIVEN) == text
    assert prompt.format_messages(**GIVEN) == await prompt.aformat_messages(**GIVEN) == MESSAGES
    assert prompt.format_prompt(**GIVEN) == await prompt.aformat_prompt(**GIVEN) == ChatPromptValue(messages=MESSAGES)
    assert prompt.invoke(GIVEN) == await prompt.ainvoke(GIVEN) == ChatPromptValue(messages=MESSAGES)


async def test_batches_and_streams_return_a_value_for_each_input(prompt: Any) -> None:
    many = [{**GIVEN, "question": str(number)} for number in range(5)]
    expected = [[MESSAGES[0], HumanMessage(str(number))] for number in range(5)]
    assert [value.to_messages() for value in prompt.batch(many)] == expected
    assert [value.to_messages() for value in await prompt.abatch(many)] == expected
    assert [value.to_messages() for _, value in sorted(prompt.batch_as_completed(many))] == expected
    assert [value.to_messages() for value in prompt.stream(GIVEN)] == [MESSAGES]
    assert [value.to_messages() async for value in prompt.astream(GIVEN)] == [MESSAGES]
    assert [value.to_messages() for value in prompt.transform(iter([GIVEN]))] == [MESSAGES]


async def test_a_run_reports_its_start_and_end_as_events(prompt: Any) -> None:
    events = [event async for event in prompt.astream_events(GIVEN, version="v2")]
    assert [event["event"] for event in events] == ["on_prompt_start", "on_prompt_end"]
    assert events[0]["data"]["input"] == GIVEN
    assert events[-1]["data"]["output"].to_messages() == MESSAGES
