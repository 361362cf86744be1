"""One side of a comparison: measure the pomlflow in PYTHONPATH, and print JSON.

It uses only what the first version has too. A time is a pair: the median of the wall time, and the mean CPU time of
Python and its Node processes together, which other work on the machine changes less; both in milliseconds.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from timing import median_ms

THREADS, SECONDS = 8, 1.0
CHAIN = "<poml><system-msg>Be kind.</system-msg><human-msg>Hello {{name}}</human-msg></poml>"

Time = tuple[float, float]
Prompts = dict[str, tuple[str, dict[str, Any]]]


def renders(prompts: Prompts) -> dict[str, Time]:
    """A process's first render, each prompt back to back and at 25 a second, and eight threads."""
    start = time.perf_counter()
    from pomlflow import engine

    requests = {name: engine.Request(markup, *engine.encode(values)) for name, (markup, values) in prompts.items()}
    imported = time.perf_counter()
    found = {"first render": taken(lambda: engine.run(requests["hello"]), 1)}
    found["first render, import included"] = (
        found["first render"][0] + (imported - start) * 1e3,
        time.process_time() * 1e3 + node_ms(),
    )
    for name, request in requests.items():
        render = lambda request=request: engine.run(request)  # noqa: E731
        median_ms(render, 300)
        found[f"{name}, back to back"] = taken(render, 200)
        found[f"{name}, 25 a second"] = taken(render, 15, 0.04)
    end = time.perf_counter() + SECONDS

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            engine.run(requests["rich"])
            done += 1
        return done

    with ThreadPoolExecutor(THREADS) as threads:
        before = cpu_ms()
        done = sum(threads.map(work, range(THREADS)))
    found["rich, 8 threads, for a render"] = (SECONDS * 1e3 / done, (cpu_ms() - before) / done)
    return found


def memory(given: tuple[tuple[str, dict[str, Any]], int]) -> dict[str, float]:
    """Megabytes of a Node process after 500 renders of a prompt in each of so many processes."""
    from pomlflow import engine

    (markup, values), workers = given
    request = engine.Request(markup, *engine.encode(values))
    engine.prewarm(workers)
    with ThreadPoolExecutor(2 * workers) as threads:
        list(threads.map(lambda _: engine.run(request), range(500 * workers)))
    sizes = [_sizes(pid) for pid in node_pids()]
    return {
        "resident": sum(size["Rss"] for size in sizes) / len(sizes),
        "private": sum(size["Private_Dirty"] for size in sizes) / len(sizes),  # clean pages are of Node's program
    }


def _sizes(pid: str) -> dict[str, float]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return {name: int(size) * 1024 / 1e6 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def node_pids() -> list[str]:
    """The Node processes of this process (Linux)."""
    children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split()
    return [pid for pid in children if b"worker.cjs" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def node_ms() -> float:
    """Milliseconds that the Node processes have run, all their threads together."""
    files = [file for pid in node_pids() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e6


def cpu_ms() -> float:
    return time.process_time() * 1e3 + node_ms()


def taken(work: Callable[[], Any], times: int, pause: float = 0.0) -> Time:
    before = cpu_ms()
    wall = median_ms(work, times, pause)
    return wall, (cpu_ms() - before) / times


def growth(cases: dict[str, Prompts]) -> dict[str, dict[str, Time]]:
    """For each kind of prompt the least time of each size; what takes a second is not measured further.

    The sizes are measured in turn, in eight rounds of three renders: the speed of a machine changes within seconds.
    """
    from pomlflow import engine

    found: dict[str, dict[str, Time]] = {}
    for name, sizes in cases.items():
        requests = {size: engine.Request(markup, *engine.encode(values)) for size, (markup, values) in sizes.items()}
        tries: dict[str, list[Time]] = {}
        for _ in range(8):
            for size, request in requests.items():
                times = tries.setdefault(size, [])
                for _ in range(3):
                    if sum(wall for wall, _ in times) < 5_000:
                        times.append(taken(lambda request=request: engine.run(request, 120), 1))
                if min(times)[0] > 1_000:
                    break
        found[name] = {size: (min(w for w, _ in times), min(c for _, c in times)) for size, times in tries.items()}
    return found


def chain(times: int) -> dict[str, Time]:
    """Call a traced chain with a POML prompt: the first call, back to back, and at 25 a second."""
    start = time.perf_counter()
    from langchain_core.language_models import FakeListChatModel

    from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

    prompt = PomlPromptTemplate.from_template(CHAIN, name="bench")
    called, config = prompt | FakeListChatModel(responses=["ok"]), {"callbacks": [PomlCallbackHandler()]}
    return _calls(lambda: called.invoke({"name": "Ada"}, config), start, times)


def poml(markup: str) -> dict[str, Time]:
    """Call ``poml.poml()`` once, which starts a Node process."""
    from poml import poml as stock

    def children_ms() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (used.ru_utime + used.ru_stime) * 1e3

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompt.poml")
        file.write_text(markup, encoding="utf-8")
        before = children_ms()
        wall, cpu = taken(lambda: stock(file, context={"name": "Ada"}, format="dict"), 1)
    return {"one call": (wall, cpu + children_ms() - before)}


def stock_chain(times: int) -> dict[str, Time]:
    """Call a chain with LangChain's own prompt, traced by MLflow's tracer."""
    start = time.perf_counter()
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    from mlflow.langchain.langchain_tracer import MlflowLangchainTracer

    prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "Hello {name}")])
    called, config = prompt | FakeListChatModel(responses=["ok"]), {"callbacks": [MlflowLangchainTracer()]}
    return _calls(lambda: called.invoke({"name": "Ada"}, config), start, times)


def _calls(call: Callable[[], Any], start: float, times: int) -> dict[str, Time]:
    call()
    found = {"first call": ((time.perf_counter() - start) * 1e3, cpu_ms())}
    if times:
        median_ms(call, times)
        found["back to back"], found["25 a second"] = taken(call, times), taken(call, 15, 0.04)
    return found


if __name__ == "__main__":
    kind, given = json.loads(sys.stdin.read())
    measure: dict[str, Callable[..., Any]] = {
        "renders": renders,
        "memory": memory,
        "growth": growth,
        "chain": chain,
        "poml": poml,
        "stock chain": stock_chain,
    }
    print(json.dumps(measure[kind](given)))
