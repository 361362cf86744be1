"""Chains and queries, bare and traced, against the frameworks' own prompts and MLflow's own tracers."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from measure import Case, Row, interleaved, median_ms, ratio


def chains() -> Iterator[Row]:
    import mlflow
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda
    from mlflow.langchain.langchain_tracer import MlflowLangchainTracer

    from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

    logging.getLogger("alembic").setLevel(logging.WARNING)
    folder = tempfile.mkdtemp()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/bench.db")
    mlflow.set_experiment("bench")
    model = FakeListChatModel(responses=["ok"])
    markup = "<poml><system-msg>Be kind.</system-msg><human-msg>Hello {{name}}</human-msg></poml>"
    ours = PomlPromptTemplate.from_template(markup, name="bench")
    plain = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "Hello {name}")])
    variables = {"name": "Ada"}
    case = Case(markup, variables)

    bare = interleaved(
        {
            "poml": lambda: (ours | model).invoke(variables),
            "chat": lambda: (plain | model).invoke(variables),
            "render": case.ours,
        },
        rounds=25,
        times=50,
    )
    over = statistics.median(a - b - c for a, b, c in zip(bare["poml"], bare["chat"], bare["render"], strict=True))
    chat, render = statistics.median(bare["chat"]), statistics.median(bare["render"])
    yield (
        "chain without a handler",
        f"{statistics.median(bare['poml']):.2f} ms",
        f"{over:+.3f} ms over bare render ({render:.2f}) and `ChatPromptTemplate` chain ({chat:.2f})",
    )

    # The stock tracer around the same work, with one child span as a user would log the render by hand.
    def by_hand(value: dict[str, str]) -> Any:
        parent = mlflow.get_current_active_span()
        start = time.time_ns()
        case.ours()
        span = mlflow.start_span_no_context(
            "poml", span_type="PROMPT", parent_span=parent, inputs={"prompt": markup, "context": value},
            start_time_ns=start,
        )  # fmt: skip
        span.end(outputs={"messages": [{"role": "user", "content": "Hello Ada"}]})
        return plain.format_prompt(**value)

    hand = RunnableLambda(by_hand) | model
    stock, handler = MlflowLangchainTracer(), PomlCallbackHandler()
    traced = interleaved(
        {
            "poml": lambda: (ours | model).invoke(variables, {"callbacks": [handler]}),
            "stock": lambda: hand.invoke(variables, {"callbacks": [stock]}),
        },
        rounds=25,
        times=15,
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
    from llama_index.core import Document, MockEmbedding, VectorStoreIndex
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler
    from llama_index.core.llms import MockLLM

    from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate, PomlRenderEvent

    mlflow.set_tracking_uri(f"sqlite:///{tempfile.mkdtemp()}/bench.db")
    mlflow.set_experiment("bench")
    index = VectorStoreIndex.from_documents([Document(text="POML is markup.")], embed_model=MockEmbedding(8))
    prompt = PomlPromptTemplate("<p>{{context_str}}</p><p>{{query_str}}</p>", name="bench")
    plain = index.as_query_engine(llm=MockLLM(max_tokens=8))
    poml, elsewhere = index.as_query_engine(llm=MockLLM(max_tokens=8)), index.as_query_engine(llm=MockLLM())
    poml.update_prompts({"response_synthesizer:text_qa_template": prompt})
    handler = PomlCallbackHandler()

    def measure(engine: Any, times: int) -> float:
        return median_ms(lambda: engine.query("What is POML?"), times)

    taken: dict[str, list[float]] = {name: [] for name in ("bare", "elsewhere", "autolog", "ours", "ours, POML")}
    for _ in range(7):
        taken["bare"].append(measure(plain, 30))
        handler.attach(elsewhere)
        taken["elsewhere"].append(measure(plain, 30))
        handler.detach()
        mlflow.llama_index.autolog()
        taken["autolog"].append(measure(plain, 15))
        mlflow.llama_index.autolog(disable=True)
        with handler:
            taken["ours"].append(measure(plain, 15))
            taken["ours, POML"].append(measure(poml, 15))
    mlflow.flush_trace_async_logging()
    spent = {name: statistics.median(values) for name, values in taken.items()}
    spans = len(mlflow.search_traces(max_results=1, return_type="list")[0].data.spans)
    yield f"LlamaIndex query of {spans} spans, bare", f"{spent['bare']:.2f} ms", "1x"
    share = spent["elsewhere"] / spent["bare"]
    yield "the same, a handler attached elsewhere", f"{spent['elsewhere']:.2f} ms", f"{share:.2f}x bare"
    yield "the same under MLflow's autolog", f"{spent['autolog']:.2f} ms", "1x"
    for name in ("ours", "ours, POML"):
        prompts = " with a POML prompt" if "POML" in name else ""
        share = spent[name] / spent["autolog"]
        yield f"the same{prompts} under `PomlCallbackHandler`", f"{spent[name]:.2f} ms", f"{share:.2f}x autolog"

    events: list[Any] = []

    class Counter(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            if isinstance(event, PomlRenderEvent):
                events.append(event)

    get_dispatcher().add_event_handler(Counter())
    for _ in range(10):
        poml.query("What is POML?")
    yield "renders for a query with one model call", f"{len(events) / 10:.1f}", ""
