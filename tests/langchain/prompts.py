"""One prompt, in POML and as LangChain's own template, and models that record what they receive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from pomlflow.langchain import PomlPromptTemplate

MARKUP = """\
<poml>
  <system-msg>You are {{role}}.</system-msg>
  <conversation messages="{{history}}"/>
  <human-msg>{{question}}</human-msg>
</poml>
"""
GIVEN = {"role": "a poet", "question": "Why?"}
MESSAGES: list[BaseMessage] = [SystemMessage("You are a poet."), HumanMessage("Why?")]


def poml(**options: Any) -> PomlPromptTemplate:
    """The prompt in POML."""
    return PomlPromptTemplate.from_template(MARKUP, **options)


def reference(**options: Any) -> ChatPromptTemplate:
    """The same prompt as a template of LangChain's own."""
    return ChatPromptTemplate(
        [("system", "You are {role}."), ("placeholder", "{history}"), ("human", "{question}")], **options
    )


class Model(BaseChatModel):
    """A chat model with scripted answers (texts, messages), in rotation, that records the messages it receives."""

    answers: list[Any] = Field(default_factory=lambda: ["the answer"])
    received: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self.answers[len(self.received) % len(self.answers)]
        self.received.append(messages)
        self.options.append({**kwargs, "stop": stop})
        message = AIMessage(answer) if isinstance(answer, str) else answer.model_copy()
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=tools, **kwargs)


class Agent(Model):
    """A scripted model that takes tools in LangChain's usual way."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)


class TextModel(LLM):
    """A text model with scripted answers, in rotation, that records the texts it receives."""

    answers: list[str] = Field(default_factory=lambda: ["the answer"])
    received: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted text"

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        self.received.append(prompt)
        return self.answers[(len(self.received) - 1) % len(self.answers)]


class RunRecorder(BaseCallbackHandler):
    """Records the callbacks of prompts and chains."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.ended: list[Any] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **options: Any) -> None:
        self.started.append({key: options[key] for key in ("name", "run_type", "tags", "metadata")})

    def on_chain_end(self, outputs: Any, **_: Any) -> None:
        self.ended.append(outputs)
