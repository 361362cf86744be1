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

from pomlflow.exceptions import VariableError
from pomlflow.llama_index import PomlPromptTemplate
from pomlflow.llama_index.messages import describe, from_poml, to_poml

REQUEST = {"type": "application/vnd.poml.toolrequest", "id": "c1", "name": "look", "content": {"x": 1}}
RESPONSE = {"type": "application/vnd.poml.toolresponse", "id": "c1", "name": "look", "content": "seen"}
IMAGE = {"type": "image/png", "base64": "AAAA"}
BLOCK = ImageBlock(image=b"AAAA", image_mimetype="image/png")
CALL = ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"x": 1})


def poml(speaker: str, content: Any) -> dict[str, Any]:
    return {"speaker": speaker, "content": content}


def message(role: str, *blocks: Any, **more: Any) -> ChatMessage:
    made = [TextBlock(text=block) if isinstance(block, str) else block for block in blocks]
    return ChatMessage(role=role, blocks=made, additional_kwargs=more)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (poml("human", "Hi"), [message("user", "Hi")]),
        (poml("ai", "Hi"), [message("assistant", "Hi")]),
        (poml("system", "Hi"), [message("system", "Hi")]),
        (poml("tool", "Hi"), [message("user", "Hi")]),  # a response needs the id of a call
        (poml("human", []), [message("user", "")]),
        (poml("human", ""), [message("user", "")]),
        (poml("human", ["a", "b"]), [message("user", "a", "b")]),
        (poml("human", ["a ", IMAGE, " b"]), [message("user", "a ", BLOCK, " b")]),
        (poml("ai", [REQUEST]), [message("assistant", CALL)]),
        (poml("ai", ["I look", REQUEST]), [message("assistant", "I look", CALL)]),
        (poml("human", [REQUEST]), [message("assistant", CALL)]),
        (poml("ai", [{**REQUEST, "content": '{"x": 1}'}]), [message("assistant", CALL)]),
        (
            poml("ai", [{**REQUEST, "content": "x"}]),
            [message("assistant", ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"input": "x"}))],
        ),
        (poml("tool", [RESPONSE]), [message("tool", "seen", tool_call_id="c1")]),
        (
            poml("tool", [RESPONSE, {**RESPONSE, "id": "c2"}]),
            [message("tool", "seen", tool_call_id="c1"), message("tool", "seen", tool_call_id="c2")],
        ),
        (
            poml("tool", [{**RESPONSE, "content": ["a", IMAGE]}]),
            [message("tool", "a", BLOCK, tool_call_id="c1")],
        ),
        (poml("tool", [{**RESPONSE, "content": []}]), [message("tool", "", tool_call_id="c1")]),
        (
            poml("ai", ["a", REQUEST, RESPONSE]),
            [message("assistant", "a", CALL), message("tool", "seen", tool_call_id="c1")],
        ),
    ],
    ids=str,
)
def test_pomls_messages_become_llama_indexs(message: dict[str, Any], expected: list[ChatMessage]) -> None:
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
    """The bytes stay base64, and the type is the given one, never guessed."""
    assert from_poml([poml("human", [{"type": mime, "base64": "AAAA"}])])[0].blocks == [expected]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (message("user", "Hi"), poml("human", "Hi")),
        (message("system", "Hi"), poml("system", "Hi")),
        (message("developer", "Hi"), poml("system", "Hi")),
        (message("chatbot", "Hi"), poml("ai", "Hi")),
        (message("model", "Hi"), poml("ai", "Hi")),
        (message("user"), poml("human", "")),
        (message("user", "a", "b"), poml("human", ["a", "b"])),
        (message("user", "a", BLOCK), poml("human", ["a", IMAGE])),
        (message("user", ImageBlock(url="https://x.y/z.png")), poml("human", "[image https://x.y/z.png]")),
        (
            message("user", AudioBlock(audio=b"AAAA", format="mp3")),
            poml("human", [{"type": "audio/mpeg", "base64": "AAAA"}]),
        ),
        (
            message("user", VideoBlock(video=b"AAAA", video_mimetype="video/mp4")),
            poml("human", [{"type": "video/mp4", "base64": "AAAA"}]),
        ),
        (
            message("user", DocumentBlock(data=b"AAAA", document_mimetype="application/pdf")),
            poml("human", [{"type": "application/pdf", "base64": "AAAA"}]),
        ),
        (message("assistant", ThinkingBlock(content="hm"), "a", CALL), poml("ai", ["a", REQUEST])),
        (message("user", "a", CachePoint(cache_control={"type": "ephemeral"})), poml("human", "a")),
        (message("tool", "seen", tool_call_id="c1", name="look"), poml("tool", [RESPONSE])),
        (message("tool", "seen"), poml("tool", "seen")),
    ],
    ids=str,
)
def test_llama_indexs_messages_become_pomls(message: ChatMessage, expected: dict[str, Any]) -> None:
    assert to_poml(message) == expected


