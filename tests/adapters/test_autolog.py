"""`pomlflow.autolog()`: each call of a framework is traced once, in the same tree as with the handler."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import pytest
from mlflow.entities import Trace
from tests.adapters.frameworks import Framework
from tests.spans import poml_span
from tests.templates import HELLO

import pomlflow

Fetch = Callable[[], list[Trace]]
Tree = list[tuple[str, str, str]]


@pytest.fixture(autouse=True)
def _off(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    hooked = framework.hooked()
    yield
    pomlflow.autolog(disable=True)
    framework.mlflow_autolog(disable=True)
    assert framework.hooked() == hooked


@pytest.fixture
def prompt(framework: Framework) -> Any:
    return framework.prompts.from_template(HELLO, name="greet")


def tree(trace: Trace) -> Tree:
    """The name, type and parent's name of each span."""
    names = {span.span_id: span.name for span in trace.data.spans}
    return sorted((span.name, span.span_type, names.get(span.parent_id, "")) for span in trace.data.spans)


def trees(fetch: Fetch) -> list[Tree]:
    return sorted(map(tree, fetch()))


def path(trace: Trace) -> list[str]:
    """The name and type of each span from the root to the POML span."""
    spans = {span.span_id: span for span in trace.data.spans}
    found, span = [], poml_span(trace)
    while span is not None:
        found.insert(0, f"{span.name} {span.span_type}")
        span = spans.get(span.parent_id)
    return found


def test_a_check_is_neither_traced_nor_registered(framework: Framework, stored_traces: Fetch) -> None:
    pomlflow.autolog()
    checked = framework.prompts.from_template(HELLO, name="only-checked")
    assert checked.validate(name="Ada") == checked.validate() == []
    assert pomlflow.flush()
    assert stored_traces() == []
    assert mlflow.MlflowClient().get_prompt("only-checked") is None


def _in_threads(call: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(call) for _ in range(3)]:
            done.result()


