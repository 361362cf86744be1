"""One POML file defines an agent for both frameworks: its prompt, examples, tool, settings and answer schema.

    python examples/agent_with_poml.py

Runs offline, without a key. The models are scripted; what they were called with is on their spans in MLflow.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM

import pomlflow
from pomlflow import langchain, llama_index

PILOT = Path(__file__).parent / "prompts" / "harbour.poml"
SHIP = {"ship": "Ada", "stations": 9}
QUESTION = "May we land at station 4?"
CALL = {"station": 4}
ANSWER = '{"ashore": false, "reason": "Gale until noon."}'
STORE = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"


def forecast(station: int, hours: int = 6) -> str:
    """Return the forecast: the function for the tool in the POML file, in both frameworks."""
    return f"station {station}: gale for {hours} hours"


class ScriptedChatModel(GenericFakeChatModel):
    """A LangChain model that calls the tool, then answers."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Bind the tools and settings as a provider's client does."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)


def langchain_agent() -> dict[str, Any]:
    """Run a LangChain agent with the POML file as a middleware."""
    pilot = langchain.PomlPromptTemplate.from_file(PILOT, partial_variables=SHIP)
    call = {"name": "forecast", "args": CALL, "id": "1"}
    model = ScriptedChatModel(messages=iter([AIMessage("", tool_calls=[call]), AIMessage(ANSWER)]))

    agent = create_agent(model, middleware=[langchain.PomlMiddleware(pilot, tools=[forecast])])
    state = agent.invoke({"messages": [("human", QUESTION)]}, config={"callbacks": [langchain.PomlCallbackHandler()]})
    print("the tool returned:", state["messages"][2].content)
    return dict(state["structured_response"])


def llama_index_agent() -> dict[str, Any]:
    """Run a LlamaIndex agent whose arguments come from the POML file."""
    pilot = llama_index.PomlPromptTemplate.from_file(PILOT)
    calls = [("forecast", CALL), ("Answer", json.loads(ANSWER))]  # LlamaIndex requests a structured answer as a call
    first, last = (
        ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name=name, tool_kwargs=arguments)])
        for name, arguments in calls
    )
    script = iter([first, ChatMessage(role="assistant", content="There is a gale."), last])
    model = MockFunctionCallingLLM(is_chat_model=True, response_generator=lambda *_, **__: next(script))

    agent = FunctionAgent(**pilot.agent_kwargs(model, tools=[forecast], **SHIP))

    async def run() -> Any:
        return await agent.run(QUESTION)

    with llama_index.PomlCallbackHandler():
        response = asyncio.run(run())
    print("the tool returned:", response.tool_calls[0].tool_output.content)
    return dict(response.structured_response)


def show() -> None:
    """Print what MLflow stored of the last agent."""
    pomlflow.flush()
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace is not None
    by_type: dict[str, list[Any]] = {}
    for span in trace.data.spans:
        by_type.setdefault(span.span_type, []).append(span)
    print(f"  {len(by_type.get('PROMPT', []))} renders, linked: {trace.info.tags['mlflow.linkedPrompts']}")
    for span in by_type.get("CHAT_MODEL") or by_type["LLM"]:
        called_with = span.inputs.get("kwargs") if isinstance(span.inputs, dict) else None  # LlamaIndex's
        settings = called_with or span.attributes.get("invocation_params") or span.attributes
        if "temperature" in settings:  # LlamaIndex wraps the model for a structured answer
            print(f"  {span.name} called with: temperature {settings['temperature']}, tokens {settings['max_tokens']}")


def main() -> None:
    """Run the agents, and show what MLflow stored of each."""
    mlflow.set_tracking_uri(STORE)
    mlflow.set_experiment("agents with POML")
    agents: dict[str, Callable[[], dict[str, Any]]] = {"LangChain": langchain_agent, "LlamaIndex": llama_index_agent}
    for framework, run in agents.items():
        print(f"{framework}: {json.dumps(run())}")
        show()
    print(f"To see them in MLflow: {os.path.relpath(sys.executable)} -m mlflow ui --backend-store-uri {STORE}")


if __name__ == "__main__":
    main()
