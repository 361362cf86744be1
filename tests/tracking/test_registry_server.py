"""The registry against a real ``mlflow server``: there, away, gone in the middle and back."""

from __future__ import annotations

import logging
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from tests.mlflow_server import ServerPort
from tests.registry_prompts import found_by, linked, sources
from tests.waiting import until

from pomlflow.record import content_digest
from pomlflow.tracking.load import load
from pomlflow.tracking.stores import Stores
from pomlflow.tracking.versions import Registry, draft_of

pytestmark = pytest.mark.server


def test_a_prompt_is_registered_linked_and_listed(mlflow_server, use_server, publisher, record):
    """What the pages show: the trace's prompt, the prompt's traces, the experiment's prompts."""
    experiment = use_server(mlflow_server)
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    output = {"messages": [], "schema": schema, "runtime": {"temperature": 0.5}}
    source = "<p>\r\n{% raw %} {{ name }} \U0001f600 </p>  \n"
    greet = record(source=source, path="a/b.poml", output=output, static_fields=frozenset({"schema", "runtime"}))
    with mlflow.start_span("chain") as span:
        version = publisher.link(greet, span.trace_id, wait=60)
    assert publisher.flush(60)
    mlflow.flush_trace_async_logging()

    assert version.uri == f"prompts:/{greet.name}/1"
    there = MlflowClient().get_prompt_version(greet.name, 1)
    assert there.template == source
    assert there.response_format == schema
    assert there.model_config == {"temperature": 0.5}
    tags = dict(there.tags)
    use = tags.pop("poml_use")
    assert tags == {"poml_sha256": greet.digest, "poml_path": "a/b.poml", "poml_version": "0.0.8"}
    assert f'from_registry("{version.uri}")' in use
    until(lambda: found_by(f"{greet.name}/1", experiment) == {span.trace_id})
    assert linked(span.trace_id) == [f"{greet.name}/1"]
    assert greet.name in [prompt.name for prompt in MlflowClient().search_prompts(f"experiment_id = '{experiment}'")]


def test_the_registry_does_not_need_the_tracking_database(mlflow_server, use_server, record, tmp_path):
    """MLflow's client of a registry opens the tracking database too, which may be broken or still be created."""
    use_server(mlflow_server)
    (tmp_path / "broken.db").write_bytes(b"no database" * 1000)
    mlflow.set_tracking_uri(f"sqlite:///{(tmp_path / 'broken.db').as_posix()}")
    mlflow.set_registry_uri(mlflow_server.uri)
    greet = record(source="<p>Hello</p>", digest=content_digest("<p>Hello</p>", ()))
    place = Stores.current()
    found = Registry(place.client(), place.registry).find(draft_of(greet, greet.name), create=True)
    assert found.uri == f"prompts:/{greet.name}/1"
    assert load(greet.name, version=1).source == greet.source
    mlflow.set_tracking_uri(mlflow_server.uri)


def test_a_server_gone_in_the_middle_and_back(mlflow_server, use_server, publisher, record, caplog, monkeypatch):
    """One warning is logged; renders during the outage are registered and linked once the server is reachable again."""
    # MLflow's own exporter loses a trace when its retries end; the pauses between these double.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    caplog.set_level(logging.INFO, "pomlflow")
    before, during, both = record("before"), record("during"), record("both")
    with ServerPort(mlflow_server) as server:
        experiment = use_server(server)
        with mlflow.start_span("before") as first:
            assert publisher.link(before, first.trace_id, wait=60).version == 1
        assert publisher.flush(60)
        mlflow.flush_trace_async_logging()

        server.close()
        got: list[Any] = []
        with mlflow.start_span("closed") as closed:
            got.append(publisher.link(during, closed.trace_id))
        with mlflow.start_span("open") as still_open:
            for _ in range(20):
                got += [publisher.link(one, still_open.trace_id, wait=0.005) for one in (during, both)]
            assert publisher.link(before, still_open.trace_id).version == 1
            assert set(got) == {None}
            assert not publisher.flush(1)
            server.open()
            until(lambda: sorted(sources(before.name)) == sorted([before.source, during.source, both.source]))
        until(lambda: publisher.flush(1), 150)
        mlflow.flush_trace_async_logging()

        number = {template: index for index, template in enumerate(sources(before.name), 1)}
        assert sorted(linked(still_open.trace_id)) == [f"{before.name}/{index}" for index in (1, 2, 3)]
        assert linked(closed.trace_id) == [f"{before.name}/{number[during.source]}"]
        until(lambda: found_by(f"{before.name}/{number[both.source]}", experiment) == {still_open.trace_id})
    logged = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "pomlflow"]
    assert [level for level, text in logged if "is unreachable" in text] == ["WARNING"]
    assert [level for level, text in logged if text.endswith("is reachable again.")] == ["INFO"]
    assert len([level for level, _ in logged if level == "WARNING"]) == 1
