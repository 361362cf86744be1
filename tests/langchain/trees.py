"""Traces as text, for comparison as a whole, and a plain chain with the text of its trace."""

from __future__ import annotations

import asyncio
import gc
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import mlflow
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import SimpleChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable
from mlflow.entities import Span, Trace

from pomlflow.langchain import PomlPromptTemplate

GIVEN = {"name": "Ada"}
CHAIN = """\
RunnableSequence CHAIN
  FakeListChatModel CHAT_MODEL
  StrOutputParser CHAIN
  greet CHAIN
    poml greet PROMPT
"""
BROKEN = """\
RunnableSequence CHAIN ERROR
  Broken CHAT_MODEL ERROR
  greet CHAIN
    poml greet PROMPT
"""


class Broken(SimpleChatModel):
    """A model that fails."""

    @property
    def _llm_type(self) -> str:
        return "broken"

    def _call(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        raise ValueError("the model is out of order")


def greeting() -> PomlPromptTemplate:
    """A prompt of one variable."""
    return PomlPromptTemplate.from_template("<poml><task>Greet {{name}}.</task></poml>", name="greet")


def model(**options: Any) -> FakeListChatModel:
    """A model that answers ``Hi!``, in three chunks where it is streamed."""
    return FakeListChatModel(responses=["Hi!"], **options)


def chain(**options: Any) -> Runnable[Any, str]:
    """Prompt, model (with options), parser; its trace is `CHAIN`."""
    return greeting() | model(**options) | StrOutputParser()


def broken() -> Runnable[Any, str]:
    """A chain whose model fails; its trace is `BROKEN`."""
    return greeting() | Broken() | StrOutputParser()


@mlflow.trace
def traced(value: Any) -> Any:
    """A function of the user's own that MLflow traces."""
    return value


@mlflow.trace(name="traced")
async def atraced(value: Any) -> Any:
    """Async version of `traced`."""
    return value


def tree(trace: Trace) -> str:
    """A line for each span: name, type, status if it is not OK; children below, in the order of their text."""
    children: dict[str | None, list[Span]] = {}
    for span in trace.data.spans:
        children.setdefault(span.parent_id, []).append(span)

    def lines(span: Span) -> str:
        status = span.status.status_code.value
        head = f"{span.name} {span.span_type}{'' if status == 'OK' else f' {status}'}\n"
        return head + textwrap.indent("".join(sorted(map(lines, children.get(span.span_id, [])))), "  ")

    return "".join(map(lines, children[None]))


def trees(fetch: Callable[[], Sequence[Trace]]) -> list[str]:
    """The trees of all traces, in the order of their text."""
    return sorted(map(tree, fetch()))


def tree_of(head: str, *parts: str) -> str:
    """A tree of a root and subtrees."""
    return f"{head}\n" + textwrap.indent("".join(sorted(parts)), "  ")


async def wait_for_traces(count: int, stored_traces: Callable[[], Sequence[Trace]]) -> None:
    """Wait until that many traces have ended: LangChain reports some only when the event loop closes generators."""

    async def stored() -> None:
        while sum(trace.info.state.value != "IN_PROGRESS" for trace in stored_traces()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    gc.collect()
    await asyncio.wait_for(stored(), 30)
