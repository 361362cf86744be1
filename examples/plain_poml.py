"""POML without a framework: POML's own MLflow example, with one line changed. Runs offline, without a key.

    python examples/plain_poml.py

It needs OpenAI's client (`pip install openai`); a local HTTP transport answers in OpenAI's place.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import httpx
import mlflow
import openai
from mlflow.entities import Trace

import pomlflow

STORE = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"
PROMPT = Path(__file__).parent / "prompts" / "explain_code.poml"


def answer(request: httpx.Request) -> httpx.Response:
    """Return a response in OpenAI's format."""
    text = "It multiplies speed by time. It prints 60 nautical miles."
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": json.loads(request.content)["model"]}
    return httpx.Response(200, json={**head, "choices": choices})


def main() -> None:
    """Explain a program, then show what MLflow stored of it."""
    mlflow.set_tracking_uri(STORE)
    client = openai.OpenAI(api_key="none", http_client=httpx.Client(transport=httpx.MockTransport(answer)))

    mlflow.set_experiment("poml_integration")
    pomlflow.autolog(trace_dir="pomlruns")  # was: poml.set_trace("mlflow", trace_dir="pomlruns")
    mlflow.openai.autolog()

    with mlflow.start_span("explain"):
        messages = pomlflow.poml(PROMPT, context={"code_path": "sample.py"}, format="openai_chat")
        response = client.chat.completions.create(model="gpt-5", **messages)

    print("sent: ", {key: value for key, value in messages.items() if key != "messages"})
    print("answer:", response.choices[0].message.content)
    pomlflow.flush()
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace is not None
    show(trace)
    print(f"To see it in MLflow: {os.path.relpath(sys.executable)} -m mlflow ui --backend-store-uri {STORE}")


def show(trace: Trace) -> None:
    """Print the trace's spans, its prompt, and the local files."""
    names: dict[str | None, Any] = {span.span_id: span.name for span in trace.data.spans}
    for span in trace.data.spans:
        print(f"{names.get(span.parent_id, 'the trace')} > {span.name}")
    print("linked prompts:", trace.info.tags["mlflow.linkedPrompts"])
    folder = max(Path("pomlruns").iterdir())
    print("local files:", ", ".join(sorted(file.name for file in folder.iterdir())))


if __name__ == "__main__":
    main()
