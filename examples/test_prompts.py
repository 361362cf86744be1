"""Snapshot tests of prompts: the given values render to the messages in the snapshots next to this file.

    pytest examples/test_prompts.py
    pytest examples/test_prompts.py --snapshot-update

The snapshots are readable texts. In a review, a changed prompt shows there as a change of what the model is sent.
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
    """Render a LangChain prompt with a picture and settings."""
    prompt = langchain.PomlPromptTemplate.from_file(PROMPTS / "briefing.poml")
    assert pomlflow.transcript(prompt.invoke({"question": "Why no sampling?", "facts": FACTS})) == snapshot


def test_the_answer_from_papers(snapshot: SnapshotAssertion) -> None:
    """Render a LlamaIndex prompt whose retrieved text keeps its lines."""
    prompt = llama_index.PomlPromptTemplate.from_file(PROMPTS / "text_qa.poml")
    assert pomlflow.transcript(prompt.render({"query_str": "Why?", "context_str": "Day 3:\nSwell."})) == snapshot


@pytest.mark.parametrize("stations", [2, 9])
def test_the_pilot(stations: int, snapshot: SnapshotAssertion) -> None:
    """Render without a framework; each case has its own snapshot, with the tool and the schema."""
    frame = pomlflow.render(PROMPTS / "harbour.poml", {"ship": "Ada", "stations": stations})
    assert pomlflow.transcript(frame) == snapshot
