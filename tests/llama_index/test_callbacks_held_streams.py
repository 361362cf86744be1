"""A stream that has ended is stored by a flush, also while a variable or a traceback holds its generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

from llama_index.core.instrumentation import get_dispatcher
from tests.llama_index.conftest import Cut, ScriptedLLM
from tests.llama_index.traces import tree

from pomlflow import flush
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

SCHEMA = '<output-schema parser="json">{"type": "object", "properties": {"a": {"type": "integer"}}}</output-schema>'

FAILING: dict[str, Callable[[Any], Any]] = {
    "stream": lambda prompt: Cut().stream(prompt, context_str="a", query_str="b"),
    "stream_structured_predict": lambda _: (
        PomlPromptTemplate(f"<poml><p>Hi</p>{SCHEMA}</poml>", name="schema")
        .bind_to(ScriptedLLM.of('{"a": "text"}'))
        .stream_structured_predict()
    ),
}


@pytest.mark.parametrize("method", FAILING)
def test_a_stream_that_failed_is_stored_by_a_flush_while_its_exception_is_kept(
    traced: Any, prompt: Any, method: str
) -> None:
    """The traceback keeps the generators: in an ``except`` block, a list, or a notebook's ``sys.last_exc``."""

    def call() -> None:
        stream = FAILING[method](prompt)
        with pytest.raises((ConnectionError, ValueError)) as caught:
            list(stream)
        assert flush(30)
        kept.append(caught.value)

    kept: list[BaseException] = []
    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert trace.data.spans[0].name.endswith(method)
    assert trace.info.state == ("ERROR" if method == "stream" else "OK")


class Component:
    """Its generators read no stream when they are returned."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    @get_dispatcher().span
    def lazy(self) -> Iterator[Any]:
        def pieces() -> Iterator[Any]:
            for piece in self.llm.stream_complete("Hi"):
                yield piece.delta

        return pieces()

    @get_dispatcher().span
    def without_model(self) -> Iterator[Any]:
        return (letter for letter in "ab")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("lazy", "Component.lazy CHAIN\n  ScriptedLLM.stream_complete LLM"),
        ("without_model", "Component.without_model CHAIN"),
    ],
)
def test_a_held_generator_that_has_ended_is_stored_by_a_flush(
    traced: Any, scripted: Any, method: str, expected: str
) -> None:
    held = []

    def call() -> None:
        held.append(getattr(Component(scripted("One two.")), method)())
        assert len(list(held[0])) == 2
        assert flush(30)

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert tree(trace) == expected
    assert trace.info.state == "OK"