def test_a_history_is_inserted_unchanged() -> None:
    """Tool messages, thoughts and ids survive, in new messages with new blocks."""
    history = [
        message("user", "look", BLOCK),
        message("assistant", ThinkingBlock(content="hm"), CALL, extra="x"),
        message("tool", "seen", tool_call_id="c1"),
    ]
    prompt = PomlPromptTemplate(
        '<system-msg>S</system-msg><conversation messages="{{chat_history}}"/><human-msg>{{q}}</human-msg>'
    )
    messages = prompt.format_messages(chat_history=history, q="why?")
    assert messages == [message("system", "S"), *history, message("user", "why?")]
    assert prompt.format_messages(q="why?") == [message("system", "S"), message("user", "why?")]
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
        [{"speaker": "user", "content": "Hi"}, {"speaker": "assistant", "content": "Hello"}],
        ["Hi", message("assistant", "Hello")],
    ],
    ids=["pairs", "dicts", "poml", "roles as speakers", "mixed"],
)
def test_a_history_accepts_each_form_of_role_and_text(history: Any) -> None:
    prompt = PomlPromptTemplate('<conversation messages="{{chat_history}}"/>')
    assert prompt.format_messages(chat_history=history) == [message("user", "Hi"), message("assistant", "Hello")]


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user"},
        {"role": "user", "text": "Hi"},
        {"content": "Hi"},
        {"speaker": "robot", "content": "Hi"},
        7,
        ("a",),
    ],
)
def test_what_is_no_message_is_an_error_with_its_index(item: Any) -> None:
    """LlamaIndex would make an empty message of some."""
    prompt = PomlPromptTemplate('<conversation messages="{{chat_history}}"/>')
    with pytest.raises(VariableError, match="'chat_history' holds no messages: at index 1, "):
        prompt.format_messages(chat_history=["Hi", item])


def test_a_history_may_be_one_text() -> None:
    """Condensing chat engines pass the history as a text."""
    prompt = PomlPromptTemplate('<conversation messages="{{chat_history}}"/><human-msg>Q</human-msg>')
    assert prompt.format_messages(chat_history="user: Hi") == [message("user", "user: Hi"), message("user", "Q")]
    assert prompt.format_messages(chat_history="") == [message("user", "Q")]
    with pytest.raises(VariableError, match="'chat_history' holds no messages"):
        prompt.format_messages(chat_history=7)


def test_expressions_read_llama_indexs_objects_as_plain_data() -> None:
    """Nodes have id, text, metadata and score; messages speaker, role and content; prompts and queries are text."""
    node = TextNode(id_="n1", text="some text", metadata={"page": 3})
    prompt = PomlPromptTemplate(
        '<p for="n in nodes">{{n.id}} {{n.text}} {{n.metadata.page}} {{n.score}}</p><p>{{one.text}} {{m.role}} '
        "{{m.content}} {{other}} {{query}} {{answer}}</p>"
    )
    text = prompt.format(
        nodes=[NodeWithScore(node=node, score=0.5), NodeWithScore(node=Document(id_="d1", text="doc"))],
        one=node,
        m=message("assistant", "Hi"),
        other=PromptTemplate("see {this}"),
        query=QueryBundle("why?"),
        answer=Response("so"),
    )
    assert text == "n1 some text 3 0.5\n\nd1 doc\n\nsome text assistant Hi see {this} why? so"


def test_describe_returns_the_fields_that_templates_read() -> None:
    assert describe(message("user", "Hi")) == {"speaker": "human", "content": "Hi", "role": "user"}
