"""What is stored of LangChain's runs, and what a mask leaves of it; more for both frameworks in tests/adapters."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from mlflow.entities import Trace
from tests.langchain.prompts import Model, TextModel
from tests.langchain.trees import CHAIN, GIVEN, chain, greeting, model, tree, tree_of
from tests.spans import everything, hide

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.langchain.tracer import MlflowLangchainTracer
from pomlflow.tracking import spans as tracking

pytestmark = pytest.mark.usefixtures("sync_export")
ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
Fetch = Callable[[], list[Trace]]


def config_with(**options: Any) -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler(register=False, **options)]}


class Documents(BaseRetriever):
    """Finds a document about the query."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [Document(f"about {query}", metadata={"doc_uri": "a.txt"})]


@tool
def look(at: str) -> str:
    """Look at something."""
    return f"saw {at}"


# --- LangChain's own runs


def test_what_is_stored_is_what_mlflows_tracer_stores(stored_traces: Fetch) -> None:
    """Inputs, outputs, types and attributes of chains, models of both kinds, tools and retrievers."""
    prompt = ChatPromptTemplate([("human", "{context}: {question}")])
    steps = {"context": Documents(), "question": look} | prompt | Model() | (lambda said: said.content) | TextModel()

    def stored(handler: Any) -> list[Any]:
        assert steps.invoke("sea", {"callbacks": [handler]}) == "the answer"
        spans = stored_traces()[-1].data.spans
        assert {"RETRIEVER", "TOOL", "CHAT_MODEL", "LLM", "CHAIN"} <= {span.span_type for span in spans}
        names = {span.span_id: span.name for span in spans}
        found = [
            (span.name, span.span_type, names.get(span.parent_id), _without_ids(dict(span.attributes)))
            for span in spans
        ]
        return sorted(found, key=str)

    assert stored(PomlCallbackHandler()) == stored(MlflowLangchainTracer())


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: None if key in {"mlflow.traceRequestId", "id"} else _without_ids(value[key]) for key in value}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def test_media_are_attachments_and_not_inline(stored_traces: Fetch) -> None:
    """In every span: media of a prompt, of a caller and of a model's answer."""
    file = (ASSETS / "box.jpg").as_posix()  # a smaller one is text in a prompt's variables: `frame.media._LONG`
    prompt = PomlPromptTemplate.from_template(
        f'<poml><human-msg>See <img src="{file}" syntax="multimedia"/></human-msg>'
        '<conversation messages="{{history}}"/></poml>'
    )
    data = prompt.invoke({}).to_messages()[0].content[1]["base64"]
    block = {"type": "image", "base64": data, "mime_type": "image/jpeg"}
    steps = prompt | Model(answers=[AIMessage([{"type": "text", "text": "Here."}, block])])
    steps.invoke({"history": [HumanMessage(["and", block])]}, config_with())
    (trace,) = stored_traces()
    assert data not in everything(trace)
    for span in trace.data.spans:
        assert "mlflow-attachment://" in json.dumps([span.inputs, span.outputs]), span.name


# --- several handlers


def _marking(name: str) -> dict[str, Any]:
    """Return the options of a handler that stores a name instead of content."""
    return {"mask": lambda _: {"inputs": name}}


def _with_autolog(run: Callable[[], Any]) -> None:
    pomlflow.autolog(register=False, **_marking("autolog"))
    try:
        run()
    finally:
        pomlflow.autolog(disable=True)


def in_with_config_and_the_call(other: RunnableConfig, call: RunnableConfig) -> None:
    chain().with_config(other).invoke(GIVEN, call)


def in_a_step_and_the_call(other: RunnableConfig, call: RunnableConfig) -> None:
    (greeting() | model().with_config(other) | StrOutputParser()).invoke(GIVEN, call)


def in_a_model_and_the_call(other: RunnableConfig, call: RunnableConfig) -> None:
    chain(**other).invoke(GIVEN, call)


def in_the_call_and_autolog(_: RunnableConfig, call: RunnableConfig) -> None:
    _with_autolog(lambda: chain().invoke(GIVEN, call))


def in_a_step_and_autolog(other: RunnableConfig, _: RunnableConfig) -> None:
    _with_autolog(lambda: (greeting() | model().with_config(other) | StrOutputParser()).invoke(GIVEN))


