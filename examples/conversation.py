"""A conversation of three turns, with one trace for each; MLflow groups them as one session. Offline, without a key.

python examples/conversation.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser

import pomlflow
from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

STORE = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"
TURNS = {
    "Where were we on day 3?": "At station 4.",
    "Why was there no sampling?": "Because of three metres of swell.",
    "When did winch work stop?": "At noon.",
}


def main() -> None:
    """Ask three questions, each with the earlier turns as its history."""
    mlflow.set_tracking_uri(STORE)
    mlflow.set_experiment("conversations")

    prompt = PomlPromptTemplate.from_file(Path(__file__).parent / "prompts" / "watch.poml")
    model = FakeListChatModel(responses=list(TURNS.values()))
    chain = (prompt | model | StrOutputParser()).with_config(callbacks=[PomlCallbackHandler()])

    history: list[BaseMessage] = []
    for question in TURNS:
        with mlflow.tracing.context(session_id="watch-3", user="ada"):
            answer = chain.invoke({"question": question, "history": history})
        history += [HumanMessage(question), AIMessage(answer)]
        print(f"{question} {answer}")
    pomlflow.flush()

    for trace in mlflow.search_traces(return_type="list", include_spans=False):
        print(f"{trace.info.trace_id}: session {trace.info.trace_metadata['mlflow.trace.session']}")
    print(f"To see them in MLflow: {os.path.relpath(sys.executable)} -m mlflow ui --backend-store-uri {STORE}")


if __name__ == "__main__":
    main()
