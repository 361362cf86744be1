"""Every way of running a chain, with a handler: the whole tree of spans is fetched back from the store."""

from __future__ import annotations

import asyncio
import inspect
import threading
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import mlflow
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel
from mlflow.tracing.provider import get_current_otel_span
from opentelemetry.trace import use_span
from tests.langchain.trees import BROKEN, CHAIN, GIVEN, atraced, broken, chain, greeting, model, traced, tree_of, trees

from pomlflow.exceptions import MissingVariableError
from pomlflow.langchain import PomlCallbackHandler

pytestmark = pytest.mark.usefixtures("sync_export")
Run = Callable[[RunnableConfig], Awaitable[None] | None]

TRACED_STEP = CHAIN.replace("  Str", "  RunnableLambda CHAIN\n    traced UNKNOWN\n  Str")
CASES: list[Any] = []


def case(*expected: str, autolog: tuple[str, ...] | None = None) -> Callable[[Run], Run]:
    """A way of running a chain, and the expected span trees; `autolog` if they differ with MLflow's autolog."""

    def add(run: Run) -> Run:
        CASES.append(pytest.param(run, sorted(expected), False, id=run.__name__))
        CASES.append(pytest.param(run, sorted(autolog or expected), True, id=f"{run.__name__} with autolog"))
        return run

    return add


@mlflow.trace
def around(call: Callable[[], Any]) -> Any:
    return call()


