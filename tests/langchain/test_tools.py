"""Functions for the tools of a POML file: it describes them and checks their arguments."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, Tool, ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.prebuilt import InjectedState, ToolNode
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pomlflow import ToolArgumentsError, ToolError
from pomlflow.langchain import PomlPromptTemplate

MARKUP = """\
<poml>
  <tool-definition name="weather" description="At {{place}}">
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
     "required": ["city"], "additionalProperties": false}
  </tool-definition>
  <p>Go.</p>
</poml>
"""
PROMPT = PomlPromptTemplate.from_template(MARKUP, name="sky")


def poml_tool(function: Any) -> BaseTool:
    (found,) = PROMPT.tools({"weather": function}, place="sea")
    return found


def weather(city: str, days: int = 1) -> str:
    """The function's own description."""
    return f"Rain in {city} for {days}"


def test_a_tool_has_the_files_description_and_runs_the_function() -> None:
    found = poml_tool(weather)
    assert convert_to_openai_tool(found)["function"] == {
        "name": "weather",
        "description": "At sea",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    assert found.invoke({"city": "Oslo", "days": 2}) == "Rain in Oslo for 2"


def test_functions_may_be_given_under_their_own_names() -> None:
    (found,) = PROMPT.tools([weather], place="sea")
    assert found.name == "weather"


def test_arguments_against_the_schema_are_refused_as_langchain_refuses_them() -> None:
    with pytest.raises(ValidationError, match=r"days\s+9 is greater than the maximum of 7") as caught:
        poml_tool(weather).invoke({"city": "Oslo", "days": 9})
    assert isinstance(caught.value.__cause__, ToolArgumentsError)
    assert caught.value.__cause__.tool == "weather"


def test_a_tool_that_handles_its_errors_returns_them() -> None:
    found = poml_tool(weather)
    found.handle_validation_error = True
    answer = found.invoke({"type": "tool_call", "name": "weather", "id": "1", "args": {}})
    assert isinstance(answer, ToolMessage)
    assert answer.status == "error"


async def test_an_async_function_is_awaited() -> None:
    async def aweather(city: str, days: int = 1) -> str:
        return f"Async rain in {city}"

    assert await poml_tool(aweather).ainvoke({"city": "Oslo"}) == "Async rain in Oslo"


class Day(BaseModel):
    """What a function takes."""

    city: str


def test_langchain_converts_arguments_to_the_types_of_the_function() -> None:
    markup = '<poml><tool-definition name="plan">{"type": "object"}</tool-definition><p>Go.</p></poml>'
    (found,) = PomlPromptTemplate.from_template(markup).tools({"plan": lambda day: day})
    assert found.invoke({"day": {"city": "Oslo"}}) == {"city": "Oslo"}

    def plan(day: Day) -> str:
        return day.city

    (found,) = PomlPromptTemplate.from_template(markup).tools([plan])
    assert found.invoke({"day": {"city": "Oslo"}}) == "Oslo"


class CallableObject:
    """An object that is called."""

    def __call__(self, **given: Any) -> str:
        return json.dumps(given)


@pytest.mark.parametrize("function", [CallableObject(), lambda **given: json.dumps(given)])
def test_a_function_that_takes_anything_gets_all(function: Any) -> None:
    assert poml_tool(function).invoke({"city": "Oslo", "days": 2}) == '{"city": "Oslo", "days": 2}'


def test_a_function_that_lacks_an_argument_of_the_definition_is_refused() -> None:
    """LangChain would drop the argument."""
    with pytest.raises(ToolError, match="sky: the function of <tool-definition> 'weather' does not accept 'days'"):
        poml_tool(lambda city: city)


def test_a_null_of_strict_mode_does_not_reach_the_function() -> None:
    assert poml_tool(weather).invoke({"city": "Oslo", "days": None}) == "Rain in Oslo for 1"


@tool("other_name", response_format="content_and_artifact", return_direct=True)
def own(city: str, days: int = 1, secret: Annotated[str, InjectedToolArg] = "") -> tuple[str, str]:
    """Tell the weather, by a LangChain tool."""
    if city == "Nowhere":
        raise ToolException("no such city")
    return f"Sun in {city}", secret


def test_a_langchain_tool_keeps_its_own_fields() -> None:
    found = poml_tool(own)
    assert (found.name, found.description, found.return_direct) == ("weather", "At sea", True)
    answer = found.invoke({"type": "tool_call", "name": "weather", "id": "1", "args": {"city": "Oslo", "secret": "s"}})
    assert (answer.content, answer.artifact) == ("Sun in Oslo", "s")
    with pytest.raises(ToolException, match="no such city"):
        found.invoke({"city": "Nowhere"})


class Custom(BaseTool):
    """A tool of a class of its own."""

    name: str = "weather"
    description: str = "Custom"

    def _run(self, city: str) -> str:
        return f"Snow in {city}"


async def test_a_tool_may_be_of_any_class() -> None:
    assert poml_tool(Custom()).invoke({"city": "Oslo"}) == "Snow in Oslo"
    assert await poml_tool(Custom()).ainvoke({"city": "Oslo"}) == "Snow in Oslo"


def test_a_tool_of_any_class_keeps_return_direct() -> None:
    assert poml_tool(Custom(return_direct=True)).return_direct
    assert poml_tool(Tool("weather", lambda city: city, "Tell the weather.", return_direct=True)).return_direct


class Structured(StructuredTool):
    """A tool without a function, but with a method."""

    def _run(self, city: str, **_: Any) -> str:
        return f"Hail in {city}"


def test_a_structured_tool_without_a_function_runs_its_own_method() -> None:
    function = Structured(name="weather", description="Structured", args_schema=Day)
    assert poml_tool(function).invoke({"city": "Oslo"}) == "Hail in Oslo"


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([], "sky defines 'weather' without a function"),
        ({"weather": weather, "now": len}, "sky has no <tool-definition> for the function 'now'"),
    ],
)
def test_tools_and_functions_must_match(functions: Any, message: str) -> None:
    prompt = PomlPromptTemplate.from_template(MARKUP.replace("{{place}}", "sea"), name="sky")
    with pytest.raises(ToolError, match=message):
        prompt.tools(functions)


