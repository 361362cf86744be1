"""Traced calls a second with an ``mlflow server``: pomlflow's handler and MLflow's autolog, alternating.

The server's store is a PostgreSQL that this starts, if it is installed, else SQLite. Two client processes
of four threads call a chain of a prompt and a model that answers immediately, until all traces are stored.

    python tests/benchmarks/traced.py --calls 600 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mlflow_server import MlflowServer
from tests.postgres import find_postgres, postgres

KINDS = ("pomlflow", "autolog with load_prompt", "autolog")
PROCESSES, THREADS = 2, 4
SOURCE = "<p>Answer briefly: {{question}}</p>"


def main() -> None:
    """Measure, and print one line a run and the ratios at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=600, help="in each run, of all processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", nargs=2, metavar=("KIND", "CALLS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client(arguments.client[0], int(arguments.client[1]))
        return
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, database(Path(folder)) as store:
        print(store.split(":", 1)[0])
        with MlflowServer(Path(folder), store) as server:
            register(server.uri)
            for number in range(arguments.rounds + 1):
                for kind in KINDS if number % 2 else KINDS[::-1]:
                    found = measure(server.uri, kind, arguments.calls if number else 80, number)
                    print(json.dumps({"round": number or "warm-up", "kind": kind, **found}), flush=True)
                    if number:
                        rates[kind].append(found["calls a second"])
    ours = median(rates[KINDS[0]])
    for kind in KINDS:
        print(f"{kind}: {median(rates[kind]):.1f} a second; pomlflow is {ours / median(rates[kind]):.2f}x")


def register(uri: str) -> None:
    """Register the prompt of MLflow's clients, before they start: two that register at once may conflict."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.genai.register_prompt("bench-theirs", "Answer briefly: {{question}}")


def measure(uri: str, kind: str, calls: int, number: int) -> dict[str, Any]:
    """Run the clients; return calls a second, requests a trace, and how many traces are stored whole."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment(f"{kind}-{number}")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_ID": experiment}
    command = [sys.executable, __file__, "--client", kind, str(calls // PROCESSES)]
    clients = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for one in clients:
        assert one.stdout.readline() == "ready\n"
    start = time.perf_counter()
    for one in clients:
        one.stdin.write("go\n")
        one.stdin.flush()
    reports = [json.loads(one.stdout.readline()) for one in clients]
    seconds = time.perf_counter() - start
    for one in clients:
        one.communicate()
    found, token = [], None
    for _ in count():
        page = mlflow.MlflowClient().search_traces([experiment], max_results=500, page_token=token)
        found += page
        if not (token := page.token):
            break
    return {
        "calls a second": round(calls / seconds, 1),
        "requests a trace": round(sum(one["requests"] for one in reports) / calls, 2),
        "threads": max(one["threads"] for one in reports),
        "OK": sum(one.info.state == "OK" for one in found),
        "linked": sum("mlflow.linkedPrompts" in one.info.tags for one in found),
        "flushed": [one["flushed"] for one in reports],
    }


def client(kind: str, calls: int) -> None:
    """Be one client: warm up, wait for the start, call, flush, report."""
    import threading

    import mlflow
    import requests
    from langchain_core.language_models.fake_chat_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.runnables import RunnableLambda

    import pomlflow
    from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

    sent = count()
    send = requests.Session.send
    requests.Session.send = lambda *given, **named: (next(sent), send(*given, **named))[1]
    model = FakeListChatModel(responses=["Paris"]) | StrOutputParser()
    if kind == "pomlflow":
        prompt = PomlPromptTemplate.from_template(SOURCE, name="bench")
        chain = (prompt | model).with_config(callbacks=[PomlCallbackHandler()])
    else:
        mlflow.langchain.autolog()

        def fill(given: dict[str, str]) -> str:
            if kind == "autolog":
                return f"Answer briefly: {given['question']}"
            return mlflow.genai.load_prompt("prompts:/bench-theirs/1").format(**given)

        chain = RunnableLambda(fill) | model

    def flush() -> bool:
        if kind == "pomlflow":
            return pomlflow.flush(600)
        mlflow.flush_trace_async_logging()
        wait_for_links()
        return True

    chain.invoke({"question": "warm up"})
    flush()
    print("ready", flush=True)
    sys.stdin.readline()
    before = next(sent)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda number: chain.invoke({"question": str(number)}), range(calls)))
    flushed = flush()
    report = {"requests": next(sent) - before - 1, "threads": threading.active_count(), "flushed": flushed}
    print(json.dumps(report), flush=True)


def wait_for_links() -> None:
    """Wait for MLflow's link threads, which its flush leaves running."""
    import threading

    for thread in threading.enumerate():
        if thread.name.startswith("link_prompts"):
            thread.join()


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Yield the URI of an empty database: PostgreSQL's where it is installed."""
    if (programs := find_postgres()) is None:
        yield f"sqlite:///{folder / 'store.db'}"
        return
    with postgres(programs) as store:
        yield store


if __name__ == "__main__":
    main()
