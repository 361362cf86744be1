"""A model's methods outside of every engine: the handler, MLflow's autolog and both together trace them alike."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel
from tests.llama_index.traces import open_spans, tree, without_poml

from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

PROMPT = PomlPromptTemplate("<p>Say {{topic}}</p>", name="say")
MESSAGES = [ChatMessage(role="user", content="Hello")]
VERBS: dict[str, Callable[[Any], Any]] = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: llm.achat(MESSAGES),
    "stream_chat": lambda llm: llm.stream_chat(MESSAGES),
    "astream_chat": lambda llm: llm.astream_chat(MESSAGES),
    "complete": lambda llm: llm.complete("Hello"),
    "acomplete": lambda llm: llm.acomplete("Hello"),
    "stream_complete": lambda llm: llm.stream_complete("Hello"),
    "astream_complete": lambda llm: llm.astream_complete("Hello"),
    "predict": lambda llm: llm.predict(PROMPT, topic="POML"),
    "apredict": lambda llm: llm.apredict(PROMPT, topic="POML"),
    "stream": lambda llm: llm.stream(PROMPT, topic="POML"),
    "astream": lambda llm: llm.astream(PROMPT, topic="POML"),
}


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    yield
    _off()


def call_method(llm: Any, method: str, pieces: int) -> None:
    """Call a method, and read some pieces of its stream; with none, the stream is not started."""

    async def acall() -> None:
        result = await VERBS[method](llm)
        for _ in range(pieces if inspect.isasyncgen(result) else 0):
            await anext(result, None)

    if method.startswith("a"):
        asyncio.run(acall())
        return
    result = VERBS[method](llm)
    for _ in range(pieces if inspect.isgenerator(result) else 0):
        next(result, None)


@pytest.mark.parametrize("method", [method for method in VERBS if "stream" not in method])
def test_a_models_method_is_traced_alike_with_autolog(traced: Any, scripted: Any, method: str) -> None:
    """MLflow's autolog may be switched on before or after the handler."""
    handler = PomlCallbackHandler()
    on, off, attach, detach = mlflow.llama_index.autolog, _off, handler.attach, handler.detach
    stored = []
    for begin, end in (((attach,), (detach,)), ((on, attach), (detach, off)), ((attach, on), (off, detach))):
        for switch in begin:
            switch()
        (trace,) = traced(lambda: call_method(scripted("One two."), method, 0))
        for switch in end:
            switch()
        stored.append((tree(trace), trace.data.spans[0].outputs))
    assert stored[0] == stored[1] == stored[2]
    assert "ERROR" not in stored[0][0]
    assert open_spans() == 0


@pytest.mark.parametrize("method", [method for method in VERBS if "stream" in method])
def test_a_partly_read_stream_is_traced_with_the_text_so_far(traced: Any, scripted: Any, method: str) -> None:
    """Also a stream that is read in part, or not at all; no span stays open."""
    trees = set()
    for pieces in (3, 1, 0):
        with PomlCallbackHandler():
            (trace,) = traced(lambda pieces=pieces: call_method(scripted("One two."), method, pieces))
        text = str(trace.data.spans[0].outputs)
        assert ("One" in text, "two" in text) == (pieces > 0, pieces > 1)
        trees.add(tree(trace))
    (only,) = trees
    assert "ERROR" not in only
    assert open_spans() == 0


@pytest.mark.parametrize("method", VERBS)
def test_a_models_method_has_the_tree_of_autolog_alone(
    traced: Any, autolog_trees: Any, scripted: Any, method: str
) -> None:
    """MLflow ends an async stream's span before its start, and stores a generator's repr as the answer."""
    call = partial(call_method, scripted("One two."), method, 3)
    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert [without_poml(tree(trace))] == autolog_trees(call)


class City(BaseModel):
    name: str


@pytest.fixture
def city(scripted: Any, tool_call: Any) -> Callable[[], Any]:
    """Make a model that calls the function that LlamaIndex makes of `City`."""
    return lambda: scripted(tool_call("City", name="Oslo"))


def test_a_structured_stream_has_its_render_and_its_model_in_it(traced: Any, city: Any) -> None:
    """LlamaIndex renders and calls the model only when the first piece is read, and has left the span by then."""
    calls: list[Callable[[], Any]] = [
        lambda: list(city().stream_structured_predict(City, PROMPT, topic="POML"))[-1],
        lambda: asyncio.run(_last(city().astream_structured_predict(City, PROMPT, topic="POML"))),
    ]
    given: list[BaseModel] = []
    for call, a in zip(calls, ("", "a"), strict=True):
        with PomlCallbackHandler():
            (trace,) = traced(lambda call=call: given.append(call()))
        assert tree(trace).splitlines() == [
            f"ScriptedLLM.{a}stream_structured_predict LLM",
            "  poml say PROMPT",
            "  ScriptedLLM._prepare_chat_with_tools LLM",
            f"  ScriptedLLM.{a}stream_chat CHAT_MODEL",
        ]
        assert trace.data.spans[0].outputs == given[-1].model_dump()
    assert open_spans() == 0


def test_a_structured_stream_in_an_engine_is_in_its_place(traced: Any, index: Any, city: Any) -> None:
    prompt = PomlPromptTemplate("<p>{{context_str}} {{query_str}}</p>", name="qa")
    engine = index.as_query_engine(llm=city(), output_cls=City, streaming=True, text_qa_template=prompt)
    with PomlCallbackHandler():
        (trace,) = traced(lambda: engine.query("What?"))
    lines = tree(trace).splitlines()
    at = next(number for number, line in enumerate(lines) if "stream_structured_predict" in line)
    assert [line.strip() for line in lines[at + 1 :]] == [
        "poml qa PROMPT",
        "ScriptedLLM._prepare_chat_with_tools LLM",
        "ScriptedLLM.stream_chat CHAT_MODEL",
    ]
    assert {len(line) - len(line.lstrip()) for line in lines[at + 1 :]} == {lines[at].index("S") + 2}


def test_mlflows_own_tracer_still_splits_a_structured_stream(traced: Any, city: Any) -> None:
    """When this fails, MLflow stores all of it in one trace by itself, and its workaround can go."""
    mlflow.llama_index.autolog()
    traces = traced(lambda: list(city().stream_structured_predict(City, PROMPT, topic="POML")))
    assert "poml" in [span.name for trace in traces for span in trace.data.spans if span.parent_id is None]


async def _last(stream: Any) -> Any:
    return [piece async for piece in await stream][-1]


def _off() -> None:
    mlflow.llama_index.autolog(disable=True)