async def _at_once(call: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.gather(call(), call())


# Ways to call: the number of calls, and a function that makes them with a handler, or none where it is False.
CALLS: dict[str, tuple[int, Callable[[Framework, Any, Any], Any]]] = {
    "run": (1, lambda f, prompt, handler: f.run(prompt, handler=handler, name="Ada")),
    "async": (1, lambda f, prompt, handler: f.arun(prompt, handler=handler, name="Ada")),
    "stream": (1, lambda f, prompt, handler: f.stream(prompt, handler=handler, name="Ada")),
    "async stream": (1, lambda f, prompt, handler: f.astream(prompt, handler=handler, name="Ada")),
    "at once": (2, lambda f, prompt, handler: _at_once(lambda: f.arun(prompt, handler=handler, name="Ada"))),
    "threads": (3, lambda f, prompt, handler: _in_threads(lambda: f.run(prompt, handler=handler, name="Ada"))),
    "batch": (3, lambda f, prompt, handler: f.batch(prompt, 3, handler=handler, name="Ada")),
    "async batch": (3, lambda f, prompt, handler: f.abatch(prompt, 3, handler=handler, name="Ada")),
}

SINGLE = {"at once": "async", "threads": "run", "batch": "run", "async batch": "async"}  # one of the calls in each


def run_call(call: str, framework: Framework, prompt: Any, handler: Any = False) -> None:
    made = CALLS[call][1](framework, prompt, handler)
    if inspect.isawaitable(made):
        asyncio.run(_awaited(made))


async def _awaited(made: Awaitable[Any]) -> Any:
    return await made


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_traced_as_with_the_handler(
    framework: Framework, prompt: Any, stored_traces: Fetch, call: str
) -> None:
    run_call(SINGLE.get(call, call), framework, prompt, framework.handler())
    (expected,) = trees(stored_traces)
    pomlflow.autolog()
    run_call(call, framework, prompt)
    assert trees(stored_traces) == [expected] * (1 + CALLS[call][0])


ORDERS = [*itertools.permutations(["ours", "mlflow"]), ("ours", "mlflow", "ours"), ("mlflow", "ours", "mlflow")]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("call", ["batch", "async"])
def test_nothing_is_traced_twice_with_the_autolog_of_mlflow(
    framework: Framework, prompt: Any, stored_traces: Fetch, order: tuple[str, ...], call: str
) -> None:
    run_call(SINGLE.get(call, call), framework, prompt, framework.handler())
    steps = {"ours": pomlflow.autolog, "mlflow": framework.mlflow_autolog}
    for step in order:
        steps[step]()
    run_call(call, framework, prompt)
    expected, *found = trees(stored_traces)
    assert found == [expected] * CALLS[call][0]


def test_the_autolog_of_mlflow_stays_when_ours_is_disabled(
    framework: Framework, prompt: Any, stored_traces: Fetch
) -> None:
    run_call("run", framework, prompt, framework.handler())
    framework.mlflow_autolog()
    pomlflow.autolog()
    pomlflow.autolog(disable=True)
    run_call("run", framework, prompt)
    expected, found = trees(stored_traces)
    assert found == expected
    framework.mlflow_autolog(disable=True)
    run_call("run", framework, prompt)
    assert len(stored_traces()) == 2


@pytest.mark.parametrize("where", ["call", "model", "everywhere"])
def test_an_additional_handler_makes_no_second_trace(
    framework: Framework, prompt: Any, stored_traces: Fetch, where: str
) -> None:
    run_call("run", framework, prompt, framework.handler())
    pomlflow.autolog()
    if where == "call":
        run_call("run", framework, prompt, framework.handler())
    else:
        framework.run_attached(prompt, framework.handler(), everywhere=where == "everywhere", name="Ada")
    expected, found = trees(stored_traces)
    assert found == expected


@pytest.mark.parametrize("how", ["ours", "MLflow's", "a handler"])
@pytest.mark.parametrize("call", ["run", "async"])
def test_a_plain_render_in_a_step_belongs_to_the_step(
    framework: Framework, stored_traces: Fetch, how: str, call: str
) -> None:
    async def astep(name: str) -> str:
        return str(await pomlflow.arender(HELLO, {"name": name}))

    handler: Any = framework.handler() if how == "a handler" else False
    if how != "a handler":
        pomlflow.autolog()
    if how == "MLflow's":
        framework.mlflow_autolog()
    steps = framework.run_step(greet, handler) if call == "run" else asyncio.run(framework.arun_step(astep, handler))
    traces = stored_traces()
    assert [path(trace) for trace in traces] == [[*step, "poml PROMPT"] for step in steps]
    assert [len(trace.data.spans) for trace in traces] == [len(step) + 1 for step in steps]


def greet(name: str) -> str:
    """Greet a person."""
    return str(pomlflow.poml(HELLO, {"name": name})[0]["content"])


def test_an_agent_is_traced_without_a_change(framework: Framework, stored_traces: Fetch) -> None:
    pomlflow.autolog()
    tool = framework.run_agent(greet)
    (trace,) = stored_traces()
    assert path(trace)[-len(tool) - 1 :] == [*tool, "poml PROMPT"]


def hidden(_: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": "hidden"}


@pytest.mark.parametrize("with_mlflow", [False, True], ids=["alone", "with MLflow's"])
def test_new_arguments_take_effect(framework: Framework, prompt: Any, stored_traces: Fetch, with_mlflow: bool) -> None:
    """With MLflow's autolog they apply to the POML span, the only one that is ours there."""
    if with_mlflow:
        framework.mlflow_autolog()
    for options in ({}, {"mask": hidden, "register": False}, {"log_traces": False}):
        pomlflow.autolog(**options)
        run_call("run", framework, prompt)
    pomlflow.flush()
    traces = stored_traces()
    assert ["mlflow.linkedPrompts" in trace.info.tags for trace in traces[:2]] == [True, False]
    assert poml_span(traces[0]).inputs["context"] == {"name": "Ada"}
    assert poml_span(traces[1]).inputs == "hidden"
    assert len(traces) == 2 + with_mlflow


def test_a_prompt_outside_every_call_is_a_trace_of_its_own(
    framework: Framework, prompt: Any, stored_traces: Fetch
) -> None:
    pomlflow.autolog()
    prompt.format_messages(name="Ada")
    with mlflow.start_span("work"):
        asyncio.run(prompt.aformat_messages(name="Ada"))
    assert trees(stored_traces) == [
        [("poml", "PROMPT", "")],
        [("poml greet", "PROMPT", "work"), ("work", "UNKNOWN", "")],
    ]
