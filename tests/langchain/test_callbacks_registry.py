"""Each prompt content is one version, linked to the traces of its renders. Mirrored in tests/llama_index."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from mlflow.entities import Trace
from tests.langchain.trees import GIVEN, QUIET, model
from tests.mlflow_server import until
from tests.pending import forget_pending
from tests.registry_prompts import linked, sources, told

import pomlflow
from pomlflow.exceptions import PomlError
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.tracking.publish import PromptRegistry

pytestmark = QUIET
HELLO = "<p>Hello {{name}}</p>"
AT_IMPORT = PomlPromptTemplate.from_template(HELLO, name=f"at-import-{uuid.uuid4().hex[:8]}")
Fetch = Callable[[], list[Trace]]


@pytest.fixture(autouse=True)
def _stored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")


@pytest.fixture
def unique() -> str:
    """A name that no other test has: the registry is the whole run's."""
    return f"greet-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def config() -> RunnableConfig:
    return {"callbacks": [PomlCallbackHandler()]}


@pytest.fixture
def links(stored_traces: Fetch) -> Callable[[], list[list[str]]]:
    """What each trace in the store is linked to, when all is done."""

    def of_all() -> list[list[str]]:
        assert pomlflow.flush()
        return [linked(trace) for trace in stored_traces()]

    return of_all


def hello(name: str | None, markup: str = HELLO, **options: Any) -> Any:
    return PomlPromptTemplate.from_template(markup, name=name, **options) | model()


def test_runs_of_every_kind_make_one_version_and_are_each_linked(
    links: Any, config: RunnableConfig, unique: str
) -> None:
    chain = hello(unique)

    async def several() -> None:
        await chain.abatch([GIVEN] * 3, config)
        await asyncio.gather(*(chain.ainvoke(GIVEN, config) for _ in range(3)))
        _ = [chunk async for chunk in chain.astream(GIVEN, config)]

    chain.batch([GIVEN] * 3, config)
    list(chain.stream(GIVEN, config))
    asyncio.run(several())
    assert links() == [[f"{unique}/1"]] * 11
    assert sources(unique) == [HELLO]


def test_a_prompt_made_at_import_is_linked_to_every_later_trace(links: Any, config: RunnableConfig) -> None:
    """MLflow itself links a prompt only to the trace that it was loaded in."""
    chain = AT_IMPORT | model()
    chain.invoke(GIVEN, config)
    chain.invoke(GIVEN, config)
    assert links() == [[f"{AT_IMPORT.name}/1"]] * 2


def test_the_span_tells_its_version_and_the_prompt_finds_its_traces(
    links: Any, stored_traces: Fetch, mlflow_store: str, config: RunnableConfig, unique: str
) -> None:
    hello(unique).invoke(GIVEN, config)
    links()
    hello(unique).invoke(GIVEN, config)
    (span,) = [span for span in stored_traces()[-1].data.spans if span.span_type == "PROMPT"]
    assert span.attributes["poml.prompt"] == f"prompts:/{unique}/1"

    def found() -> int:
        return len(mlflow.search_traces(locations=[mlflow_store], filter_string=f"prompt = '{unique}/1'"))

    until(lambda: found() == 2)


def test_all_prompts_of_one_trace_are_linked_to_it(links: Any, config: RunnableConfig, unique: str) -> None:
    """A prompt in a step, one inside a ChatPromptTemplate, and two contents of one name."""
    inner = PomlPromptTemplate.from_template(HELLO, name=f"{unique}-inner")

    def step(given: Any) -> Any:
        first, second = (hello(unique, f"<p>{word} {{{{name}}}}</p>") for word in ("One", "Two"))
        return [first.invoke(given), second.invoke(given), ChatPromptTemplate([inner]).invoke(given)]

    RunnableLambda(step).invoke(GIVEN, config)
    (found,) = links()
    assert sorted(found) == [f"{unique}-inner/1", f"{unique}/1", f"{unique}/2"]


@pytest.mark.parametrize(
    ("template", "handler", "expected"),
    [(None, True, 1), (None, False, 0), (False, True, 0), (True, False, 1)],
)
def test_the_template_decides_before_the_handler(
    links: Any, unique: str, template: bool | None, handler: bool, expected: int
) -> None:
    given = {"callbacks": [PomlCallbackHandler(register=handler)]}
    hello(unique, register=template).invoke(GIVEN, given)
    assert links() == [[f"{unique}/1"] * expected]
    assert len(sources(unique)) == expected


def test_inline_markup_without_a_name_is_not_registered(links: Any, config: RunnableConfig) -> None:
    hello(None).invoke(GIVEN, config)
    assert links() == [[]]


def test_a_failed_render_makes_no_version(links: Any, config: RunnableConfig, unique: str) -> None:
    with pytest.raises(PomlError):
        hello(unique, "<p>{{name.b.c}}</p>").invoke(GIVEN, config)
    assert links() == [[]]
    assert sources(unique) == []


@pytest.fixture(params=["refuses", "never answers"])
def away(request: pytest.FixtureRequest, mlflow_store: str) -> Iterator[str]:
    """What the registry's server does; what waits for it is forgotten at the end."""
    before = mlflow.get_registry_uri()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = 9 if request.param == "refuses" else server.getsockname()[1]
        mlflow.set_registry_uri(f"http://127.0.0.1:{port}")
        yield request.param
        mlflow.set_registry_uri(before)
        forget_pending(PromptRegistry.shared())


def test_a_server_that_is_away_costs_no_answer_and_one_warning(
    away: str, config: RunnableConfig, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that waited for it would end in the test's time limit: that server is silent for ever."""
    chain = hello(unique)

    async def several() -> list[Any]:
        return await chain.abatch([GIVEN] * 5, config)

    answers = [*chain.batch([GIVEN] * 5, config), *asyncio.run(several())]
    assert [answer.content for answer in answers] == ["Hi!"] * 10
    assert not pomlflow.flush(0.5)
    if away == "refuses":
        until(lambda: told(caplog))
    assert len(told(caplog)) == (away == "refuses")  # the other one may still answer
