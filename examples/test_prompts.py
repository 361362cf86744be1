"""Tests of prompts: these values give these messages, as the snapshots next to this file say.

    pytest examples/test_prompts.py
    pytest examples/test_prompts.py --snapshot-update

The snapshots are texts for reviewers: a change of a prompt shows up there as a change of what the model is sent.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import pomlflow
from pomlflow import langchain, llama_index

PROMPTS = Path(__file__).parent / "prompts"
FACTS = [{"text": "Sampling needs the winch.", "source": "chief scientist"}]


def test_the_briefing(snapshot: SnapshotAssertion) -> None:
    """A prompt of LangChain's: messages with a picture, and settings."""
    prompt = langchain.PomlPromptTemplate.from_file(PROMPTS / "briefing.poml")
    assert pomlflow.transcript(prompt.invoke({"question": "Why no sampling?", "facts": FACTS})) == snapshot


def test_the_answer_from_papers(snapshot: SnapshotAssertion) -> None:
    """A prompt of LlamaIndex's: the retrieved text keeps its lines."""
    prompt = llama_index.PomlPromptTemplate.from_file(PROMPTS / "text_qa.poml")
    assert pomlflow.transcript(prompt.render({"query_str": "Why?", "context_str": "Day 3:\nSwell."})) == snapshot


@pytest.mark.parametrize("stations", [2, 9])
def test_the_pilot(stations: int, snapshot: SnapshotAssertion) -> None:
    """Without a framework: one snapshot for each case, with the tool and the schema."""
    frame = pomlflow.render(PROMPTS / "harbour.poml", {"ship": "Ada", "stations": stations})
    assert pomlflow.transcript(frame) == snapshot
