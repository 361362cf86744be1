"""Measure what README claims, as ratios within one run; ``--write`` puts the table into README.

make bench
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", LANGSMITH_TRACING="false")

import poml
from bound import bound_models

from pomlflow import engine

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
HELLO = "<p>Hello {{name}}, how are you?</p>"
FINDINGS = [
    {"title": f"Finding {n}", "year": 2015 + n, "method": "trial", "summary": "it helped a little", "effect": n / 10,
     "unit": "points"}
    for n in range(5)
]  # fmt: skip
RICH = {
    "audience": "policy makers", "words": 400, "minutes": 5, "findings": FINDINGS, "earlier": "", "question": "Why?",
    "definitions": [{"term": "power", "meaning": "the chance to find what is there"}],
    "numbers": [{"site": site, "n": 40, "mean": 1.5} for site in "ABCDE"], "history": [],
}  # fmt: skip
MEGABYTE = {"rows": [{"id": n, "text": "x" * 80} for n in range(10_000)]}

Row = tuple[str, str, str]


def median_ms(work: Callable[[], Any], times: int, pause: float = 0.0) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
        if pause:
            time.sleep(max(0.0, pause - taken[-1]))
    return statistics.median(taken) * 1e3


class Case:
    """One prompt, rendered by us and by ``poml.poml``."""

    def __init__(self, markup: str, variables: dict[str, Any]) -> None:
        self.markup, self.variables = markup, variables
        self.node: list[float] = []

    def ours(self) -> None:
        context, revive = engine.encode(self.variables)
        self.node.append(engine.run(engine.Request(self.markup, context, revive)).node_ms or 0.0)

    def theirs(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "prompt.poml")
            file.write_text(self.markup, encoding="utf-8")
            poml.poml(file, context=self.variables, format="dict")


def renders() -> Iterator[Row]:
    cases = {
        "hello": Case(HELLO, {"name": "Ada"}),
        "rich (92 lines)": Case((HERE / "rich.poml").read_text(encoding="utf-8"), RICH),
        "heavy (tables, loops, 160 elements)": Case((HERE / "heavy.poml").read_text(encoding="utf-8"), RICH),
        "1 MB of context": Case("<p>{{rows.length}} rows, the last is {{rows[rows.length - 1].id}}</p>", MEGABYTE),
    }
    for name, case in cases.items():
        theirs = median_ms(case.theirs, 5)
        median_ms(case.ours, 300)
        case.node.clear()
        many = 50 if "MB" in name else 1000
        back_to_back = median_ms(case.ours, many)
        node = statistics.median(case.node)
        paced = median_ms(case.ours, 100, pause=0.04)
        yield f"{name}: `poml.poml()`", f"{theirs:.0f} ms", "1x"
        yield (
            f"{name}: back to back",
            f"{back_to_back:.2f} ms",
            f"{theirs / back_to_back:.0f}x as fast; {back_to_back / node:.2f}x the time inside Node",
        )
        yield f"{name}: 25 a second", f"{paced:.2f} ms", f"{theirs / paced:.0f}x as fast"


FIRST = """
import time
from pomlflow import engine
start = time.perf_counter()
engine.render("<p>Hello {{name}}</p>", {"name": "Ada"})
print(time.perf_counter() - start)
"""


def first_render() -> Iterator[Row]:
    theirs = median_ms(Case(HELLO, {"name": "Ada"}).theirs, 5)

    def ours(cache: str) -> float:
        environment = {**os.environ, "POMLFLOW_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", FIRST], env=environment, check=True, capture_output=True, text=True
        )
        return float(done.stdout) * 1e3

    with tempfile.TemporaryDirectory() as cache:
        cold = ours(cache)
        warm = statistics.median(ours(cache) for _ in range(5))
    yield "first render of a process, cache warm", f"{warm:.0f} ms", f"{warm / theirs:.2f} of one `poml.poml()`"
    yield "first render ever, cache cold", f"{cold:.0f} ms", f"{cold / theirs:.2f} of one `poml.poml()`"


def interleaved(works: dict[str, Callable[[], Any]], rounds: int, times: int) -> dict[str, float]:
    """Medians of all, taken in turns, so that a busy moment hits each alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            taken[name].append(median_ms(work, times))
    return {name: statistics.median(values) for name, values in taken.items()}


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
        rounds=15,
        times=100,
    )
    over = bare["poml"] - bare["chat"] - bare["render"]
    yield (
        "chain without a handler",
        f"{bare['poml']:.2f} ms",
        f"{over:+.3f} ms over bare render ({bare['render']:.2f}) and `ChatPromptTemplate` chain ({bare['chat']:.2f})",
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
        rounds=9,
        times=30,
    )
    mlflow.flush_trace_async_logging(terminate=True)
    yield (
        "chain traced by `PomlCallbackHandler`",
        f"{traced['poml']:.2f} ms",
        f"{traced['poml'] / traced['stock']:.2f}x MLflow's tracer and a child span by hand ({traced['stock']:.2f})",
    )


def bound() -> Iterator[Row]:
    yield from bound_models(interleaved)


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


def memory() -> Iterator[Row]:
    if sys.platform != "linux":
        return
    case = Case((HERE / "rich.poml").read_text(encoding="utf-8"), RICH)
    sizes = []
    for goal in (1, 1_000, 10_000):
        while len(case.node) < goal:
            case.ours()
        status = Path(f"/proc/{next(iter(engine._engine.pool._all)).pid}/status").read_text(encoding="ascii")
        sizes.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024)
    yield "resident memory of Node at 1, 1,000 and 10,000 rich renders", " / ".join(f"{size} MB" for size in sizes), ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README")
    write = parser.parse_args().write
    engine.close()
    rows = [row for part in (renders, first_render, chains, bound, queries, memory) for row in part()]
    versions = f"Python {platform.python_version()}, poml {engine.poml_version()}, {os.cpu_count()} cores"
    lines = ["| what | median | compared |", "| --- | --- | --- |", *("| " + " | ".join(row) + " |" for row in rows)]
    table = "\n".join([*lines, "", f"Measured by `make bench` with {versions}."])
    print(table)
    if write:
        before, _, rest = README.read_text(encoding="utf-8").partition("<!-- bench -->\n")
        _, _, after = rest.partition("<!-- /bench -->\n")
        README.write_text(f"{before}<!-- bench -->\n{table}\n<!-- /bench -->\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
