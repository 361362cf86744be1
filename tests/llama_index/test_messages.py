"""POML's messages to LlamaIndex's and back, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.base.response.schema import Response
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TextNode
from poml.api import PomlFrame
from tests.corpus.cases import cases

from pomlflow.exceptions import VariableError
from pomlflow.llama_index import PomlPromptTemplate
from pomlflow.llama_index.messages import describe, from_poml, to_poml

REQUEST = {"type": "application/vnd.poml.toolrequest", "id": "c1", "name": "look", "content": {"x": 1}}
RESPONSE = {"type": "application/vnd.poml.toolresponse", "id": "c1", "name": "look", "content": "seen"}
PICTURE = {"type": "image/png", "base64": "AAAA"}
BLOCK = ImageBlock(image=b"AAAA", image_mimetype="image/png")
CALL = ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"x": 1})


def poml(speaker: str, content: Any) -> dict[str, Any]:
    return {"speaker": speaker, "content": content}


def said(role: str, *blocks: Any, **more: Any) -> ChatMessage:
    made = [TextBlock(text=block) if isinstance(block, str) else block for block in blocks]
    return ChatMessage(role=role, blocks=made, additional_kwargs=more)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (poml("human", "Hi"), [said("user", "Hi")]),
        (poml("ai", "Hi"), [said("assistant", "Hi")]),
        (poml("system", "Hi"), [said("system", "Hi")]),
        (poml("tool", "Hi"), [said("user", "Hi")]),  # without an id it answers no call
        (poml("human", []), [said("user", "")]),
        (poml("human", ""), [said("user", "")]),
        (poml("human", ["a", "b"]), [said("user", "a", "b")]),
        (poml("human", ["a ", PICTURE, " b"]), [said("user", "a ", BLOCK, " b")]),
        (poml("ai", [REQUEST]), [said("assistant", CALL)]),
        (poml("ai", ["I look", REQUEST]), [said("assistant", "I look", CALL)]),
        (poml("human", [REQUEST]), [said("assistant", CALL)]),
        (poml("ai", [{**REQUEST, "content": '{"x": 1}'}]), [said("assistant", CALL)]),
        (
            poml("ai", [{**REQUEST, "content": "x"}]),
            [said("assistant", ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"input": "x"}))],
        ),
        (poml("tool", [RESPONSE]), [said("tool", "seen", tool_call_id="c1")]),
        (
            poml("tool", [RESPONSE, {**RESPONSE, "id": "c2"}]),
            [said("tool", "seen", tool_call_id="c1"), said("tool", "seen", tool_call_id="c2")],
        ),
        (
            poml("tool", [{**RESPONSE, "content": ["a", PICTURE]}]),
            [said("tool", "a", BLOCK, tool_call_id="c1")],
        ),
        (poml("tool", [{**RESPONSE, "content": []}]), [said("tool", "", tool_call_id="c1")]),
        (poml("ai", ["a", REQUEST, RESPONSE]), [said("assistant", "a", CALL), said("tool", "seen", tool_call_id="c1")]),
    ],
    ids=str,
)
def test_from_poml(message: dict[str, Any], expected: list[ChatMessage]) -> None:
    assert from_poml([message]) == expected


@pytest.mark.parametrize(
    ("mime", "expected"),
    [
        ("image/webp", ImageBlock(image=b"AAAA", image_mimetype="image/webp")),
        ("audio/mpeg", AudioBlock(audio=b"AAAA", format="mp3")),
        ("audio/x-wav", AudioBlock(audio=b"AAAA", format="wav")),
        ("audio/ogg", AudioBlock(audio=b"AAAA", format="ogg")),
        ("video/mp4", VideoBlock(video=b"AAAA", video_mimetype="video/mp4")),
        ("application/pdf", DocumentBlock(data=b"AAAA", document_mimetype="application/pdf", title="document.pdf")),
    ],
)
def test_media_become_blocks_of_their_kind(mime: str, expected: Any) -> None:
    """The bytes stay base64, and the kind is told, never guessed."""
    assert from_poml([poml("human", [{"type": mime, "base64": "AAAA"}])])[0].blocks == [expected]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (said("user", "Hi"), poml("human", "Hi")),
        (said("system", "Hi"), poml("system", "Hi")),
        (said("developer", "Hi"), poml("system", "Hi")),
        (said("chatbot", "Hi"), poml("ai", "Hi")),
        (said("model", "Hi"), poml("ai", "Hi")),
        (said("user"), poml("human", "")),
        (said("user", "a", "b"), poml("human", ["a", "b"])),
        (said("user", "a", BLOCK), poml("human", ["a", PICTURE])),
        (said("user", ImageBlock(url="https://x.y/z.png")), poml("human", "[image https://x.y/z.png]")),
        (
            said("user", AudioBlock(audio=b"AAAA", format="mp3")),
            poml("human", [{"type": "audio/mpeg", "base64": "AAAA"}]),
        ),
        (
            said("user", VideoBlock(video=b"AAAA", video_mimetype="video/mp4")),
            poml("human", [{"type": "video/mp4", "base64": "AAAA"}]),
        ),
        (
            said("user", DocumentBlock(data=b"AAAA", document_mimetype="application/pdf")),
            poml("human", [{"type": "application/pdf", "base64": "AAAA"}]),
        ),
        (said("assistant", ThinkingBlock(content="hm"), "a", CALL), poml("ai", ["a", REQUEST])),
        (said("user", "a", CachePoint(cache_control={"type": "ephemeral"})), poml("human", "a")),
        (said("tool", "seen", tool_call_id="c1", name="look"), poml("tool", [RESPONSE])),
        (said("tool", "seen"), poml("tool", "seen")),
    ],
    ids=str,
)
def test_to_poml(message: ChatMessage, expected: dict[str, Any]) -> None:
    assert to_poml(message) == expected


FRAMES = [case for case in cases() if case.chat and not case.fails]


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: case.name)
def test_every_frame_of_the_corpus_goes_there_and_back(case) -> None:
    """What POML can say arrives in LlamaIndex's messages, and is the same to POML afterwards."""
    messages = case.expected["messages"]
    made = from_poml(messages)
    assert all(message.blocks for message in made)
    PomlFrame.model_validate({"messages": [to_poml(message) for message in made]})
    parts = [part for m in messages for part in ([m["content"]] if isinstance(m["content"], str) else m["content"])]
    blocks = [block for m in made if m.role != "tool" for block in m.blocks]
    shown = [block.text for block in blocks if isinstance(block, TextBlock) and block.text]
    assert shown == [part for part in parts if isinstance(part, str) and part]


