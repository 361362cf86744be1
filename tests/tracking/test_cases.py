"""Regression tests: faults that users reported in version 0.1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from mlflow.tracing.client import TracingClient
from mlflow.tracing.trace_manager import InMemoryTraceManager
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.registry_prompts import linked, sources, warnings_of
from tests.tracking.programs import run
from tests.waiting import until

import pomlflow
from pomlflow.template import Template
from pomlflow.tracking import publish
from pomlflow.tracking.spans import log_render
from pomlflow.tracking.versions import Registry

Fetch = Callable[[], list[Trace]]
CALLS = int(os.environ.get("POMLFLOW_TRACED_CALLS", "30"))  # of one batch


def trace(template: Template, **variables: Any) -> str:
    log_render(template.render(variables), parent=None, root=True)
    return str(mlflow.get_last_active_trace_id())


def test_a_render_is_not_linked_to_a_recreated_version_1(mlflow_store, stored_traces: Fetch, name, monkeypatch):
    """Version 1 was deleted and registered again with another text."""
    monkeypatch.setattr(publish, "_FRESH", 0.0)  # as if ten seconds had passed
    shop = Template("<p>OLD {{q}}</p>", name=name)
    trace(shop, q=1)
    assert pomlflow.flush()
    MlflowClient().delete_prompt_version(name, "1")
    MlflowClient().delete_prompt(name)
    mlflow.genai.register_prompt(name, "<p>NEW {{q}}</p>")
    trace(shop, q=2)
    assert pomlflow.flush()
    assert [linked(one) for one in stored_traces()] == [[f"{name}/1"], [f"{name}/2"]]
    assert sources(name) == ["<p>NEW {{q}}</p>", "<p>OLD {{q}}</p>"]


def test_a_first_render_is_listed_in_its_experiment(mlflow_store, name, monkeypatch):
    """Also where its trace has left MLflow's memory before the version is known."""
    find, ended = Registry.find, []

    def late(*given: Any, **named: Any) -> Any:
        def is_exported() -> bool:
            with InMemoryTraceManager.get_instance().get_trace(ended[0]) as live:
                return live is None

        until(lambda: ended and is_exported())
        return find(*given, **named)

    monkeypatch.setattr(Registry, "find", late)
    ended.append(trace(Template("<p>Hello {{q}}</p>", name=name), q=1))
    assert pomlflow.flush()
    listed = MlflowClient().search_prompts(f"experiment_id = '{mlflow_store}'")
    assert [prompt.name for prompt in listed] == [name]


