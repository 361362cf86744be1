"""POML prompts combined with LangChain's own templates; each test runs with both kinds."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, HumanMessagePromptTemplate, MessagesPlaceholder, PromptTemplate
from tests.langchain.prompts import GIVEN, MESSAGES

from pomlflow.langchain import PomlPromptTemplate

EARLIER = [HumanMessage("Hi"), AIMessage("Hello")]


@pytest.mark.parametrize(
    ("other", "given", "added"),
    [
        ("and {more}", {"more": "that"}, [HumanMessage("and that")]),
        (AIMessage("Because."), {}, [AIMessage("Because.")]),
        ([("ai", "Because."), ("human", "{more}")], {"more": "How?"}, [AIMessage("Because."), HumanMessage("How?")]),
        ([MessagesPlaceholder("pad")], {"pad": EARLIER}, EARLIER),
        (MessagesPlaceholder("pad", optional=True), {}, []),
        (HumanMessagePromptTemplate.from_template("{more}"), {"more": "How?"}, [HumanMessage("How?")]),
        (ChatPromptTemplate([("ai", "{more}")]), {"more": "So."}, [AIMessage("So.")]),
        (PomlPromptTemplate("<ai-msg>{{more}}</ai-msg>"), {"more": "So."}, [AIMessage("So.")]),
    ],
    ids=["string", "message", "list", "list with placeholder", "placeholder", "message template", "template", "poml"],
)
async def test_a_prompt_plus_messages_is_a_chat_prompt(
    prompt: Any, other: Any, given: dict[str, Any], added: list[BaseMessage]
) -> None:
    combined = prompt + other
    assert isinstance(combined, ChatPromptTemplate)
    assert set(combined.input_variables) >= {"role", "question"} | given.keys()
    assert combined.invoke({**GIVEN, **given}).to_messages() == [*MESSAGES, *added]
    assert combined.invoke({**GIVEN, **given, "history": EARLIER}).to_messages() == [
        MESSAGES[0],
        *EARLIER,
        MESSAGES[1],
        *added,
    ]
    assert (await combined.ainvoke({**GIVEN, **given})).to_messages() == [*MESSAGES, *added]


def test_what_cannot_be_added_is_refused(prompt: Any) -> None:
    with pytest.raises(NotImplementedError):
        prompt + 7


def test_messages_plus_a_prompt_are_a_chat_prompt(prompt: Any) -> None:
    before = SystemMessage("Rules.")
    for first in (ChatPromptTemplate([before]), before):
        combined = first + prompt
        assert isinstance(combined, ChatPromptTemplate)
        assert sorted(combined.input_variables) == ["question", "role"]
        assert combined.invoke({**GIVEN, "history": EARLIER}).to_messages() == [
            before,
            MESSAGES[0],
            *EARLIER,
            MESSAGES[1],
        ]


def test_partial_variables_survive_an_addition(prompt: Any) -> None:
    combined = prompt.partial(role="a poet") + "and {more}"
    assert sorted(combined.input_variables) == ["more", "question"]
    assert combined.invoke({"question": "Why?", "more": "that"}).to_messages() == [*MESSAGES, HumanMessage("and that")]
    assert combined.partial(more="that").invoke("Why?").to_messages() == [*MESSAGES, HumanMessage("and that")]


def test_an_optional_history_survives_an_addition(prompt: Any) -> None:
    """LangChain's agent constructors look for agent_scratchpad in partial_variables."""
    combined = prompt + "and more"
    assert combined.partial_variables == {"history": []}


def test_a_prompt_may_be_a_member_of_a_chat_prompt(prompt: Any) -> None:
    outer = ChatPromptTemplate([("system", "Rules for {role}."), prompt, ("ai", "{more}")])
    assert sorted(outer.input_variables) == ["more", "question", "role"]
    expected = [SystemMessage("Rules for a poet."), MESSAGES[0], *EARLIER, MESSAGES[1], AIMessage("So.")]
    assert outer.invoke({**GIVEN, "more": "So.", "history": EARLIER}).to_messages() == expected
    assert outer[1] == prompt
    assert len(outer[1:]) == 2


def test_a_prompt_may_be_appended_to_a_chat_prompt(prompt: Any) -> None:
    outer = ChatPromptTemplate([("system", "Rules.")])
    outer.append(prompt)
    outer.extend([prompt])
    assert outer.format_messages(**GIVEN) == [SystemMessage("Rules."), *MESSAGES, *MESSAGES]


def test_a_missing_variable_of_a_member_is_a_key_error(prompt: Any) -> None:
    with pytest.raises(KeyError, match="question"):
        ChatPromptTemplate([prompt]).invoke({"role": "a poet"})


def test_a_member_with_chat_off_is_a_human_message() -> None:
    outer = ChatPromptTemplate([("system", "Rules."), PomlPromptTemplate("<p>{{x}}</p>", chat=False)])
    assert outer.invoke("Why?").to_messages() == [SystemMessage("Rules."), HumanMessage("Why?")]


def test_a_text_template_feeds_the_prompt(prompt: Any) -> None:
    chain = {"question": PromptTemplate.from_template("{x}?") | (lambda value: value.text), "role": lambda _: "a poet"}
    assert (chain | prompt).invoke({"x": "Why"}).to_messages() == MESSAGES


def test_two_prompts_as_members_share_their_variables(prompt: Any) -> None:
    outer = ChatPromptTemplate([prompt, PomlPromptTemplate("<ai-msg>{{role}} for {{times}}</ai-msg>")])
    assert sorted(outer.input_variables) == ["question", "role", "times"]
    assert outer.format_messages(**GIVEN, times=2) == [*MESSAGES, AIMessage("a poet for 2")]
