"""A prompt from MLflow's registry, with its picture and document, in both frameworks. Runs offline, without a key.

python examples/prompt_from_registry.py
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow

import pomlflow
from pomlflow import langchain, llama_index

BRIEFING = Path(__file__).parent / "prompts" / "briefing.poml"
GIVEN = {"question": "May we sample?", "facts": [{"text": "Sampling needs the winch.", "source": "chief scientist"}]}


def main() -> None:
    """Register a prompt, use it from a folder without its files, and move its alias to another version."""
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute().as_posix()}")
    mlflow.set_experiment("briefings")
    pomlflow.autolog()

    # A render registers its prompt; `pomlflow register` does the same for a folder.
    langchain.PomlPromptTemplate.from_file(BRIEFING, name="briefing").invoke(GIVEN)
    pomlflow.flush()
    mlflow.genai.set_prompt_alias("briefing", "production", version=1)

    os.chdir(tempfile.mkdtemp())  # none of the prompt's files are in this folder
    uri = "prompts:/briefing@production"
    chat = langchain.PomlPromptTemplate.from_registry(uri, refresh=0.5)
    query = llama_index.PomlPromptTemplate.from_registry(uri, refresh=0.5)
    print(f"LangChain renders {chat.uri}: {len(chat.invoke(GIVEN).to_messages())} messages")
    print(f"LlamaIndex renders {query.uri}: {len(query.format_messages(**GIVEN))} messages")
    files = json.loads(mlflow.genai.load_prompt(uri).tags["poml_files"])["files"]
    print("stored with the version:", ", ".join(f"{file['path']} ({file['size']} bytes)" for file in files))

    mlflow.genai.register_prompt("briefing", "<poml><task>Answer in one word: {{question}}</task></poml>")
    mlflow.genai.set_prompt_alias("briefing", "production", version=2)
    while (chat.version, query.version) != (2, 2):  # renders go on meanwhile, and none waits for the registry
        chat.invoke(GIVEN)
    print(f"after the move: {chat.invoke(GIVEN).to_messages()[0].content!r}")
    print(f"after the move: {query.format(**GIVEN)!r}")


if __name__ == "__main__":
    main()
