"""MLflow's own tracer: how it traces a POML prompt, and its faults that our tracer works around."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import mlflow
import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from mlflow.entities import Trace
from tests.langchain.prompts import TextModel
from tests.langchain.trees import CHAIN, GIVEN, chain, greeting, tree_of, trees

from pomlflow.langchain import PomlCallbackHandler
from pomlflow.langchain.tracer import MlflowLangchainTracer

pytestmark = pytest.mark.usefixtures("sync_export")
Fetch = Callable[[], list[Trace]]
Call = Callable[[], Awaitable[Any] | Any]


@pytest.fixture
def autolog() -> Iterator[None]:
    mlflow.langchain.autolog(silent=True)
    yield
    mlflow.langchain.autolog(disable=True, silent=True)


async def _read(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


async def _gather(*calls: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*calls)


def format_in_a_step(given: Any) -> str:
    return str(greeting().format_messages(**given))


CALLS: dict[str, tuple[int, Call]] = {
    "invoke": (1, lambda: chain().invoke(GIVEN)),
    "batch": (3, lambda: chain().batch([GIVEN] * 3)),
    "stream": (1, lambda: list(chain().stream(GIVEN))),
    "ainvoke": (1, lambda: chain().ainvoke(GIVEN)),
    "abatch": (3, lambda: chain().abatch([GIVEN] * 3)),
    "astream": (1, lambda: _read(chain().astream(GIVEN))),
    "astream_events": (1, lambda: _read(chain().astream_events(GIVEN, version="v2"))),
    "gather": (2, lambda: _gather(chain().ainvoke(GIVEN), chain().ainvoke(GIVEN))),
    "traced": (1, mlflow.trace(lambda: chain().invoke(GIVEN), name="around")),
}


@pytest.mark.parametrize("inline", [False, True], ids=["in threads", "inline"])
@pytest.mark.parametrize(("renders", "call"), CALLS.values(), ids=CALLS)
def test_under_autolog_alone_each_render_is_a_span_below_its_prompt(
    stored_traces: Fetch, renders: int, call: Call, inline: bool
) -> None:
    mlflow.langchain.autolog(silent=True, run_tracer_inline=inline)
    try:
        _in_copied_context(call)
    finally:
        mlflow.langchain.autolog(disable=True, silent=True)
    assert _parents_of_poml_spans(stored_traces()) == ["greet"] * renders


@pytest.mark.usefixtures("autolog")
def test_under_autolog_a_prompt_that_is_formatted_in_a_step_belongs_to_the_step(stored_traces: Fetch) -> None:
    RunnableLambda(format_in_a_step).invoke(GIVEN)
    assert trees(stored_traces) == [tree_of("format_in_a_step CHAIN", "poml greet PROMPT\n")]


@pytest.mark.usefixtures("autolog")
def test_under_autolog_a_prompt_inside_a_chat_prompt_belongs_to_that(stored_traces: Fetch) -> None:
    ChatPromptTemplate([greeting()], name="both").invoke(GIVEN)
    assert trees(stored_traces) == [tree_of("both CHAIN", "poml greet PROMPT\n")]


def test_mlflows_own_tracer_as_a_handler_gets_the_span_too(stored_traces: Fetch) -> None:
    chain().invoke(GIVEN, {"callbacks": [MlflowLangchainTracer()]})
    assert trees(stored_traces) == [CHAIN]


class Recording(AsyncCallbackHandler):
    """A user's handler that records the names of its callbacks."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def on_llm_start(self, *_: Any, **__: Any) -> None:
        self.events.append("start")

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.events.append("end")


async def _recorded(other: BaseCallbackHandler) -> list[str]:
    recording = Recording()
    await (greeting() | TextModel()).ainvoke(GIVEN, {"callbacks": [other, recording]})
    return recording.events


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.filterwarnings("ignore:astream_events version='v1' is deprecated")
async def test_events_of_a_text_model_report_its_start(stored_traces: Fetch, version: Any) -> None:
    config: RunnableConfig = {"callbacks": [PomlCallbackHandler(register=False)]}
    events = (greeting() | TextModel()).astream_events(GIVEN, config, version=version)
    assert "on_llm_start" in [event["event"] async for event in events]
    text = tree_of("RunnableSequence CHAIN", "TextModel LLM\n", "greet CHAIN\n  poml greet PROMPT\n")
    assert trees(stored_traces) == [text]


async def test_other_handlers_get_a_text_models_start_together_with_ours(mlflow_store: str) -> None:
    assert await _recorded(PomlCallbackHandler(register=False)) == ["start", "end"]


def _in_copied_context(call: Call) -> None:
    """Call in a copy of the context: MLflow's tracer leaves spans in it."""
    result = contextvars.copy_context().run(call)
    if inspect.isawaitable(result):
        asyncio.run(_await_if_needed(lambda: result))


async def _await_if_needed(call: Call) -> Any:
    result = call()
    return await result if inspect.isawaitable(result) else result


def _parents_of_poml_spans(traces: list[Trace]) -> list[str]:
    """Return the name of each poml span's parent."""
    found = []
    for trace in traces:
        names = {span.span_id: span.name for span in trace.data.spans}
        found += [names.get(span.parent_id, "nothing") for span in trace.data.spans if span.name == "poml greet"]
    return found