@pytest.mark.parametrize(
    ("run", "first"),
    [
        (in_with_config_and_the_call, "other"),
        (in_a_step_and_the_call, "call"),
        (in_a_model_and_the_call, "call"),
        (in_the_call_and_autolog, "call"),
        (in_a_step_and_autolog, "autolog"),
    ],
)
def test_of_several_handlers_the_first_in_langchains_order_traces(
    run: Callable[[RunnableConfig, RunnableConfig], None], first: str, stored_traces: Fetch
) -> None:
    """Each span is stored once, and by the mask of one handler: never by one of each."""
    run(config_with(**_marking("other")), config_with(**_marking("call")))
    (trace,) = stored_traces()
    assert tree(trace) == CHAIN
    assert {span.inputs for span in trace.data.spans} == {first}


# --- masks


def test_a_mask_reaches_models_of_texts_tools_and_retrievers(stored_traces: Fetch) -> None:
    prompt = PomlPromptTemplate.from_template("<p>secret {{name}}</p>", name="greet")
    given, config = {"name": "secret"}, config_with(mask=hide)
    assert (prompt | TextModel(answers=["A secret."])).batch([given] * 2, config) == ["A secret."] * 2
    look.invoke({"at": "secret"}, config)
    Documents().invoke("secret", config)
    traces = stored_traces()
    assert len(traces) == 4
    for trace in traces:
        assert "secret" not in everything(trace), tree(trace)
        assert "***" in everything(trace)


# --- what goes wrong in tracing


class Unreadable:
    """A value that cannot be read."""

    def __repr__(self) -> str:
        raise LookupError("unreadable")


def test_metadata_with_a_lone_surrogate_do_not_lose_the_trace(stored_traces: Fetch) -> None:
    chain().invoke(GIVEN, {**config_with(), "metadata": {"at": "\ud83d here"}})
    (trace,) = stored_traces()
    assert tree(trace) == CHAIN
    assert trace.data.spans[0].attributes["metadata"]["at"].endswith(" here")


class UnreadableError(Exception):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise LookupError("unreadable")


class Unlisted(dict[str, int]):
    """A dict that cannot be read."""

    def items(self) -> Any:
        raise LookupError("unreadable")


@pytest.mark.parametrize("value", [Unreadable(), Unlisted(a=1)], ids=["object", "dict"])
@pytest.mark.parametrize("mask", [None, hide])
def test_a_value_that_cannot_be_read_costs_its_attribute_and_not_the_span(
    value: Any, mask: Any, stored_traces: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    """Metadata of a call, and an argument that is bound to the model: MLflow's tracer would store no span of these."""
    config = config_with(mask=mask)
    (greeting() | model().bind(extra=value) | StrOutputParser()).invoke(GIVEN, config)
    chain().invoke(GIVEN, {**config, "metadata": {"at": value}})
    bound, described = stored_traces()
    assert tree(bound) == tree(described) == CHAIN
    (called,) = (span for span in bound.data.spans if span.name == "FakeListChatModel")
    assert "invocation_params" not in called.attributes
    assert "metadata" in called.attributes
    assert {record.name for record in caplog.records} <= {"pomlflow"}


def test_mlflows_tracer_still_loses_a_run_that_cannot_be_read(stored_traces: Fetch) -> None:
    chain().invoke(GIVEN, {"callbacks": [MlflowLangchainTracer()], "metadata": {"at": Unreadable()}})
    assert stored_traces() == []


@pytest.mark.parametrize("mask", [None, hide])
def test_an_error_that_cannot_be_read_costs_its_text_and_not_the_trace(mask: Any, stored_traces: Fetch) -> None:
    def fail(_: Any) -> None:
        raise UnreadableError

    with pytest.raises(UnreadableError):
        (greeting() | RunnableLambda(fail)).invoke(GIVEN, config_with(mask=mask))
    (trace,) = stored_traces()
    assert tree(trace) == tree_of(
        "RunnableSequence CHAIN ERROR", "fail CHAIN ERROR\n", "greet CHAIN\n  poml greet PROMPT\n"
    )
    assert trace.data.spans[0].status.description == "UnreadableError"


def test_a_render_that_cannot_be_traced_is_one_warning(
    stored_traces: Fetch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("broken")

    monkeypatch.setattr(tracking, "_start", fail)
    config = config_with()
    with caplog.at_level(logging.WARNING, "pomlflow"):
        assert [chain().invoke(GIVEN, config) for _ in range(2)] == ["Hi!"] * 2
        RunnableLambda(lambda given: str(greeting().format_messages(**given))).invoke(GIVEN, config)
    assert [record.getMessage() for record in caplog.records] == [
        "A render could not be traced: LookupError('broken') (further warnings suppressed)"
    ]
    assert len(stored_traces()) == 3
