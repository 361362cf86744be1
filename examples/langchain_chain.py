"""A POML prompt in a LangChain chain, traced and registered in MLflow. Runs offline, without a key.

python examples/langchain_chain.py
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from mlflow.entities import Span, Trace

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

STORE = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"


def main() -> None:
    """Run the chain, then show what MLflow stored of it."""
    mlflow.set_tracking_uri(STORE)
    mlflow.set_experiment("briefings")

    prompt = PomlPromptTemplate.from_file(Path(__file__).parent / "prompts" / "briefing.poml")
    model = FakeListChatModel(responses=["They stopped winch work: the swell was three metres."])
    chain = prompt | model | StrOutputParser()

    variables = {
        "question": "Why was there no sampling on day 3?",
        "facts": [
            {"text": "The winch is used up to two metres of swell.", "source": "safety manual"},
            {"text": "Sampling needs the winch.", "source": "chief scientist"},
        ],
    }
    answer = chain.invoke(variables, config={"callbacks": [PomlCallbackHandler()]})
    pomlflow.flush()

    title("What the model was sent")
    for message in prompt.invoke(variables).to_messages():
        blocks = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
        for block in blocks:
            shown = block.get("text") or f"[{block['mime_type']}, {len(block['base64']) * 3 // 4} bytes]"
            print(f"{message.type}: {shown}\n")

    title("What it answered")
    print(answer)

    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace is not None
    title("What MLflow stored of it")
    print_tree(trace)

    title("The prompt version")
    version = mlflow.genai.load_prompt(prompt_uri(trace))
    print(f"{version.uri}: {version.commit_message}")
    print(f"settings: {version.model_config}")
    filter_string = f"prompt = '{version.name}/{version.version}'"
    linked = mlflow.search_traces(filter_string=filter_string, locations=[trace.info.experiment_id], return_type="list")
    print(f"{len(linked)} trace(s) found by {filter_string!r}, the newest: {linked[0].info.trace_id}")

    title("Look at it")
    print(f"{os.path.relpath(sys.executable)} -m mlflow ui --backend-store-uri {STORE}")


def prompt_uri(trace: Trace) -> str:
    """Return the URI of the prompt version that the trace is linked to."""
    linked = json.loads(trace.info.tags["mlflow.linkedPrompts"])
    return f"prompts:/{linked[0]['name']}/{linked[0]['version']}"


def print_tree(trace: Trace) -> None:
    """Print the spans, each under its parent."""

    def show(span: Span, depth: int) -> None:
        milliseconds = (span.end_time_ns - span.start_time_ns) / 1e6
        print(f"{'  ' * depth}{span.name}  [{span.span_type}]  {milliseconds:.1f} ms")
        for child in trace.data.spans:
            if child.parent_id == span.span_id:
                show(child, depth + 1)

    show(next(span for span in trace.data.spans if span.parent_id is None), 0)


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n=== {text} ===\n")


if __name__ == "__main__":
    main()
