"""What users do with a ChatPromptTemplate works with a POML prompt: chains, partial values, configuration.

Tests with the `prompt` or `make` fixture run with both kinds.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import PromptTemplate, format_document
from langchain_core.prompts.base import aformat_document
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from tests.langchain.prompts import GIVEN, MESSAGES, Model, RunRecorder, TextModel, poml

from pomlflow.langchain import PomlPromptTemplate


def test_a_chain_passes_messages_to_a_chat_model(prompt: Any) -> None:
    model = Model()
    chain = prompt | model | StrOutputParser()
    assert chain.invoke(GIVEN) == "the answer"
    assert "".join(chain.stream(GIVEN)) == "the answer"
    assert chain.batch([GIVEN, GIVEN]) == ["the answer"] * 2
    assert model.received == [MESSAGES] * 4


async def test_an_async_chain_passes_messages_to_a_chat_model(prompt: Any) -> None:
    model = Model()
    chain = prompt | model | StrOutputParser()
    assert await chain.ainvoke(GIVEN) == "the answer"
    assert "".join([chunk async for chunk in chain.astream(GIVEN)]) == "the answer"
    assert await chain.abatch([GIVEN, GIVEN]) == ["the answer"] * 2
    assert model.received == [MESSAGES] * 4
    events = [event async for event in chain.astream_events(GIVEN, version="v2")]
    assert {event["event"] for event in events} >= {"on_prompt_start", "on_prompt_end", "on_chat_model_end"}


def test_a_chain_passes_text_to_a_text_model(prompt: Any) -> None:
    model = TextModel()
    assert (prompt | model).invoke(GIVEN) == "the answer"
    assert model.received == ["System: You are a poet.\nHuman: Why?"]


def test_a_dict_before_the_prompt_makes_its_variables(prompt: Any) -> None:
    before = {"question": RunnablePassthrough(), "role": lambda _: "a poet"}
    assert (before | prompt).invoke("Why?").to_messages() == MESSAGES
    assert (RunnablePassthrough.assign(role=lambda _: "a poet") | prompt).invoke({"question": "Why?"}) == (
        ChatPromptValue(messages=MESSAGES)
    )


def test_the_prompt_may_be_called_in_a_lambda(prompt: Any) -> None:
    chain = RunnableLambda(prompt.invoke) | Model() | StrOutputParser()
    assert chain.invoke(GIVEN) == "the answer"


def test_partial_values_are_defaults_of_a_copy(prompt: Any) -> None:
    partial = prompt.partial(role="a poet")
    assert partial.input_variables == ["question"]
    assert partial.invoke("Why?").to_messages() == MESSAGES
    assert sorted(prompt.input_variables) == ["question", "role"], "the original stays as it is"
    assert partial.invoke({**GIVEN, "role": "a cook"}).to_messages()[0].content == "You are a cook."


def test_partial_functions_are_called_at_each_render(prompt: Any) -> None:
    roles = iter(["a poet", "a cook"])
    partial = prompt.partial(role=lambda: next(roles))
    assert [partial.invoke("Why?").to_messages()[0].content for _ in range(2)] == ["You are a poet.", "You are a cook."]


def test_partial_values_may_be_set_after_an_invoke(prompt: Any) -> None:
    """LangChain hands its cached serialised form to the copy's constructor."""
    prompt.invoke(GIVEN)
    again = prompt.partial(role="a poet").partial(question="Why?")
    assert again.input_variables == []
    assert again.invoke({}).to_messages() == MESSAGES


def test_a_history_may_be_a_partial_value(prompt: Any) -> None:
    partial = prompt.partial(history=[("ai", "Earlier.")])
    assert partial.invoke(GIVEN).to_messages() == [MESSAGES[0], AIMessage("Earlier."), MESSAGES[1]]
    assert partial.invoke({**GIVEN, "history": []}).to_messages() == MESSAGES