@pytest.fixture
def otlp(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Have MLflow export by OTLP alone; what arrives is in this exporter."""
    exporter = InMemorySpanExporter()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    monkeypatch.setattr(mlflow.tracing.provider, "should_use_otlp_exporter", lambda: True)
    monkeypatch.setattr(mlflow.tracing.provider, "get_otlp_exporter", lambda: exporter)
    mlflow.tracing.reset()
    yield exporter
    monkeypatch.undo()
    mlflow.tracing.reset()


def test_with_otlp_alone_a_flush_waits_for_nothing_and_spans_name_their_prompt(mlflow_store, otlp, name):
    hello = Template("<p>Hello {{q}}</p>", name=name)
    for number in range(2):
        trace(hello, q=number)
        assert pomlflow.flush(3600)
    first, second = otlp.get_finished_spans()
    assert {span.attributes["poml.prompt.name"] for span in (first, second)} == {f'"{name}"'}
    assert second.attributes["poml.prompt"] == f'"prompts:/{name}/1"'


def test_a_lost_trace_is_counted_once_and_slows_no_later_flush(mlflow_store, stored_traces, name, monkeypatch, caplog):
    hello = Template("<p>Hello {{q}}</p>", name=name)
    trace(hello, q=0)
    assert pomlflow.flush()

    def full(*_: Any) -> Any:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "start_trace", full)
        patch.setattr(TracingClient, "log_spans", full)
        trace(hello, q=1)
        assert not pomlflow.flush(3600)
    assert sum("1 traces or prompt versions were lost, 0 are pending" in one for one in warnings_of(caplog)) == 1
    trace(hello, q=2)
    assert pomlflow.flush(3600)
    assert [linked(one) for one in stored_traces()] == [[f"{name}/1"]] * 2


BATCH = """
import threading, time
import mlflow
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from mlflow.environment_variables import MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE, MLFLOW_TRACE_BUFFER_MAX_SIZE
from mlflow.tracing.export.mlflow_v3 import MlflowV3SpanExporter
from mlflow.tracing.processor import base_mlflow
from sqlalchemy import event
from sqlalchemy.engine import Engine
import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE.default = MLFLOW_TRACE_BUFFER_MAX_SIZE.default = 20
base_mlflow._DEFAULT_OTEL_MAX_QUEUE_SIZE = 20
export = MlflowV3SpanExporter.export

def export_slowly(*spans):
    time.sleep(0.01)  # as on a busy machine
    return export(*spans)

MlflowV3SpanExporter.export = export_slowly
mlflow.set_tracking_uri({uri!r})
mlflow.set_experiment(experiment_id={experiment!r})
chain = PomlPromptTemplate.from_template("<p>Hello {{{{q}}}}</p>", name={name!r}) | FakeListChatModel(responses=["Hi"])
chain.batch([{{"q": number}} for number in range({calls})], {{"callbacks": [PomlCallbackHandler()]}})
print("flush", pomlflow.flush(3600), "threads", sum(one.name.startswith("Thread-") for one in threading.enumerate()))
"""


def test_a_batch_beyond_mlflows_limits_is_stored_whole(mlflow_store, name, tmp_path):
    """The limits, lowered to 20 here, are raised when the handler is made."""
    pytest.importorskip("langchain_core")
    program = BATCH.format(uri=mlflow.get_tracking_uri(), experiment=mlflow_store, name=name, calls=CALLS)
    printed = run(program, tmp_path, timeout=100 + CALLS)
    traces = mlflow.search_traces(locations=[mlflow_store], return_type="list", max_results=2 * CALLS)
    assert [(str(one.info.state), linked(one)) for one in traces] == [("OK", [f"{name}/1"])] * CALLS
    assert "flush True threads 0" in printed
    assert "lost" not in printed


APP = """
import asyncio, sys
import mlflow
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

mlflow.set_tracking_uri({uri!r})
mlflow.set_experiment(experiment_id={experiment!r})
prompt = PomlPromptTemplate.from_template("<p>Hello {{{{q}}}}</p>", name={name!r})
chain = (prompt | FakeListChatModel(responses=["Hi"])).with_config(callbacks=[PomlCallbackHandler()])

async def app(scope, receive, send):
    if scope["type"] == "http":
        await chain.ainvoke({{"q": scope["path"]}})
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"done"}})
"""
START = {
    "uvicorn app:app": "from uvicorn.main import main; main(['app:app', '--port', str(port), '--lifespan', 'off'])",
    "uvicorn.run(app)": "import app, uvicorn; uvicorn.run(app.app, port=port, lifespan='off')",
}
SERVE = """
import os, signal, socket, time, urllib.request
with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
server = os.fork()
if server == 0:
    {start}
    raise SystemExit
for number in range(40):
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{{port}}/{{number}}", timeout=60).read()
            break
        except OSError:
            assert os.waitpid(server, os.WNOHANG) == (0, 0)
            time.sleep(0.1)
os.kill(server, signal.SIGTERM)
print("code", os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(__import__("signal"), "pthread_sigmask"), reason="Windows has no SIGTERM")
@pytest.mark.parametrize("start", START.values(), ids=START)
def test_sigterm_under_uvicorn_loses_no_trace(mlflow_store, name, tmp_path: Path, start: str):
    """Uvicorn raises the signal again at its end, so that Python runs no exit hook."""
    pytest.importorskip("langchain_core")
    (tmp_path / "app.py").write_text(APP.format(uri=mlflow.get_tracking_uri(), experiment=mlflow_store, name=name))
    printed = run(SERVE.format(start=start), tmp_path)
    assert "code -15" in printed
    traces = mlflow.search_traces(locations=[mlflow_store], return_type="list", max_results=100)
    assert [(str(one.info.state), linked(one)) for one in traces] == [("OK", [f"{name}/1"])] * 40
