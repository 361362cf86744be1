"""Each prompt content is one version, linked to the traces of its renders."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from mlflow.entities import Trace
from tests.adapters.frameworks import Framework, LangChain, LlamaIndex
from tests.pending import drop_pending
from tests.registry_prompts import found_by, linked, sources, warnings_of
from tests.spans import poml_span
from tests.templates import HELLO
from tests.waiting import until

import pomlflow
from pomlflow.exceptions import PomlError

pytestmark = pytest.mark.usefixtures("sync_export")
Fetch = Callable[[], list[Trace]]


@pytest.fixture
def unique() -> str:
    """A name that no other test uses: all tests share a registry."""
    return f"greet-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def links(stored_traces: Fetch) -> Callable[[], list[list[str]]]:
    """The versions that each trace in the store is linked to, after a flush."""

    def of_all() -> list[list[str]]:
        assert pomlflow.flush()
        return [linked(trace) for trace in stored_traces()]

    return of_all


def hello(framework: Framework, name: str | None, markup: str = HELLO, **options: Any) -> Any:
    return framework.prompts.from_template(markup, name=name, **options)


def test_runs_of_every_kind_make_one_version_and_are_each_linked(framework: Framework, links: Any, unique: str) -> None:
    prompt, handler = hello(framework, unique), framework.handler()

    async def several() -> None:
        await asyncio.gather(*(framework.arun(prompt, name=f"Ada {number}") for number in range(3)))
        await framework.abatch(prompt, 3, name="Ada")
        await framework.astream(prompt, name="Ada")

    framework.run(prompt, handler=handler, name="Ada")
    framework.stream(prompt, handler=handler, name="Ada")
    framework.batch(prompt, 3, name="Ada")
    asyncio.run(several())
    assert links() == [[f"{unique}/1"]] * 12
    assert sources(unique) == [HELLO]


def test_a_prompt_made_before_any_trace_is_linked_to_every_later_one(
    framework: Framework, links: Any, unique: str
) -> None:
    """MLflow itself links a prompt only to the trace that it was loaded in."""
    prompt = hello(framework, unique)
    for _ in range(2):
        with mlflow.start_span("request"):
            framework.run(prompt, name="Ada")
    assert links() == [[f"{unique}/1"]] * 2


def test_the_span_has_its_version_and_the_prompt_finds_its_traces(
    framework: Framework, links: Any, stored_traces: Fetch, mlflow_store: str, unique: str
) -> None:
    framework.run(hello(framework, unique), name="Ada")
    links()
    framework.run(hello(framework, unique), name="Bob")
    assert poml_span(stored_traces()[-1]).attributes["poml.prompt"] == f"prompts:/{unique}/1"
    until(lambda: len(found_by(f"{unique}/1", mlflow_store)) == 2)


def test_another_content_is_another_version(framework: Framework, links: Any, unique: str) -> None:
    """Also in one trace, which is linked to both."""
    with mlflow.start_span("request"):
        for word in ("One", "Two"):
            framework.run(hello(framework, unique, f"<p>{word} {{{{name}}}}</p>"), name="Ada")
    (found,) = links()
    assert sorted(found) == [f"{unique}/1", f"{unique}/2"]


@pytest.mark.parametrize(
    ("template", "handler", "expected"),
    [(None, True, 1), (None, False, 0), (False, True, 0), (True, False, 1)],
)
def test_register_of_the_template_overrides_the_handlers(
    framework: Framework, links: Any, unique: str, template: bool | None, handler: bool, expected: int
) -> None:
    prompt = hello(framework, unique, register=template)
    framework.run(prompt, handler=framework.handler(register=handler), name="Ada")
    assert links() == [[f"{unique}/1"] * expected]
    assert len(sources(unique)) == expected


def test_inline_markup_without_a_name_is_not_registered(framework: Framework, links: Any) -> None:
    framework.run(hello(framework, None), name="Ada")
    assert links() == [[]]


def test_a_failed_render_makes_no_version(framework: Framework, links: Any, unique: str) -> None:
    with pytest.raises(PomlError):
        framework.run(hello(framework, unique, "<p>{{name.b.c}}</p>"), name="Ada")
    assert links() == [[]]
    assert sources(unique) == []


@pytest.fixture(params=["refuses", "never answers"])
def unreachable(request: pytest.FixtureRequest, mlflow_store: str) -> Iterator[str]:
    """A registry server that refuses or never answers; pending tasks are dropped at the end."""
    before = mlflow.get_registry_uri()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = 9 if request.param == "refuses" else server.getsockname()[1]
        mlflow.set_registry_uri(f"http://127.0.0.1:{port}")
        yield request.param
    mlflow.set_registry_uri(before)
    drop_pending()


def test_an_unreachable_server_loses_no_answer_and_logs_one_warning(
    framework: Framework, unreachable: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If a call waited for the silent server, the test would time out."""
    prompt = hello(framework, unique)

    async def several() -> list[str]:
        return await asyncio.gather(*(framework.arun(prompt, name="Ada") for _ in range(5)))

    answers = [*(framework.run(prompt, name="Ada") for _ in range(5)), *asyncio.run(several())]
    assert answers == ["the answer"] * 10
    if unreachable == "refuses":
        until(lambda: warnings_of(caplog))
    else:
        assert not pomlflow.flush(0.5)
    assert len(warnings_of(caplog)) == (unreachable == "refuses")  # a silent server might still answer


def test_both_frameworks_use_one_version(links: Any, unique: str) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    for framework in (LangChain(), LlamaIndex()):
        framework.run(hello(framework, unique), name="Ada")
    assert links() == [[f"{unique}/1"]] * 2