@mlflow.trace(name="around")
async def aaround(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


@case(CHAIN)
def invoke(config: RunnableConfig) -> None:
    assert chain().invoke(GIVEN, config) == "Hi!"


@case(CHAIN)
def with_config(config: RunnableConfig) -> None:
    chain().with_config(config).invoke(GIVEN)


@case(*[CHAIN] * 4)
def batch_and_then_the_same_thread(config: RunnableConfig) -> None:
    assert chain().batch([GIVEN] * 3, config) == ["Hi!"] * 3
    chain().invoke(GIVEN, config)


@case(CHAIN)
def stream(config: RunnableConfig) -> None:
    assert list(chain().stream(GIVEN, config)) == ["H", "i", "!"]


@case(tree_of("RunnableParallel<one,two> CHAIN", CHAIN, CHAIN))
def parallel(config: RunnableConfig) -> None:
    RunnableParallel(one=chain(), two=chain()).invoke(GIVEN, config)


@case(BROKEN, CHAIN)
def model_error_and_then_the_same_thread(config: RunnableConfig) -> None:
    with pytest.raises(ValueError, match="out of order"):
        broken().invoke(GIVEN, config)
    chain().invoke(GIVEN, config)


@case(tree_of("RunnableSequence CHAIN ERROR", "greet CHAIN ERROR\n  poml greet PROMPT ERROR\n"))
def missing_variable(config: RunnableConfig) -> None:
    with pytest.raises(MissingVariableError):
        chain().invoke({}, config)


@case(CHAIN)
def same_handler_twice(config: RunnableConfig) -> None:
    chain().invoke(GIVEN, {"callbacks": config["callbacks"] * 2})


@case(CHAIN)
def two_handlers(config: RunnableConfig) -> None:
    chain().invoke(GIVEN, {"callbacks": [*config["callbacks"], PomlCallbackHandler()]})


@case(CHAIN)
def in_the_chain_and_in_a_step(config: RunnableConfig) -> None:
    chain(callbacks=config["callbacks"]).with_config(config).invoke(GIVEN, config)


@case("FakeListChatModel CHAT_MODEL\n", autolog=(CHAIN,))
def in_a_models_constructor_alone(config: RunnableConfig) -> None:
    chain(callbacks=config["callbacks"]).invoke(GIVEN)


@case("FakeListChatModel CHAT_MODEL\n", autolog=(CHAIN,))
async def in_a_models_constructor_alone_async(config: RunnableConfig) -> None:
    await chain(callbacks=config["callbacks"]).ainvoke(GIVEN)


@case(*["FakeListChatModel CHAT_MODEL\n"] * 2)
def in_the_constructor_of_a_model_of_its_own(config: RunnableConfig) -> None:
    alone = model(callbacks=config["callbacks"])
    alone.invoke("Hello")
    alone.invoke("Hello")


@case("greet CHAIN\n  poml greet PROMPT\n", autolog=(CHAIN,))
def with_config_of_the_prompt_alone(config: RunnableConfig) -> None:
    (greeting().with_config(config) | model() | StrOutputParser()).invoke(GIVEN)


@case(TRACED_STEP)
def traced_function_in_a_step(config: RunnableConfig) -> None:
    (RunnableLambda(traced, name="RunnableLambda") | chain()).invoke(GIVEN, config)


@case(tree_of("around UNKNOWN", CHAIN))
def chain_in_a_traced_function(config: RunnableConfig) -> None:
    around(lambda: chain().invoke(GIVEN, config))


@case(tree_of("around UNKNOWN", CHAIN, CHAIN))
def batch_in_a_traced_function(config: RunnableConfig) -> None:
    around(lambda: chain().batch([GIVEN] * 2, config))


@case(tree_of("RunnableLambda CHAIN", tree_of("around UNKNOWN", CHAIN, CHAIN, CHAIN)))
def chains_in_a_traced_function_in_a_step(config: RunnableConfig) -> None:
    def step(given: Any) -> None:
        around(lambda: (chain().batch([given] * 2), chain().invoke(given)))

    RunnableLambda(step, name="RunnableLambda").invoke(GIVEN, config)


@case(tree_of("RunnableLambda CHAIN", CHAIN, CHAIN))
def batch_in_a_step(config: RunnableConfig) -> None:
    RunnableLambda(lambda given: chain().batch([given] * 2)).invoke(GIVEN, config)


@case(tree_of("RunnableLambda CHAIN", CHAIN))
def the_handler_given_anew_in_a_step(config: RunnableConfig) -> None:
    RunnableLambda(lambda given: chain().invoke(given, config)).invoke(GIVEN, config)


@case(tree_of("RunnableLambda CHAIN", "poml greet PROMPT\n"))
def prompt_formatted_in_a_step(config: RunnableConfig) -> None:
    RunnableLambda(lambda given: str(greeting().format_messages(**given))).invoke(GIVEN, config)


@case(*[tree_of("RunnableSequence CHAIN", CHAIN)] * 2, *[CHAIN] * 3)
def retried_batch_and_then_the_same_thread(config: RunnableConfig) -> None:
    chain().with_retry().batch([GIVEN] * 2, config)
    for _ in range(3):
        chain().invoke(GIVEN, config)


@case(*[tree_of("RunnableWithFallbacks CHAIN", BROKEN, CHAIN)] * 2)
def batch_that_falls_back(config: RunnableConfig) -> None:
    assert broken().with_fallbacks([chain()]).batch([GIVEN] * 2, config) == ["Hi!"] * 2


@case(*[CHAIN] * 4)
def threads(config: RunnableConfig) -> None:
    started = [threading.Thread(target=chain().invoke, args=(GIVEN, config)) for _ in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


@case(*[CHAIN] * 3)
async def ainvoke_in_turn(config: RunnableConfig) -> None:
    for _ in range(3):
        assert await chain().ainvoke(GIVEN, config) == "Hi!"


@case(*[CHAIN] * 4)
async def abatch_and_then_the_same_task(config: RunnableConfig) -> None:
    await chain().abatch([GIVEN] * 3, config)
    await chain().ainvoke(GIVEN, config)


@case(CHAIN)
async def astream(config: RunnableConfig) -> None:
    assert [chunk async for chunk in chain().astream(GIVEN, config)] == ["H", "i", "!"]


@case(CHAIN)
async def astream_events(config: RunnableConfig) -> None:
    assert len([event async for event in chain().astream_events(GIVEN, config, version="v2")]) > 6


@case(CHAIN)
async def astream_events_of_version_1(config: RunnableConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain 1.2 calls it deprecated
        assert len([event async for event in chain().astream_events(GIVEN, config, version="v1")]) > 6


@case(*[CHAIN] * 4)
async def gather(config: RunnableConfig) -> None:
    await asyncio.gather(*(chain().ainvoke(GIVEN, config) for _ in range(4)))


@case(tree_of("RunnableParallel<one,two> CHAIN", CHAIN, CHAIN))
async def aparallel(config: RunnableConfig) -> None:
    await RunnableParallel(one=chain(), two=chain()).ainvoke(GIVEN, config)


@case(BROKEN, CHAIN)
async def model_error_and_then_the_same_task(config: RunnableConfig) -> None:
    with pytest.raises(ValueError, match="out of order"):
        await broken().ainvoke(GIVEN, config)
    await chain().ainvoke(GIVEN, config)


@case(tree_of("RunnableSequence CHAIN ERROR", "greet CHAIN ERROR\n  poml greet PROMPT ERROR\n"))
async def amissing_variable(config: RunnableConfig) -> None:
    with pytest.raises(MissingVariableError):
        await chain().ainvoke({}, config)


@case(*[TRACED_STEP] * 2)
async def traced_function_in_an_async_step(config: RunnableConfig) -> None:
    async def step(given: Any) -> Any:
        return await atraced(given)

    steps = RunnableLambda(step, name="RunnableLambda") | chain()
    await steps.ainvoke(GIVEN, config)
    [_ async for _ in steps.astream(GIVEN, config)]


@case(tree_of("around UNKNOWN", CHAIN), CHAIN)
async def chain_in_an_async_traced_function(config: RunnableConfig) -> None:
    await aaround(lambda: chain().ainvoke(GIVEN, config))
    await chain().ainvoke(GIVEN, config)


@case(tree_of("RunnableLambda CHAIN", CHAIN, CHAIN))
async def abatch_in_a_step(config: RunnableConfig) -> None:
    async def step(given: Any, config: RunnableConfig) -> Any:
        return await chain().abatch([given] * 2, config)

    await RunnableLambda(step, name="RunnableLambda").ainvoke(GIVEN, config)


@case(*[tree_of("RunnableSequence CHAIN", CHAIN)] * 2)
async def retried_abatch(config: RunnableConfig) -> None:
    await chain().with_retry().abatch([GIVEN] * 2, config)


@case(*[tree_of("RunnableWithFallbacks CHAIN", BROKEN, CHAIN)] * 2)
async def abatch_that_falls_back(config: RunnableConfig) -> None:
    await broken().with_fallbacks([chain()]).abatch([GIVEN] * 2, config)


@pytest.mark.parametrize(("run", "expected", "autolog"), CASES)
def test_each_way_to_run_gives_its_span_tree_and_no_active_span(
    run: Run, expected: list[str], autolog: bool, stored_traces: Any
) -> None:
    handler = PomlCallbackHandler(register=False)
    mlflow.langchain.autolog(disable=not autolog, silent=True)
    try:
        if inspect.iscoroutinefunction(run):
            asyncio.run(_in_a_task(run({"callbacks": [handler]})))
        else:
            run({"callbacks": [handler]})
    finally:
        mlflow.langchain.autolog(disable=True, silent=True)

    assert mlflow.get_current_active_span() is None
    assert trees(stored_traces) == expected


async def _in_a_task(run: Awaitable[None]) -> None:
    await run
    assert mlflow.get_current_active_span() is None


def test_a_users_code_cannot_end_the_span_of_a_run(stored_traces: Any) -> None:
    """For example OpenTelemetry's `use_span`: the span is stored with the output of the run."""

    def step(given: str) -> str:
        with use_span(get_current_otel_span(), end_on_exit=True):
            return given.upper()

    RunnableLambda(step).invoke("hi", {"callbacks": [PomlCallbackHandler()]})
    [trace] = stored_traces()
    assert trace.data.spans[0].outputs == "HI"
    assert trace.info.state.value == "OK"
