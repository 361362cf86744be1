"""A POML file in LangGraph: in the nodes of a graph, and in LangGraph's own agent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from mlflow.entities import Trace
from tests.langchain.prompts import Agent
from tests.langchain.trees import trees

from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    prebuilt = pytest.importorskip("langgraph.prebuilt")

PROMPT = PomlPromptTemplate.from_template(
    """\
<poml>
  <runtime temperature="0.5"/>
  <system-msg>{{messages.length}} so far.</system-msg>
  <conversation messages="{{messages}}"/>
  <tool-definition name="weather" description="The weather.">
    {"type": "object", "properties": {"city": {"type": "string", "minLength": 3}}, "required": ["city"]}
  </tool-definition>
</poml>
""",
    name="sky",
)
QUESTION = {"messages": [HumanMessage("Oslo?")]}


def weather(city: str) -> str:
    """The function of the tool."""
    return f"Rain in {city}"


def calls(*cities: str) -> list[Any]:
    """Answers that call the tool, then one that does not."""
    calls = [
        AIMessage("", tool_calls=[{"name": "weather", "args": {"city": city}, "id": str(number)}])
        for number, city in enumerate(cities)
    ]
    return [*calls, "It rains."]


def graph(model: Any) -> Any:
    """An agent by hand: a node of prompt and model, a node of tools, and the loop."""
    chain = PROMPT.bind_to(model, tools=[weather])
    builder = StateGraph(MessagesState)
    builder.add_node("ask", lambda state: {"messages": [chain.invoke(state)]})
    builder.add_node("tools", prebuilt.ToolNode(PROMPT.tools([weather], messages=[])))
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", prebuilt.tools_condition)
    builder.add_edge("tools", "ask")
    return builder.compile()


def test_an_agent_made_by_hand_gets_the_whole_file_and_errors_for_wrong_arguments() -> None:
    model = Agent(answers=calls("Oz", "Oslo"))
    messages = graph(model).invoke(QUESTION)["messages"]
    refused, accepted = (message for message in messages if isinstance(message, ToolMessage))
    assert refused.status == "error"
    assert "'Oz' is too short" in refused.content
    assert accepted.content == "Rain in Oslo"
    assert [received[0].content for received in model.received] == ["1 so far.", "3 so far.", "5 so far."]
    assert {options["temperature"] for options in model.options} == {0.5}
    assert model.options[0]["tools"][0]["function"]["description"] == "The weather."


def test_a_graphs_trace_has_the_renders_in_their_nodes(stored_traces: Callable[[], list[Trace]]) -> None:
    graph(Agent(answers=calls("Oslo"))).invoke(QUESTION, {"callbacks": [PomlCallbackHandler()]})
    (tree,) = trees(stored_traces)
    step = "  ask CHAIN\n    RunnableSequence CHAIN\n      Agent CHAT_MODEL\n      sky CHAIN\n        poml sky PROMPT\n"
    assert tree.count(step) == 2
    assert tree.count("weather TOOL\n") == 1


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_langgraphs_react_agent_takes_the_prompt_and_its_tools() -> None:
    """The tools are bound to the model; the prompt makes the messages."""
    model = Agent(answers=calls("Oz", "Oslo"))
    agent = prebuilt.create_react_agent(model, PROMPT.tools([weather], messages=[]), prompt=PROMPT)
    messages = agent.invoke(QUESTION)["messages"]
    assert [message.status for message in messages if isinstance(message, ToolMessage)] == ["error", "success"]
    assert model.received[2][0].content == "5 so far."
    assert model.options[0]["tools"][0]["function"]["parameters"]["properties"]["city"]["minLength"] == 3
