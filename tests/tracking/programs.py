"""Programs that trace as a user's process would."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import mlflow
from tests.programs import run_program

__all__ = ["program", "run"]


def program(experiment: str, records: list[Any], body: str, uri: str | None = None) -> str:
    """A program that links records as a user's process would."""
    fields = [
        {name: getattr(record, name) for name in ("source", "digest", "start_ns", "end_ns", "name")}
        for record in records
    ]
    head = f"""
        import json, os, sys, time
        import mlflow
        from pomlflow.record import RenderRecord
        from pomlflow.tracking.background import worker
        from pomlflow.tracking.publish import publisher
        def flush(timeout):
            return not worker.flush(timeout)
        def link(record, trace_id, wait=0):
            version = publisher.link(record, trace_id)
            if version is None and wait:
                flush(wait)
                version = publisher.link(record, trace_id)
            return version
        mlflow.set_tracking_uri({uri or mlflow.get_tracking_uri()!r})
        mlflow.set_registry_uri({uri or mlflow.get_registry_uri()!r})
        if {experiment!r} != "0":
            mlflow.set_experiment(experiment_id={experiment!r})
        known = {{"context": b"{{}}", "output": {{"messages": []}}}}
        records = [RenderRecord(**one, **known) for one in json.loads({json.dumps(fields)!r})]
    """
    return textwrap.dedent(head) + textwrap.dedent(body)


def _environment() -> dict[str, str]:
    # MLflow passes the experiment on to child processes, where a dead server then makes every span a no-op.
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_ID"}


def run(text: str, folder: Path, *, timeout: float = 100, code: int = 0, **environment: str) -> str:
    """Run it to its end, and check its exit code; return what it printed."""
    done = run_program(text, folder=folder, environment={**_environment(), **environment}, timeout=timeout)
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    return printed