def test_a_history_is_spliced_in_as_it_is() -> None:
    """Tool messages, thoughts and ids survive, in new messages with new blocks."""
    history = [
        said("user", "look", BLOCK),
        said("assistant", ThinkingBlock(content="hm"), CALL, extra="x"),
        said("tool", "seen", tool_call_id="c1"),
    ]
    prompt = PomlPromptTemplate(
        '<system-msg>S</system-msg><conversation messages="{{chat_history}}"/><human-msg>{{q}}</human-msg>'
    )
    messages = prompt.format_messages(chat_history=history, q="why?")
    assert messages == [said("system", "S"), *history, said("user", "why?")]
    assert prompt.format_messages(q="why?") == [said("system", "S"), said("user", "why?")]
    for given, made in zip(history, messages[1:], strict=False):
        assert made is not given
        assert made.blocks[0] is not given.blocks[0]
        assert made.additional_kwargs is not given.additional_kwargs


@pytest.mark.parametrize(
    "history",
    [
        [("user", "Hi"), ("assistant", "Hello")],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"speaker": "human", "content": "Hi"}, {"speaker": "ai", "content": "Hello"}],
        ["Hi", said("assistant", "Hello")],
    ],
    ids=["pairs", "dicts", "poml", "mixed"],
)
def test_a_history_takes_whatever_tells_role_and_text(history: Any) -> None:
    prompt = PomlPromptTemplate('<conversation messages="{{chat_history}}"/>')
    assert prompt.format_messages(chat_history=history) == [said("user", "Hi"), said("assistant", "Hello")]


def test_a_history_may_be_one_text() -> None:
    """Condensing chat engines give the history as a text."""
    prompt = PomlPromptTemplate('<conversation messages="{{chat_history}}"/><human-msg>Q</human-msg>')
    assert prompt.format_messages(chat_history="user: Hi") == [said("user", "user: Hi"), said("user", "Q")]
    assert prompt.format_messages(chat_history="") == [said("user", "Q")]
    with pytest.raises(VariableError, match="'chat_history' holds no messages"):
        prompt.format_messages(chat_history=7)


def test_expressions_see_llama_indexs_objects_as_plain_ones() -> None:
    """Nodes tell id, text, metadata and score; messages speaker, role and content; prompts and queries are text."""
    node = TextNode(id_="n1", text="some text", metadata={"page": 3})
    prompt = PomlPromptTemplate(
        '<p for="n in nodes">{{n.id}} {{n.text}} {{n.metadata.page}} {{n.score}}</p><p>{{one.text}} {{m.role}} '
        "{{m.content}} {{other}} {{query}} {{answer}}</p>"
    )
    text = prompt.format(
        nodes=[NodeWithScore(node=node, score=0.5), NodeWithScore(node=Document(id_="d1", text="doc"))],
        one=node,
        m=said("assistant", "Hi"),
        other=PromptTemplate("see {this}"),
        query=QueryBundle("why?"),
        answer=Response("so"),
    )
    assert text == "n1 some text 3 0.5\n\nd1 doc\n\nsome text assistant Hi see {this} why? so"


def test_describe_tells_what_templates_ask_for() -> None:
    assert describe(said("user", "Hi")) == {"speaker": "human", "content": "Hi", "role": "user"}
