"""An agent that is a POML file, for the tests of the middleware; a test that needs it is skipped without langchain."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from pomlflow.langchain import PomlPromptTemplate

agents = pytest.importorskip("langchain.agents")
middlewares = pytest.importorskip("langchain.agents.middleware")
from pomlflow.langchain import PomlMiddleware  # noqa: E402 - it is made from langchain's agents

MARKUP = """\
<poml>
  <runtime temperature="0.5" stop-sequences='["END"]'/>
  <system-msg>You serve {{ship}}. {{messages.length}} so far.</system-msg>
  <human-msg>Example?</human-msg>
  <ai-msg>Yes.</ai-msg>
  <tool-definition name="weather" description="At {{ship}}">
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
     "required": ["city"]}
  </tool-definition>
</poml>
"""
SCHEMA = (
    '<output-schema>{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}</output-schema>'
)
QUESTION = {"messages": [HumanMessage("Oslo?")]}
ADA = {"variables": lambda state, runtime: {"ship": "the Ada"}}


def tool_call(identity: str = "1", **arguments: Any) -> AIMessage:
    """An answer that calls the tool."""
    return AIMessage("", tool_calls=[{"name": "weather", "args": arguments, "id": identity}])


def weather(city: str, days: int = 1) -> str:
    """The function of the tool."""
    return f"Rain in {city} for {days}"


def prompt(markup: str = MARKUP, **options: Any) -> PomlPromptTemplate:
    return PomlPromptTemplate.from_template(markup, name="crew", **options)


def poml_agent(model: Any, *others: Any, markup: str = MARKUP, **options: Any) -> Any:
    """An agent of the prompt and the function."""
    ours = {key: options.pop(key) for key in ("tools", "variables") if key in options}
    poml = PomlMiddleware(prompt(markup), **{"tools": [weather], **ADA, **ours})
    return agents.create_agent(model, middleware=[poml, *others], **options)
