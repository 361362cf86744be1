"""An existing agent of each framework, traced by one added line. Runs offline, without a key.

    python examples/attach_to_existing_agent.py

Both agents call a tool that renders a POML prompt; the render's span is in the agent's trace, below the tool's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.tools import FunctionTool

import pomlflow
from pomlflow import langchain, llama_index

MARKUP = "<poml><task>Say what the weather means for the crew.</task><p>{{weather}} at {{place}}</p></poml>"
STORE = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"


def langchain_agent() -> None:
    """Run a LangChain agent with the handler in the call's config."""
    advice = langchain.PomlPromptTemplate.from_template(MARKUP, name="advice")
    writer = GenericFakeChatModel(messages=iter([AIMessage("Stay on board.")]))

    @tool
    def advise(place: str) -> str:
        """Advise the crew."""
        return str((advice | writer).invoke({"weather": "Gale", "place": place}).content)

    class FakeModel(GenericFakeChatModel):
        def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
            return self

    call = {"name": "advise", "args": {"place": "station 4"}, "id": "1"}
    model = FakeModel(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("They should stay on board.")]))
    agent = create_agent(model, [advise])

    state = agent.invoke(
        {"messages": [("human", "May the crew go ashore at station 4?")]},
        config={"callbacks": [langchain.PomlCallbackHandler()]},  # the added line
    )
    print("LangChain:", state["messages"][-1].content)


class Model(CustomLLM):
    """A LlamaIndex model that calls the tool, then answers, and that writes the advice."""

    @property
    def metadata(self) -> LLMMetadata:
        """Return the model's properties."""
        return LLMMetadata(model_name="scripted")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer at once."""
        if "for the crew" in prompt:
            return CompletionResponse(text="Stay on board.")
        if "Observation: Stay on board." in prompt:
            return CompletionResponse(text="Thought: I can answer now.\nAnswer: They should stay on board.")
        step = 'Thought: I need advice.\nAction: advise\nAction Input: {"place": "station 4"}'
        return CompletionResponse(text=step)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer in one piece."""
        response = self.complete(prompt)
        yield CompletionResponse(text=response.text, delta=response.text)


async def llama_index_agent() -> None:
    """Run a LlamaIndex agent with the handler attached to it."""
    model = Model()
    advice = llama_index.PomlPromptTemplate(MARKUP, name="advice")

    def advise(place: str) -> str:
        """Advise the crew."""
        return model.predict(advice, weather="Gale", place=place)

    agent = ReActAgent(tools=[FunctionTool.from_defaults(advise)], llm=model)

    llama_index.PomlCallbackHandler().attach(agent)  # the added line
    print("LlamaIndex:", await agent.run("May the crew go ashore at station 4?"))


def main() -> None:
    """Run both agents, then show what MLflow stored of each."""
    mlflow.set_tracking_uri(STORE)
    for run in (langchain_agent, lambda: asyncio.run(llama_index_agent())):
        mlflow.set_experiment("agents")
        run()
        pomlflow.flush()
        trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
        assert trace is not None
        names = {span.span_id: span.name for span in trace.data.spans}
        poml = next(span for span in trace.data.spans if span.span_type == "PROMPT")
        print(f"  {len(names)} spans; {poml.name!r} is a child of {names[poml.parent_id]!r}")
        print(f"  linked prompts: {trace.info.tags['mlflow.linkedPrompts']}\n")
    print(f"To see them in MLflow: {os.path.relpath(sys.executable)} -m mlflow ui --backend-store-uri {STORE}")


if __name__ == "__main__":
    main()
