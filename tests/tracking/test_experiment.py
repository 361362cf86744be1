"""The experiment that the environment names: looked up at most once, in the background."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import DEAD, MlflowServer
from tests.programs import run_program

from pomlflow.tracking import experiment
from pomlflow.tracking.stores import Stores

COUNT = """
import json, mlflow, requests
requested, send = [], requests.Session.send
def count(session, request, **options):
    requested.append(request.path_url)
    return send(session, request, **options)
requests.Session.send = count
def lookups():
    return sum("/experiments/" in path for path in requested)
"""
LANGCHAIN = """
from langchain_core.language_models import FakeListChatModel
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate
chain = PomlPromptTemplate.from_template("<p>{{n}}</p>") | FakeListChatModel(responses=["0", "1", "2"])
chain = chain.with_config(callbacks=[PomlCallbackHandler()])
def call(n):
    return chain.invoke({"n": n}).content
"""
LLAMA_INDEX = """
from llama_index.core.llms import MockLLM
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate
prompt, llm = PomlPromptTemplate.from_template("<p>{{n}}</p>"), MockLLM()
PomlCallbackHandler().attach()
def call(n):
    return llm.predict(prompt, n=n)
"""
RENDER = """
import pomlflow
pomlflow.autolog()
def call(n):
    return pomlflow.render("<p>{{n}}</p>", {"n": n}).messages[0].content
"""
callers = pytest.mark.parametrize(
    "caller", [LANGCHAIN, LLAMA_INDEX, RENDER], ids=["langchain", "llama_index", "render"]
)


def run(text: str, folder: Path, uri: str, **environment: str) -> tuple[Any, str]:
    """Run a program; return what its last line of output has as JSON, and what it logged."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")}
    stores = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": uri,
        "MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "50",
    }
    done = run_program(text, folder=folder, environment={**own, **stores, **environment}, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def trace_states(server: MlflowServer, experiment: str) -> list[Any]:
    client = mlflow.MlflowClient(server.uri)
    return [one.info.state for one in client.search_traces([experiment], include_spans=False)]


@callers
@pytest.mark.parametrize("named", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"])
def test_calls_go_on_while_the_server_is_away(caller: str, named: str, tmp_path: Path) -> None:
    """MLflow's retries of one lookup take four minutes, longer than the program may run."""
    program = f"import json\n{caller}\nprint(json.dumps([str(call(n)) for n in range(3)]))"
    printed, logged = run(program, tmp_path, DEAD, **{named: "1"})
    assert printed == ["0", "1", "2"]
    assert logged.count("Nothing is traced until") == (named == "MLFLOW_EXPERIMENT_NAME")
    assert "Traceback" not in logged


@pytest.mark.parametrize(
    ("caller", "is_off"),
    [(LANGCHAIN, False), (LLAMA_INDEX, False), (RENDER, False), (RENDER, True)],
    ids=["langchain", "llama_index", "render", "off"],
)
def test_nothing_is_looked_up_for_traces_that_mlflow_does_not_store(caller: str, is_off: bool, tmp_path: Path) -> None:
    """With tracing disabled, and with an export by OTLP alone, which continues while the server is away."""
    setup = """
import mlflow
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
"""
    if is_off:
        setup += "mlflow.tracing.disable()"
    else:
        setup += """
import os
os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "http://127.0.0.1:9/v1/traces"
mlflow.tracing.provider.get_otlp_exporter = lambda: exporter
"""
    program = f"""{COUNT}{setup}{caller}
for n in range(3): call(n)
mlflow.tracing.provider.provider.get().force_flush() if {not is_off} else None
print(json.dumps([lookups(), sum(span.parent is None for span in exporter.get_finished_spans())]))
"""
    printed, logged = run(program, tmp_path, DEAD, MLFLOW_EXPERIMENT_NAME="1")
    assert printed == [0, 0 if is_off else 3], logged
    assert "Nothing is traced until" not in logged


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_during_a_lookup_leaves_no_lock_to_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up() -> str:
        forked = os.fork()
        if not forked:  # the lock is held here, and nothing will release it
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            monkeypatch.setattr(experiment.fluent, "_get_experiment_id", lambda: "2")
            os._exit(experiment._look_up(Stores("store", "store", None), "key of the child") != "2")
        return str(os.waitpid(forked, 0)[1])

    monkeypatch.setattr(experiment, "_ids", {})
    monkeypatch.setattr(experiment.fluent, "_get_experiment_id", look_up)
    assert experiment._look_up(Stores("store", "store", None), "key") == "0"


def test_an_mlflow_without_its_private_functions_looks_up_the_experiment(
    mlflow_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "1")
    monkeypatch.setattr(experiment, "is_server", lambda _: True)
    monkeypatch.delattr(experiment.fluent, "_get_latest_active_run")
    experiment_ids: list[Any] = []
    monkeypatch.setattr(
        experiment.mlflow, "start_span_no_context", lambda **given: experiment_ids.append(given["experiment_id"])
    )
    experiment.start_span(None, name="poml")
    assert experiment_ids == [None]


@pytest.mark.server
@callers
def test_traces_go_to_the_experiment_of_the_environment(
    caller: str, mlflow_server: MlflowServer, use_server: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    known = use_server(mlflow_server)
    program = f"{COUNT}{caller}\nfor n in range(3): call(n)\nprint(lookups())"
    lookups, logged = run(program, tmp_path, mlflow_server.uri, MLFLOW_EXPERIMENT_ID=known)
    assert (lookups, trace_states(mlflow_server, known)) == (0, ["OK"] * 3), logged
    new = request.node.name
    lookups, logged = run(program, tmp_path, mlflow_server.uri, MLFLOW_EXPERIMENT_NAME=new)
    made = mlflow.get_experiment_by_name(new).experiment_id
    assert (lookups, trace_states(mlflow_server, made)) == (2, ["OK"] * 3), logged  # by name, and its creation


@pytest.mark.server
def test_an_experiment_set_in_code_overrides_the_environment(
    mlflow_server: MlflowServer, use_server: Any, tmp_path: Path
) -> None:
    known, destination, run_of = (use_server(mlflow_server) for _ in range(3))
    program = f"""{RENDER}
import mlflow
from mlflow.entities.trace_location import MlflowExperimentLocation
with mlflow.start_run(experiment_id={run_of!r}):
    call(1)
mlflow.tracing.set_destination(MlflowExperimentLocation({destination!r}))
call(2)
mlflow.tracing.reset()
mlflow.set_experiment(experiment_id={known!r})
call(3)
print(1)
"""
    _, logged = run(program, tmp_path, mlflow_server.uri, MLFLOW_EXPERIMENT_ID="0")
    assert [trace_states(mlflow_server, one) for one in (run_of, destination, known)] == [["OK"]] * 3, logged


@pytest.mark.server
def test_mlflow_still_requests_the_experiment_for_each_trace(mlflow_server, use_server, tmp_path):
    known = use_server(mlflow_server)
    program = f"""{COUNT}
for _ in range(3):
    mlflow.start_span_no_context("own").end()
print(lookups())
"""
    assert run(program, tmp_path, mlflow_server.uri, MLFLOW_EXPERIMENT_ID=known)[0] >= 3, (
        "MLflow looks it up once: remove the lookup in experiment.py"
    )
