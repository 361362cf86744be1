"""`from_registry` in both frameworks: renders, traces, moved aliases, fallbacks, errors, copies, optimisation."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.adapters.frameworks import Framework
from tests.mlflow_server import DEAD
from tests.model_server import model_server
from tests.registry_prompts import (
    BYE,
    HELLO,
    LONG,
    found_by,
    linked,
    optimise_prompt,
    publish,
    publish_with_files,
    sources,
)
from tests.spans import poml_span
from tests.templates import write
from tests.waiting import until

import pomlflow
from pomlflow import NotPomlError, PromptNotFoundError, RegistryError, RenderError
from pomlflow.tracking.load import Reference


def production(framework: Framework, name: str, **options: Any) -> Any:
    """The version in production; a change of the alias is looked for ten times a second."""
    return framework.prompts.from_registry(f"prompts:/{name}@production", **{"refresh": 0.1, **options})


def test_a_trace_is_linked_to_the_version_that_was_used(framework: Framework, mlflow_store: str, name: str) -> None:
    """Also when the alias moves while the program runs; a run registers no version."""
    publish(name)
    prompt = production(framework, name)
    assert (prompt.source, prompt.version, prompt.uri) == (HELLO, 1, f"prompts:/{name}/1")
    framework.run(prompt, name="Ada")
    publish(name, BYE)
    until(lambda: prompt.version == 2)
    asyncio.run(framework.arun(prompt, name="Ada"))
    mlflow.flush_trace_async_logging()
    for version, content in ((1, "Hello Ada"), (2, "Bye Ada")):
        until(lambda version=version: len(found_by(f"{name}/{version}", mlflow_store)) == 1)
        trace = mlflow.get_trace(*found_by(f"{name}/{version}", mlflow_store))
        assert linked(trace) == [f"{name}/{version}"]
        span = poml_span(trace)
        assert span.name == f"poml {name}"
        assert span.attributes["poml.prompt"] == f"prompts:/{name}/{version}"
        assert span.outputs["messages"][0]["content"] == content
    assert sources(name) == [HELLO, BYE]


def test_model_settings_set_in_mlflow_reach_the_model_and_are_replayed(
    framework: Framework, mlflow_store: str, stored_traces: Any, name: str
) -> None:
    publish(name, "<poml><runtime temperature='0.5'/><p>Hello {{name}}</p></poml>")
    mlflow.genai.set_prompt_model_config(name, 1, {"temperature": 0.9, "top_p": 0.1})
    prompt = production(framework, name)
    with model_server() as server:
        framework.send(prompt, framework.client("openai", server.url), bound=True, name="Ada")
    assert (server.bodies[0]["temperature"], server.bodies[0]["top_p"]) == (0.5, 0.1)

    framework.run(prompt, name="Ada")
    (trace,) = stored_traces()
    span = poml_span(trace)
    assert span.outputs["runtime"] == {"temperature": 0.5, "topP": 0.1}
    assert span.attributes["poml.replay"]["runtime"] == {"topP": 0.1}
    mlflow.genai.delete_prompt_model_config(name, 1)
    assert pomlflow.replay(trace.info.trace_id).identical


def test_mlflows_optimiser_improves_a_loaded_prompt(
    framework: Framework, mlflow_store: str, stored_traces: Any, name: str
) -> None:
    """A prompt that was loaded before renders each candidate; no candidate but the best becomes a version."""
    publish(name, LONG)
    prompt = framework.partial(production(framework, name), how="at length")
    loaded_in_trials = set()

    def model(messages: list[str]) -> str:
        return "Paris" if "in a word" in messages[0] else "It is Paris, which lies on the Seine."

    def predict(question: str) -> str:
        loaded_in_trials.add(production(framework, name).version)
        return framework.run(prompt, model, question=question)

    result = optimise_prompt(name, predict, lambda source: source.replace("{{how}}", "{{how}}, in a word"))
    better = LONG.replace("{{how}}", "{{how}}, in a word")
    assert (result.initial_eval_score, result.final_eval_score) == (0, 3)
    assert sources(name) == [LONG, better]
    assert (prompt.source, prompt.version) == (LONG, 1)
    assert loaded_in_trials <= {1, None}

    # The optimiser's version has none of our tags, and is loaded as POML.
    best = framework.prompts.from_registry(name, version=2)
    assert best.source == better
    assert framework.messages(best, how="kindly", question="Why?")[0] == "Answer kindly, in a word."

    for trace in stored_traces():
        tried = "in a word" in str([span.outputs for span in trace.data.spans if span.name == f"poml {name}"])
        assert linked(trace) == ([] if tried else [f"{name}/1"])


def test_a_loaded_prompt_has_its_files(framework: Framework, mlflow_store: str, name: str, tmp_path: Path) -> None:
    publish_with_files(name, tmp_path)
    prompt = production(framework, name)
    assert framework.variables(prompt) == ["mood"]
    assert framework.text(prompt, mood="kind") == "Be kind.\n\nA note."


def test_registry_name_is_the_registrys_name(framework: Framework, mlflow_store: str, name: str) -> None:
    publish(name)
    assert production(framework, name).registry_name == name
    assert framework.prompts.from_template(HELLO, name="a b").registry_name == "a-b"
    assert framework.prompts.from_template(HELLO).registry_name is None


def test_without_the_registry_the_fallback_is_used(
    framework: Framework, mlflow_store: str, name: str, tmp_path: Path
) -> None:
    mlflow.set_registry_uri(DEAD)
    with pytest.raises(RegistryError, match=f"prompts:/{name}@production"):
        production(framework, name)
    prompt = production(framework, name, fallback=write(tmp_path / "fallback.poml", "<p>Fallback {{name}}</p>"))
    assert (framework.text(prompt, name="Ada"), prompt.version, prompt.uri) == ("Fallback Ada", None, None)


def test_an_error_names_the_version(framework: Framework, mlflow_store: str, name: str) -> None:
    publish(name, "<p>{{name.first.letter}}</p>")
    with pytest.raises(RenderError, match=f"^prompts:/{name}/1:1:4: ") as caught:
        framework.text(production(framework, name), name="Ada")
    assert (caught.value.file, caught.value.line, caught.value.column) == (f"prompts:/{name}/1", 1, 4)


@pytest.mark.parametrize("template", ["Hello {{name}}", [{"role": "user", "content": "Hello {{name}}"}]])
def test_a_version_that_is_not_poml_is_refused(
    framework: Framework, mlflow_store: str, name: str, template: Any
) -> None:
    mlflow.genai.register_prompt(name, template)
    with pytest.raises(NotPomlError, match=f"prompts:/{name}/1 is .*load_prompt"):
        framework.prompts.from_registry(name)
    with pytest.raises(PromptNotFoundError, match=f"prompts:/{name}/7"):
        framework.prompts.from_registry(name, version=7)


async def test_no_event_loop_waits_for_the_registry(
    framework: Framework, mlflow_store: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry answers when the loop lets it, which a blocked loop cannot."""
    publish(name)
    fetch, requested, answer = Reference.fetch, threading.Event(), threading.Event()

    def fetch_later(self: Reference, place: Any) -> Any:
        requested.set()
        assert answer.wait(60)
        return fetch(self, place)

    monkeypatch.setattr(Reference, "fetch", fetch_later)
    loading = asyncio.ensure_future(framework.prompts.afrom_registry(name, alias="production", refresh=0.1, timeout=60))
    assert await asyncio.to_thread(requested.wait, 60)
    answer.set()
    prompt = await loading
    answer.clear()
    requested.clear()
    publish(name, BYE)
    while not requested.is_set():
        assert await framework.amessages(prompt, name="Ada") == ["Hello Ada"]
    assert await framework.amessages(prompt, name="Ada") == ["Hello Ada"]
    answer.set()


def test_copies_follow_and_are_equal(framework: Framework, mlflow_store: str, name: str) -> None:
    publish(name)
    prompt = production(framework, name)
    copies = framework.copies(prompt)
    assert copies == [prompt] * len(copies)
    assert prompt != framework.prompts.from_registry(name, version=1)
    publish(name, BYE)
    copies.append(framework.partial(prompt))
    for one in copies:
        until(lambda one=one: framework.text(one, name="Ada") == "Bye Ada")
        assert (one.version, one.source) == (2, BYE)
