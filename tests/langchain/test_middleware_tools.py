"""The tools of an agent that is a POML file: described and validated by the file, implemented by functions."""

from __future__ import annotations

import pytest
from langchain.tools import ToolRuntime
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from tests.langchain.agents import (
    ADA,
    MARKUP,
    QUESTION,
    PomlMiddleware,
    agents,
    middlewares,
    poml_agent,
    prompt,
    tool_call,
    weather,
)
from tests.langchain.prompts import Agent

from pomlflow import ToolError


def test_wrong_arguments_go_back_to_the_model_and_the_function_is_not_called() -> None:
    called = []
    model = Agent(answers=[tool_call("1", city="Oslo", days=9), tool_call("2", city="Oslo", days=7), "It rains."])
    state = poml_agent(model, tools={"weather": lambda **given: called.append(given) or "Rain"}).invoke(QUESTION)
    refused, accepted = (message for message in state["messages"] if isinstance(message, ToolMessage))
    assert (refused.status, refused.tool_call_id) == ("error", "1")
    assert "9 is greater than the maximum of 7" in refused.content
    assert (accepted.status, accepted.content) == ("success", "Rain")
    assert called == [{"city": "Oslo", "days": 7}]


async def test_wrong_arguments_go_back_to_an_async_agents_model_too() -> None:
    model = Agent(answers=[tool_call(days=1), "Sorry."])
    state = await poml_agent(model).ainvoke(QUESTION)
    assert state["messages"][2].status == "error"


def test_a_tool_whose_schema_the_state_decides_is_checked_by_the_state() -> None:
    markup = MARKUP.replace('"maximum": 7', '"maximum": {{limit}} ')
    limits = iter([1, 1, 9, 9, 9])  # read by each call of the model, and of the tool
    model = Agent(answers=[tool_call("1", city="Oslo", days=5), tool_call("2", city="Oslo", days=5), "It rains."])
    agent = poml_agent(model, markup=markup, variables=lambda state, runtime: {"ship": "x", "limit": next(limits)})
    messages = agent.invoke(QUESTION)["messages"]
    assert [message.status for message in messages if isinstance(message, ToolMessage)] == ["error", "success"]


def located(city: str, runtime: ToolRuntime, days: int = 1) -> str:
    """A function with an argument that LangChain injects."""
    return f"{city} after {len(runtime.state['messages'])}, call {runtime.tool_call_id}, {days}"


def test_a_function_gets_the_runtime_with_checked_arguments() -> None:
    model = Agent(answers=[tool_call("7", city="Oslo", runtime="mine"), tool_call("8", city="Oslo"), "So."])
    markup = MARKUP.replace('"required": ["city"]', '"required": ["city"], "additionalProperties": false')
    state = poml_agent(model, markup=markup, tools={"weather": located}).invoke(QUESTION)
    results = [message.content for message in state["messages"] if isinstance(message, ToolMessage)]
    assert results == ["Oslo after 2, call 7, 1", "Oslo after 4, call 8, 1"]
    (function,) = (found["function"] for found in model.options[0]["tools"])
    assert "runtime" not in function["parameters"]["properties"]


def test_a_conditional_tool_is_offered_and_checked_when_it_is_defined() -> None:
    """Also where the model's own call changes what decides it."""
    markup = MARKUP.replace('name="weather"', 'name="weather" if="{{messages.length == 3}}"')
    model = Agent(answers=["Hm.", tool_call(city="Oslo", days=9), "Sorry."])
    agent = poml_agent(model, markup=markup)
    first = agent.invoke(QUESTION)["messages"]
    last = agent.invoke({"messages": [*first, HumanMessage("And?")]})["messages"]
    assert ["tools" in options for options in model.options] == [False, True, False]
    assert next(message for message in last if isinstance(message, ToolMessage)).status == "error"


@tool("weather")
def agents_weather(city: str, days: int = 1) -> str:
    """Tell the weather, by a LangChain tool."""
    return f"Sun in {city}"


@tool
def now() -> str:
    """The time."""
    return "noon"


def test_a_tool_of_the_agent_is_described_too_and_others_are_kept() -> None:
    model = Agent(answers=[tool_call(city="Oslo"), "It shines."])
    agent = agents.create_agent(model, tools=[agents_weather, now], middleware=[PomlMiddleware(prompt(), **ADA)])
    state = agent.invoke(QUESTION)
    assert state["messages"][2].content == "Sun in Oslo"
    described = {found["function"]["name"]: found["function"]["description"] for found in model.options[0]["tools"]}
    assert described == {"weather": "At the Ada", "now": "The time."}


@pytest.mark.parametrize("of_the_agent", [True, False])
def test_the_prompts_own_tools_may_be_given_to_the_agent_or_the_middleware(of_the_agent: bool) -> None:
    crew = prompt()
    tools = crew.tools({"weather": located}, ship="the Ada", messages=[])
    own = () if of_the_agent else tools
    model = Agent(answers=[tool_call(city="Oslo", days=9), tool_call("7", city="Oslo"), "So."])
    middleware = [PomlMiddleware(crew, tools=own, **ADA)]
    state = agents.create_agent(model, tools=tools if of_the_agent else [], middleware=middleware).invoke(QUESTION)
    refused, accepted = (message for message in state["messages"] if isinstance(message, ToolMessage))
    assert (refused.status, accepted.content) == ("error", "Oslo after 4, call 7, 1")


def test_a_tool_without_a_function_and_a_function_without_a_tool_are_errors() -> None:
    with pytest.raises(ToolError, match="crew defines 'weather' without a function"):
        poml_agent(Agent(), tools=()).invoke(QUESTION)
    with pytest.raises(ToolError, match="no <tool-definition> for the function 'now'"):
        poml_agent(Agent(), tools=[weather, now], markup=MARKUP.replace("At {{ship}}", "At sea")).invoke(QUESTION)
    with pytest.raises(ToolError, match="two functions"):
        poml_agent(Agent(), tools=[weather, weather])


def test_functions_describe_themselves_if_the_markup_defines_no_tool() -> None:
    model = Agent(answers=["Noon."])
    poml_agent(model, tools=[now], markup="<system-msg>You serve {{ship}}.</system-msg>").invoke(QUESTION)
    (tool,) = model.options[0]["tools"]
    assert (tool["function"]["name"], tool["function"]["description"]) == ("now", "The time.")


def test_a_call_that_a_person_edited_is_checked_by_the_schema_too() -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.types import Command

    human = middlewares.HumanInTheLoopMiddleware(interrupt_on={"weather": True})
    config = {"configurable": {"thread_id": "1"}}
    memory = InMemorySaver()
    poml_agent(Agent(answers=[tool_call(city="Oslo")]), human, checkpointer=memory).invoke(QUESTION, config)
    edited = {"name": "weather", "args": {"city": "Oslo", "days": 99}}
    resumed = poml_agent(Agent(answers=["Sorry."]), human, checkpointer=memory)  # as another process would
    state = resumed.invoke(Command(resume={"decisions": [{"type": "edit", "edited_action": edited}]}), config)
    refused = next(message for message in state["messages"] if isinstance(message, ToolMessage))
    assert (refused.status, "maximum of 7" in refused.content) == ("error", True)
