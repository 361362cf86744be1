"""`max_content` reaches all that the handler stores of a chain, attachments included."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from mlflow.entities import Trace
from tests.langchain.trees import tree

from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate
from pomlflow.settings import settings

LONG = "all of it " * 100
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(2000)).decode()
TREE = """\
RunnableSequence CHAIN
  FakeListChatModel CHAT_MODEL
  said CHAIN
    poml said PROMPT
"""


def fail(_: Any) -> None:
    raise ValueError(LONG)


@pytest.mark.parametrize("mask", [None, lambda content: content])
def test_no_text_is_longer_and_no_large_media_are_stored(
    mask: Any, stored_traces: Callable[[], list[Trace]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In spans of the chain, the prompt, the model, streams and errors; the model itself is not limited."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    monkeypatch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), max_content=300))
    config: Any = {"callbacks": [PomlCallbackHandler(register=False, mask=mask)]}
    model = FakeListChatModel(responses=[LONG])
    prompt = PomlPromptTemplate.from_template("<p>{{text}}</p>", name="said")
    assert (prompt | model).invoke({"text": LONG}, config).content == LONG
    assert "".join(str(part.content) for part in model.stream(LONG, config)) == LONG
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    model.invoke([HumanMessage([{"type": "text", "text": "See"}, picture])], config)
    with pytest.raises(ValueError, match="all of it"):
        RunnableLambda(fail).invoke("x", config)

    traces = stored_traces()
    assert tree(traces[0]) == TREE
    assert len(traces) == 4
    for trace in traces:
        stored = json.dumps([span.to_dict() for span in trace.data.spans], default=str)
        assert "all of it " * 31 not in stored
        assert PICTURE[:100] not in stored
        assert "mlflow-attachment://" not in stored
        assert "max_content]" in stored
    chain = traces[0].data.spans[0]
    assert chain.inputs == {"text": LONG[:300] + "… [700 more characters: max_content]"}
    assert chain.outputs["content"] == LONG[:300] + "… [700 more characters: max_content]"