def test_functions_of_a_file_without_tools_describe_themselves() -> None:
    (found,) = PomlPromptTemplate.from_template("<p>Go to {{place}}.</p>").tools([weather], place="sea")
    assert (found.name, set(found.args)) == ("weather", {"city", "days"})
    assert found.invoke({"city": "Oslo"}) == weather("Oslo")


def test_a_partial_function_of_a_file_without_tools_has_its_functions_description() -> None:
    (found,) = PomlPromptTemplate.from_template("<p>Go.</p>").tools({"weather": partial(weather, days=2)})
    assert found.description == "The function's own description."
    assert found.invoke({"city": "Oslo"}) == "Rain in Oslo for 2"


def test_a_function_is_no_error_where_another_render_may_define_its_tool() -> None:
    assert [tool.name for tool in PROMPT.tools({"weather": weather, "now": len}, place="sea")] == ["weather"]


def test_a_tool_node_injects_the_state_and_returns_errors_to_the_model() -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    def counting(city: str, days: int = 1, *, state: Annotated[dict[str, Any], InjectedState]) -> str:
        return f"{city} after {len(state['messages'])}"

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([poml_tool(counting)]))
    graph.add_edge(START, "tools")
    calls = [{"name": "weather", "args": args, "id": str(number)} for number, args in enumerate([{"city": "Oslo"}, {}])]
    messages = graph.compile().invoke({"messages": [HumanMessage("Hi"), AIMessage("", tool_calls=calls)]})["messages"]
    done, refused = messages[2:]
    assert (done.content, done.status) == ("Oslo after 2", "success")
    assert refused.status == "error"
    assert "'city' is a required property" in refused.content


def test_langgraphs_tool_node_still_leaves_out_errors_without_a_location() -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    @tool
    def refusing(city: str) -> str:
        """Refuse."""
        kind = PydanticCustomError("refused", "there is no such city")
        raise ValidationError.from_exception_data("refusing", [InitErrorDetails(type=kind, loc=(), input=city)])

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([refusing]))
    graph.add_edge(START, "tools")
    call = {"name": "refusing", "args": {"city": "Atlantis"}, "id": "1"}
    *_, answer = graph.compile().invoke({"messages": [HumanMessage("Hi"), AIMessage("", tool_calls=[call])]})[
        "messages"
    ]
    assert "there is no such city" not in answer.content
