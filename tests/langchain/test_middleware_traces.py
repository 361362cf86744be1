"""What is stored of an agent that is a POML file: each render under its own model step, linked, with the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from mlflow.entities import Trace
from tests.langchain.prompts import Agent
from tests.langchain.trees import trees

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

agents = pytest.importorskip("langchain.agents")
from pomlflow.langchain import PomlMiddleware  # noqa: E402 - it is made from langchain's agents

MARKUP = """\
<poml>
  <runtime temperature="0.5"/>
  <system-msg>{{messages.length}} so far.</system-msg>
  <tool-definition name="weather">{"type": "object", "properties": {"day": {"enum": {{days}} }}}</tool-definition>
</poml>
"""
STEP = """\
  model CHAIN
    Agent CHAT_MODEL
    crew CHAIN
      poml crew PROMPT
"""
TREE = f"LangGraph CHAIN\n{STEP}{STEP}  tools CHAIN\n    weather TOOL\n"
QUESTION = {"messages": [("user", "Oslo?")]}
Fetch = Callable[[], list[Trace]]


def agent() -> Any:
    call = {"name": "weather", "args": {"day": "Mon"}, "id": "1"}
    prompt = PomlPromptTemplate.from_template(MARKUP, name="crew", register=True, partial_variables={"days": ["Mon"]})
    return agents.create_agent(
        Agent(answers=[AIMessage("", tool_calls=[call]), "Rain."]),
        middleware=[PomlMiddleware(prompt, tools={"weather": lambda day: f"Rain on {day}"})],
    )


def test_each_render_is_a_child_of_its_model_step_and_is_linked(stored_traces: Fetch) -> None:
    config = {"callbacks": [PomlCallbackHandler()]}
    agent().invoke(QUESTION, config)
    list(agent().stream(QUESTION, config))
    pomlflow.flush()
    traces = stored_traces()
    assert trees(stored_traces) == [TREE, TREE], "the render that a tool's call is checked by is no span"
    for trace in traces:
        assert json.loads(trace.info.tags["mlflow.linkedPrompts"]) == [{"name": "crew", "version": "1"}]
        spans = {span.span_type: span for span in trace.data.spans}
        assert spans["CHAT_MODEL"].attributes["invocation_params"]["temperature"] == 0.5
        shown = sorted(
            span.outputs["messages"][0]["content"] for span in trace.data.spans if span.span_type == "PROMPT"
        )
        assert shown == ["1 so far.", "3 so far."]


async def test_an_async_agents_renders_are_there_too(stored_traces: Fetch) -> None:
    await agent().ainvoke(QUESTION, {"callbacks": [PomlCallbackHandler()]})
    assert trees(stored_traces) == [TREE]
