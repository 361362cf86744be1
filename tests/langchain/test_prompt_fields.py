"""The fields of a POML prompt and of its values."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import StringPromptValue
from tests.langchain.prompts import GIVEN, MARKUP, Model, TextModel, poml, reference

from pomlflow.langchain import PomlPromptTemplate


def test_input_and_output_schemas_are_those_of_a_chat_prompt(prompt: Any) -> None:
    schema = prompt.get_input_jsonschema()
    assert schema["required"] == ["question", "role"] or schema["required"] == ["role", "question"]
    assert schema["title"] == "PromptInput"
    assert schema["properties"].keys() == {"role", "history", "question"}
    assert schema["properties"]["history"]["items"]["oneOf"]
    prompt.get_input_schema().model_validate({**GIVEN, "history": [AIMessage("x")]})
    output = reference().get_output_jsonschema()
    assert prompt.get_output_jsonschema() == {**output, "title": f"{type(prompt).__name__}Output"}
    assert (prompt | Model()).get_input_jsonschema() == schema


@pytest.mark.parametrize("name", ["schema", "_private", "model_json_schema", "copy", "json"])
def test_reserved_pydantic_names_are_allowed_in_input_schemas(name: str) -> None:
    """Without a warning too: in these tests, warnings are errors."""
    schema = PomlPromptTemplate(f"<p>{{{{{name}}}}}</p>").get_input_jsonschema()
    assert (list(schema["properties"]), schema["required"]) == ([name], [name])


def test_a_chain_lists_its_prompts(prompt: Any) -> None:
    assert (prompt | Model()).get_prompts() == [prompt]


def test_graphs_are_drawn(prompt: Any) -> None:
    graph = (prompt | Model() | StrOutputParser()).get_graph()
    assert [node.name for node in graph.nodes.values()] == [
        "PromptInput",
        type(prompt).__name__,
        "Model",
        "StrOutputParser",
        "StrOutputParserOutput",
    ]
    assert type(prompt).__name__ in graph.draw_mermaid()
    assert graph.to_json()["nodes"][1]["data"]["name"] == type(prompt).__name__


def test_pretty_printing_shows_the_markup(capsys: pytest.CaptureFixture[str]) -> None:
    poml().pretty_print()
    assert capsys.readouterr().out == MARKUP + "\n"
    assert poml().pretty_repr(html=True) == MARKUP
    assert "PomlPromptTemplate(input_variables=['role', 'question']" in repr(poml())


def test_the_class_name_and_template_that_openinference_reads() -> None:
    """Its tracer reads `template` of what ends in PromptTemplate."""
    assert type(poml()).__name__.endswith("PromptTemplate")
    assert poml().template == poml().source == MARKUP


# --- text instead of messages ---


async def test_with_chat_off_a_prompt_returns_text() -> None:
    prompt = PomlPromptTemplate("<task>Say {{x}}</task>", chat=False)
    value = prompt.invoke({"x": "hi"})
    assert isinstance(value, StringPromptValue)
    assert value.to_string() == value.text == "# Task\n\nSay hi" == prompt.format(x="hi")
    assert value.to_messages() == prompt.format_messages(x="hi") == [HumanMessage("# Task\n\nSay hi")]
    assert await prompt.ainvoke({"x": "hi"}) == value == StringPromptValue(text=value.text)
    assert StringPromptValue(text=value.text) == value
    model = TextModel()
    (prompt | model).invoke({"x": "hi"})
    assert model.received == ["# Task\n\nSay hi"]


def test_with_chat_off_roles_are_gone_and_a_chat_model_gets_a_human_message() -> None:
    model = Model()
    (poml(chat=False) | model).invoke({**GIVEN, "history": [("ai", "Earlier.")]})
    assert model.received == [[HumanMessage("You are a poet.\nEarlier.\nWhy?")]]


# --- fields ---


@pytest.mark.parametrize("field", ["template", "path", "chat", "base_dir", "stylesheet", "register_prompt"])
def test_what_a_prompt_is_made_of_cannot_be_set_afterwards(field: str) -> None:
    """It would change the prompt's fields, and not its renders."""
    with pytest.raises(ValueError, match="frozen"):
        setattr(poml(), field, None)


def test_a_stylesheet_is_applied() -> None:
    prompt = PomlPromptTemplate("<poml><p class='x'>{{v}}</p></poml>", stylesheet={"p": {"syntax": "xml"}})
    assert prompt.invoke("a").to_string() == "Human: ```xml\na\n```"


async def test_the_prompt_value_carries_the_frame() -> None:
    prompt = PomlPromptTemplate(
        '<poml><p>Hi {{x}}</p><runtime temperature="0.5"/>'
        '<tool-definition name="look" description="d" parser="json">{"type": "object", "properties": {}}'
        '</tool-definition><output-schema parser="json">{"type": "object", "properties": {}}</output-schema></poml>'
    )
    for value in (prompt.invoke({"x": 1}), await prompt.ainvoke({"x": 1}), prompt.format_prompt(x=1)):
        assert value.frame.runtime == {"temperature": 0.5}
        assert value.frame.output_schema == {"type": "object", "properties": {}}
        assert value.frame.tools[0]["name"] == "look"
        assert [(m.speaker, m.content) for m in value.frame.messages] == [("human", "Hi 1")]
    assert prompt.model_copy().invoke({"x": 1}) == value
    off = PomlPromptTemplate(prompt.template, chat=False).invoke({"x": 1})
    assert off.frame.runtime == {"temperature": 0.5}
    assert off.frame.messages[0].content == "Hi 1"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("chatt", "chat"), ("base_dri", "base_dir"), ("colour", None), ("regsiter", "register")],
)
def test_an_unknown_keyword_is_refused(name: str, meant: str | None) -> None:
    """LangChain's own prompts ignore it."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'") as refused:
        PomlPromptTemplate.from_template("<p>Hi</p>", **{name: False})
    assert meant is None or f"did you mean '{meant}'?" in str(refused.value)


def test_known_and_subclass_keywords_are_accepted() -> None:
    class Mine(PomlPromptTemplate):
        team: str = "none"

    prompt = Mine.from_template("<p>{{a}} {{b}}</p>", team="x", metadata={"k": 1}, tags=["t"], input_types={"a": str})
    prompt.invoke({"a": 1, "b": 2})
    assert prompt.partial(a=1).team == "x"
    assert prompt.model_copy(update={"team": "y"}).team == "y"


def test_a_variable_whose_name_is_no_text_is_ignored() -> None:
    given: Any = {1: "one", "name": "Ada"}
    assert PomlPromptTemplate("<p>Hello {{name}}</p>").invoke(given).to_string() == "Human: Hello Ada"
