"""One side of a comparison: measures the pomlflow that PYTHONPATH leads to, and prints JSON.

It uses only what the first version has too.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from timing import median_ms

THREADS, SECONDS = 8, 1.0
CHAIN = "<poml><system-msg>Be kind.</system-msg><human-msg>Hello {{name}}</human-msg></poml>"


def renders(prompts: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, float]:
    """A process's first render, each prompt back to back and at 25 a second, eight threads, and the worker's memory."""
    from pomlflow import engine

    requests = {name: engine.Request(markup, *engine.encode(values)) for name, (markup, values) in prompts.items()}
    found: dict[str, float] = {}
    start = time.perf_counter()
    engine.run(requests["hello"])
    found["first render"] = (time.perf_counter() - start) * 1e3
    median_ms(lambda: engine.run(requests["rich"]), 500)
    found["MB resident"], found["MB private"] = memory()
    for name, request in requests.items():
        median_ms(lambda request=request: engine.run(request), 300)
        found[f"{name}, back to back"] = median_ms(lambda request=request: engine.run(request), 200)
        found[f"{name}, 25 a second"] = median_ms(lambda request=request: engine.run(request), 15, 0.04)
    end = time.perf_counter() + SECONDS

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            engine.run(requests["rich"])
            done += 1
        return done

    with ThreadPoolExecutor(THREADS) as threads:
        found["rich, 8 threads, for a render"] = SECONDS * 1e3 / sum(threads.map(work, range(THREADS)))
    return found


def memory() -> list[float]:
    """Resident and private megabytes of the Node process of this process (Linux)."""
    children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split()
    [text] = [
        Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        for pid in children
        if b"worker.cjs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    sizes = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return [sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"]]


def growth(cases: dict[str, dict[str, tuple[str, dict[str, Any]]]]) -> dict[str, dict[str, float]]:
    """For each kind of prompt the milliseconds of each size; what takes two seconds is not measured further."""
    from pomlflow import engine

    found: dict[str, dict[str, float]] = {}
    for name, sizes in cases.items():
        taken = found[name] = {}
        for size, (markup, values) in sizes.items():
            request = engine.Request(markup, *engine.encode(values))
            times = [median_ms(lambda request=request: engine.run(request, 120), 1)]
            while len(times) < 5 and sum(times) < 1_500:
                times.append(median_ms(lambda request=request: engine.run(request, 120), 1))
            taken[size] = min(times)
            if taken[size] > 2_000:
                break
    return found


def chain(times: int) -> dict[str, float]:
    """Call a traced chain with a POML prompt: the first call, back to back, and at 25 a second."""
    start = time.perf_counter()
    from langchain_core.language_models import FakeListChatModel

    from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

    prompt = PomlPromptTemplate.from_template(CHAIN, name="bench")
    called, config = prompt | FakeListChatModel(responses=["ok"]), {"callbacks": [PomlCallbackHandler()]}
    return _calls(lambda: called.invoke({"name": "Ada"}, config), start, times)


def stock_chain(times: int) -> dict[str, float]:
    """Call a chain with LangChain's own prompt, traced by MLflow's tracer."""
    start = time.perf_counter()
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    from mlflow.langchain.langchain_tracer import MlflowLangchainTracer

    prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "Hello {name}")])
    called, config = prompt | FakeListChatModel(responses=["ok"]), {"callbacks": [MlflowLangchainTracer()]}
    return _calls(lambda: called.invoke({"name": "Ada"}, config), start, times)


def _calls(call: Callable[[], Any], start: float, times: int) -> dict[str, float]:
    call()
    found = {"first call": (time.perf_counter() - start) * 1e3}
    if times:
        median_ms(call, times)
        found["back to back"], found["25 a second"] = median_ms(call, times), median_ms(call, 15, 0.04)
    return found


if __name__ == "__main__":
    kind, given = json.loads(sys.stdin.read())
    measure: dict[str, Callable[..., Any]] = {
        "renders": renders,
        "growth": growth,
        "chain": chain,
        "stock chain": stock_chain,
    }
    print(json.dumps(measure[kind](given)))
