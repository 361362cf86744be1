"""LangChain's prompts out of MLflow's registry: used, followed, traced, copied, optimised."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from langchain_core.load import dumps, loads
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from tests.langchain.prompts import Model
from tests.langchain.trees import QUIET
from tests.mlflow_server import mlflow_server, until, use_server
from tests.registry_prompts import BYE, HELLO, LONG, linked, optimised, publish, publish_with_files, sources

from pomlflow import NotPomlError, PromptNotFoundError, RenderError
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.tracking.load import Reference

__all__ = ["mlflow_server", "use_server"]
pytestmark = QUIET

LOADING: dict[str, Any] = {"valid_namespaces": ["pomlflow"]}
if "allowed_objects" in inspect.signature(loads).parameters:  # LangChain 1.0 does not ask for the classes
    LOADING["allowed_objects"] = [PomlPromptTemplate]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt's name that no other test has; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    return f"{tmp_path.name}-{os.getpid()}"


def production(name: str, **options: Any) -> PomlPromptTemplate:
    """What is in production, followed ten times a second."""
    return PomlPromptTemplate.from_registry(f"prompts:/{name}@production", **{"refresh": 0.1, **options})


def text(prompt: PomlPromptTemplate, **variables: Any) -> str:
    """Render to one text."""
    return "\n".join(str(message.content) for message in prompt.invoke(variables).to_messages())


def chain(prompt: PomlPromptTemplate) -> Any:
    return prompt | Model() | StrOutputParser()


@pytest.mark.server
def test_a_trace_is_linked_to_the_version_that_was_used(mlflow_server, use_server, name):
    """Also when the alias moves while the program runs; and no version is made for it."""
    experiment = use_server(mlflow_server)
    publish(name)
    prompt = production(name)
    assert (prompt.source, prompt.version, prompt.uri) == (HELLO, 1, f"prompts:/{name}/1")
    callbacks = [PomlCallbackHandler()]
    chain(prompt).invoke({"name": "Ada"}, config={"callbacks": callbacks})
    publish(name, BYE)
    until(lambda: prompt.version == 2)
    asyncio.run(chain(prompt).ainvoke({"name": "Ada"}, config={"callbacks": callbacks}))
    mlflow.flush_trace_async_logging()

    def found(version: int) -> list[Any]:
        query = f"prompt = '{name}/{version}'"
        return mlflow.search_traces(locations=[experiment], filter_string=query, return_type="list")

    for version, content in ((1, "Hello Ada"), (2, "Bye Ada")):
        until(lambda version=version: len(found(version)) == 1)
        (trace,) = found(version)
        assert linked(trace) == [f"{name}/{version}"]
        (span,) = [span for span in trace.data.spans if span.name == f"poml {name}"]
        assert span.attributes["poml.prompt"] == f"prompts:/{name}/{version}"
        assert span.outputs["messages"][0]["content"] == content
    assert sources(name) == [HELLO, BYE]


def test_mlflows_optimiser_makes_it_better(mlflow_store, stored_traces, name):
    """The candidates reach the renders of a prompt that was there before; none of them becomes a version."""
    publish(name, LONG)
    prompt = production(name).partial(how="at length")

    def model(messages: list[BaseMessage]) -> str:
        return "Paris" if "briefly" in str(messages[0].content) else "It is Paris, which lies on the Seine."

    answers = prompt | RunnableLambda(lambda value: model(value.to_messages()))

    def predict(question: str) -> str:
        return answers.invoke({"question": question}, config={"callbacks": [PomlCallbackHandler()]})

    result = optimised(name, predict, lambda source: source.replace("{{how}}", "briefly"))
    better = LONG.replace("{{how}}", "briefly")
    assert (result.initial_eval_score, result.final_eval_score) == (0, 3)
    assert sources(name) == [LONG, better]
    assert (prompt.source, prompt.version) == (LONG, 1)

    # The optimiser's own version has none of our tags: it is POML all the same.
    best = PomlPromptTemplate.from_registry(name, version=2)
    assert best.source == better
    assert best.invoke("Why?").to_messages()[0].content == "Answer briefly."

    for trace in stored_traces():
        tried = "Answer briefly." in str([span.outputs for span in trace.data.spans if span.name == f"poml {name}"])
        assert linked(trace) == ([] if tried else [f"{name}/1"])


def test_its_files_come_along(mlflow_store, name, tmp_path):
    publish_with_files(name, tmp_path)
    prompt = production(name)
    assert prompt.input_variables == ["mood"]
    assert text(prompt, mood="kind") == "Be kind.\n\nA note."


def test_an_error_names_the_version(mlflow_store, name):
    publish(name, "<p>{{name.first.letter}}</p>")
    with pytest.raises(RenderError, match=f"^prompts:/{name}/1:1:4: ") as caught:
        text(production(name), name="Ada")
    assert (caught.value.file, caught.value.line, caught.value.column) == (f"prompts:/{name}/1", 1, 4)


@pytest.mark.parametrize("template", ["Hello {{name}}", [{"role": "user", "content": "Hello {{name}}"}]])
def test_what_is_not_poml_is_refused(mlflow_store, name, template):
    mlflow.genai.register_prompt(name, template)
    with pytest.raises(NotPomlError, match=f"prompts:/{name}/1 is .*load_prompt"):
        PomlPromptTemplate.from_registry(name)
    with pytest.raises(PromptNotFoundError, match=f"prompts:/{name}/7"):
        PomlPromptTemplate.from_registry(name, version=7)


async def test_no_event_loop_waits_for_the_registry(mlflow_store, name, monkeypatch):
    publish(name)
    fetch, answer = Reference.fetch, threading.Event()

    def slowly(self: Reference, place: Any) -> Any:
        assert answer.wait(60)
        return fetch(self, place)

    monkeypatch.setattr(Reference, "fetch", slowly)
    loading = asyncio.ensure_future(
        PomlPromptTemplate.afrom_registry(name, alias="production", refresh=0.1, timeout=60)
    )
    await asyncio.sleep(0)
    answer.set()  # which a loop that waits would never come to
    prompt = await loading
    answer.clear()
    publish(name, BYE)
    assert (await prompt.ainvoke({"name": "Ada"})).to_messages()[0].content == "Hello Ada"
    answer.set()


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_copies_follow_and_are_equal(mlflow_store, name):
    publish(name)
    prompt = production(name)
    dumped = loads(dumps(prompt), **LOADING)
    copies = [copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt)), dumped]
    assert copies == [prompt] * 4
    assert prompt != PomlPromptTemplate.from_registry(name, version=1)
    publish(name, BYE)
    copies.append(prompt.partial())
    for one in copies:
        until(lambda one=one: text(one, name="Ada") == "Bye Ada")
        assert (one.version, one.template) == (2, BYE)


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_a_dumped_prompt_is_loaded_without_a_registry(mlflow_store, name):
    """With what it was when it was dumped; its files did not travel in there."""
    publish(name)
    dumped = dumps(production(name))
    mlflow.set_registry_uri("http://127.0.0.1:9")
    prompt = loads(dumped, **LOADING)
    assert (text(prompt, name="Ada"), prompt.version) == ("Hello Ada", None)
    assert prompt._core.current().roots == ()
