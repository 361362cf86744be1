"""Chains and queries, bare and traced, compared with the frameworks' own prompts and MLflow's own tracers."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from measure import Case, Row, interleaved, ratio
from timing import median_ms

from pomlflow import engine


def chains() -> Iterator[Row]:
    import mlflow
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda
    from mlflow.langchain.langchain_tracer import MlflowLangchainTracer

    from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

    logging.getLogger("alembic").setLevel(logging.WARNING)
    folder = tempfile.mkdtemp()
    os.environ["MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE"] = "100000"  # none is dropped: that would cost less
    mlflow.set_tracking_uri(f"sqlite:///{folder}/bench.db")
    mlflow.set_experiment("bench")
    model = FakeListChatModel(responses=["ok"])
    markup = "<poml><system-msg>Be kind.</system-msg><human-msg>Hello {{name}}</human-msg></poml>"
    ours = PomlPromptTemplate.from_template(markup, name="bench")
    plain = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "Hello {name}")])
    variables = {"name": "Ada"}
    case = Case(markup, variables)

    class RenderingByHand(ChatPromptTemplate):
        """Renders in the place of the prompt, since code after a wait for another process runs slower."""

        def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
            case.ours()
            return super().format_messages(**kwargs)

    by_hand = RenderingByHand(plain.messages)
    # Alternate single calls: the call before decides what is in the processor's caches.
    bare = interleaved(
        {"poml": lambda: (ours | model).invoke(variables), "by hand": lambda: (by_hand | model).invoke(variables)},
        rounds=1500,
        times=1,
    )
    over = statistics.median(a - b for a, b in zip(bare["poml"], bare["by hand"], strict=True))
    reference = statistics.median(bare["by hand"])
    yield (
        "chain without a handler",
        f"{statistics.median(bare['poml']):.2f} ms",
        f"{over:+.3f} ms over a `ChatPromptTemplate` with the bare render in its place ({reference:.2f})",
    )

    # The stock tracer around the same work, with one child span as a user would log the render by hand.
    def traced_by_hand(value: dict[str, str]) -> Any:
        parent = mlflow.get_current_active_span()
        start = time.time_ns()
        case.ours()
        span = mlflow.start_span_no_context(
            "poml", span_type="PROMPT", parent_span=parent, inputs={"prompt": markup, "context": value},
            start_time_ns=start,
        )  # fmt: skip
        span.end(outputs={"messages": [{"role": "user", "content": "Hello Ada"}]})
        return plain.format_prompt(**value)

    hand = RunnableLambda(traced_by_hand) | model
    stock, handler = MlflowLangchainTracer(), PomlCallbackHandler()
    traced = interleaved(
        {
            "poml": lambda: (ours | model).invoke(variables, {"callbacks": [handler]}),
            "stock": lambda: hand.invoke(variables, {"callbacks": [stock]}),
        },
        rounds=400,
        times=1,
    )
    mlflow.flush_trace_async_logging(terminate=True)
    share, stock = ratio(traced["poml"], traced["stock"]), statistics.median(traced["stock"])
    yield (
        "chain traced by `PomlCallbackHandler`",
        f"{statistics.median(traced['poml']):.2f} ms",
        f"{share:.2f}x MLflow's tracer and a child span by hand ({stock:.2f})",
    )


def queries() -> Iterator[Row]:
    import mlflow

    from pomlflow.llama_index import PomlCallbackHandler

    mlflow.set_tracking_uri(f"sqlite:///{tempfile.mkdtemp()}/bench.db")
    mlflow.set_experiment("bench")
    plain, by_hand, poml, elsewhere = _query_engines()
    handler = PomlCallbackHandler()
    on, off = mlflow.llama_index.autolog, partial(mlflow.llama_index.autolog, disable=True)
    cases: dict[str, tuple[Any, Callable[[], Any], Callable[[], Any]]] = {
        "bare": (plain, int, int),
        "elsewhere": (plain, partial(handler.attach, elsewhere), handler.detach),
        "autolog": (plain, on, off),
        "by hand": (by_hand, on, off),
        "ours": (plain, handler.attach, handler.detach),
        "ours, POML": (poml, handler.attach, handler.detach),
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    worked: dict[str, list[float]] = {name: [] for name in cases}
    spans = dict.fromkeys(cases, 0)
    for number in range(20):
        for name, (query_engine, begin, end) in sorted(cases.items(), reverse=bool(number % 2)):
            begin()
            walls, shares = zip(*(_alone(query_engine) for _ in range(8)), strict=True)
            taken[name].append(statistics.median(walls))
            worked[name].append(statistics.median(shares))
            end()
            if newest := mlflow.search_traces(max_results=1, return_type="list"):
                spans[name] = len(newest[0].data.spans)
    median = {name: statistics.median(values) for name, values in taken.items()}

    def row(what: str, name: str, reference: str, words: str) -> Row:
        wall, work = (ratio(times[name], times[reference]) for times in (taken, worked))
        return what, f"{median[name]:.2f} ms", f"{wall:.2f}x (in CPU time of its thread {work:.2f}x) {words}"

    yield f"LlamaIndex query of {spans['autolog']} spans, bare", f"{median['bare']:.2f} ms", "1x"
    yield row("the same, a handler attached elsewhere", "elsewhere", "bare", "bare")
    yield "the same under MLflow's autolog", f"{median['autolog']:.2f} ms", "1x"
    yield row("the same under `PomlCallbackHandler`", "ours", "autolog", "autolog")
    what = f"the same with a POML prompt, {spans['ours, POML']} spans, under `PomlCallbackHandler`"
    hand = f"MLflow's autolog with a render and a child span by hand ({median['by hand']:.2f})"
    yield row(what, "ours, POML", "by hand", hand)
    yield "renders for a query with one model call", f"{_renders_a_query(poml):.1f}", ""


def _alone(query_engine: Any) -> tuple[float, float]:
    """Milliseconds of one query, and of its thread's work in it.

    Its trace is stored before the next: MLflow's threads would hold that one up. They also store its first spans while
    it runs, for which it waits for the GIL (5 ms) at times.
    """
    from pomlflow import flush

    before = time.thread_time()
    taken = median_ms(partial(query_engine.query, "What is POML?"), 1)
    worked = (time.thread_time() - before) * 1e3
    flush()
    return taken, worked


def _query_engines() -> Iterator[Any]:
    """Alike but for their prompts: LlamaIndex's own, one that renders by hand, POML's, LlamaIndex's own again."""
    import mlflow
    from llama_index.core import Document, MockEmbedding, PromptTemplate, VectorStoreIndex
    from llama_index.core.llms import ChatMessage, MockLLM

    from pomlflow.llama_index import PomlPromptTemplate

    markup = "<p>{{context_str}}</p><p>{{query_str}}</p>"

    class ByHand(PromptTemplate):
        def format_messages(self, llm: Any = None, **rest: Any) -> list[ChatMessage]:
            if not rest.get("context_str"):  # the empty prompt is measured
                return super().format_messages(llm=llm, **rest)
            variables = {**self.kwargs, **rest}
            parent = mlflow.get_current_active_span()
            start = time.time_ns()
            text = engine.run(engine.Request(markup, *engine.encode(variables))).output["messages"][0]["content"]
            span = mlflow.start_span_no_context(
                "poml", span_type="PROMPT", parent_span=parent, inputs={"prompt": markup, "context": variables},
                start_time_ns=start,
            )  # fmt: skip
            span.end(outputs={"messages": [{"role": "user", "content": text}]})
            return [ChatMessage(role="user", content=text)]

    index = VectorStoreIndex.from_documents([Document(text="POML is markup.")], embed_model=MockEmbedding(8))
    for prompt in (None, ByHand("{context_str} {query_str}"), PomlPromptTemplate(markup, name="bench"), None):
        given = {} if prompt is None else {"text_qa_template": prompt}
        yield index.as_query_engine(llm=MockLLM(max_tokens=8, is_chat_model=True), **given)


def _renders_a_query(query_engine: Any) -> float:
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler

    from pomlflow.llama_index import PomlRenderEvent

    events: list[Any] = []

    class Counter(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            if isinstance(event, PomlRenderEvent):
                events.append(event)

    get_dispatcher().add_event_handler(Counter())
    for _ in range(10):
        query_engine.query("What is POML?")
    return len(events) / 10