def test_the_constructor_takes_partial_variables() -> None:
    prompt = poml(partial_variables={"role": "a poet"})
    assert prompt.input_variables == ["question"]
    assert prompt.invoke("Why?").to_messages() == MESSAGES


def test_bound_config_reaches_the_run(prompt: Any) -> None:
    seen = RunRecorder()
    assert prompt.bind(stop=["x"]).invoke(GIVEN).to_messages() == MESSAGES
    configured = prompt.with_config(run_name="asked", tags=["one"], metadata={"two": 2}, callbacks=[seen])
    assert configured.invoke(GIVEN).to_messages() == MESSAGES
    assert seen.started == [{"name": "asked", "run_type": "prompt", "tags": ["one"], "metadata": {"two": 2}}]
    assert [value.to_messages() for value in seen.ended] == [MESSAGES]


async def test_metadata_and_tags_reach_the_run(make: Any) -> None:
    prompt = make(metadata={"version": "1"}, tags=["one"])
    seen = RunRecorder()
    prompt.invoke(GIVEN, {"metadata": {"two": 2}, "callbacks": [seen]})
    await prompt.ainvoke(GIVEN, {"tags": ["two"], "callbacks": [seen]})
    first, second = seen.started
    assert (first["metadata"], second["metadata"]) == ({"two": 2, "version": "1"}, {"version": "1"})
    assert (first["tags"], second["tags"]) == (["one"], ["two", "one"])


def test_the_runs_name_is_the_prompts(make: Any) -> None:
    seen = RunRecorder()
    make(name="Support answer").invoke(GIVEN, {"callbacks": [seen]})
    make().invoke(GIVEN, {"callbacks": [seen]})
    assert [run["name"] for run in seen.started] == ["Support answer", make().get_name()]


def test_configurable_fields_choose_the_markup() -> None:
    markup = "<p>Formally: {{x}}</p>"
    chain = PomlPromptTemplate("<p>Say {{x}}</p>").configurable_fields(template=ConfigurableField(id="markup"))
    assert chain.invoke({"x": "hi"}).to_string() == "Human: Say hi"
    assert chain.with_config(configurable={"markup": markup}).invoke({"x": "hi"}).to_string() == "Human: Formally: hi"


def test_configurable_fields_choose_the_partial_variables(prompt: Any) -> None:
    chain = prompt.configurable_fields(partial_variables=ConfigurableField(id="given"))
    chosen = chain.with_config(configurable={"given": {"role": "a poet"}})
    assert chosen.invoke({"question": "Why?"}).to_messages() == MESSAGES


def test_a_prompt_may_have_configurable_alternatives(make: Any) -> None:
    other = make(partial_variables={"role": "a cook"})
    chain = make().configurable_alternatives(ConfigurableField(id="prompt"), default_key="poet", cook=other)
    assert chain.invoke(GIVEN).to_messages() == MESSAGES
    cook = chain.with_config(configurable={"prompt": "cook"}).invoke({"question": "Why?"})
    assert cook.to_messages()[0].content == "You are a cook."


def test_a_prompt_may_be_retried_and_have_fallbacks(make: Any) -> None:
    prompt = make()
    assert prompt.with_retry(stop_after_attempt=2).invoke(GIVEN).to_messages() == MESSAGES
    safe = prompt.with_fallbacks([make(partial_variables={"question": "Why?"})], exceptions_to_handle=(KeyError,))
    assert safe.invoke({"role": "a poet"}).to_messages() == MESSAGES


async def test_format_document_takes_the_prompt() -> None:
    document = Document("A joke", metadata={"page": 1, "source": "x"})
    prompt = PomlPromptTemplate("<p>Page {{page}}: {{page_content}}</p>", chat=False)
    reference = PromptTemplate.from_template("Page {page}: {page_content}")
    assert format_document(document, prompt) == format_document(document, reference) == "Page 1: A joke"
    assert await aformat_document(document, prompt) == "Page 1: A joke"
    with pytest.raises(ValueError, match="missing metadata"):
        format_document(Document("A joke"), prompt)
