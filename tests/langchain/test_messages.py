"""POML's messages to LangChain's and back, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)
from poml.api import PomlFrame

from pomlflow.langchain.messages import describe, from_poml, message_to_poml

REQUEST = {"type": "application/vnd.poml.toolrequest", "id": "c1", "name": "look", "content": {"x": 1}}
RESPONSE = {"type": "application/vnd.poml.toolresponse", "id": "c1", "name": "look", "content": "seen"}
PICTURE = {"type": "image/png", "base64": "AAAA"}
BLOCK = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
CALL = {"type": "tool_call", "id": "c1", "name": "look", "args": {"x": 1}}


def poml(speaker: str, content: Any) -> dict[str, Any]:
    return {"speaker": speaker, "content": content}


def text(of: str) -> dict[str, str]:
    return {"type": "text", "text": of}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (poml("human", "Hi"), [HumanMessage("Hi")]),
        (poml("ai", "Hi"), [AIMessage("Hi")]),
        (poml("system", "Hi"), [SystemMessage("Hi")]),
        (poml("tool", "Hi"), [HumanMessage("Hi")]),  # without an id it answers no call
        (poml("human", []), [HumanMessage("")]),
        (poml("human", ""), [HumanMessage("")]),
        (poml("ai", ["Hi"]), [AIMessage("Hi")]),
        (poml("human", ["a", "b"]), [HumanMessage([text("a"), text("b")])]),
        (poml("human", [PICTURE]), [HumanMessage([BLOCK])]),
        (poml("human", ["a ", PICTURE, " b"]), [HumanMessage([text("a "), BLOCK, text(" b")])]),
        (poml("ai", [REQUEST]), [AIMessage("", tool_calls=[CALL])]),
        (poml("ai", ["I look", REQUEST]), [AIMessage("I look", tool_calls=[CALL])]),
        (poml("human", [REQUEST]), [AIMessage("", tool_calls=[CALL])]),
        (poml("ai", [PICTURE, REQUEST]), [AIMessage([BLOCK], tool_calls=[CALL])]),
        (poml("tool", [RESPONSE]), [ToolMessage("seen", tool_call_id="c1", name="look")]),
        (
            poml("tool", [RESPONSE, {**RESPONSE, "id": "c2"}]),
            [ToolMessage("seen", tool_call_id=identity, name="look") for identity in ("c1", "c2")],
        ),
        (
            poml("tool", [{**RESPONSE, "content": ["a", PICTURE]}]),
            [ToolMessage([text("a"), BLOCK], tool_call_id="c1", name="look")],
        ),
        (poml("tool", [{**RESPONSE, "content": []}]), [ToolMessage("", tool_call_id="c1", name="look")]),
        (
            poml("ai", ["a", REQUEST, RESPONSE]),
            [AIMessage("a", tool_calls=[CALL]), ToolMessage("seen", tool_call_id="c1", name="look")],
        ),
    ],
    ids=str,
)
def test_pomls_messages_become_langchains(message: dict[str, Any], expected: list[BaseMessage]) -> None:
    assert from_poml([message]) == expected


@pytest.mark.parametrize(
    ("mime", "expected"),
    [
        ("image/webp", {"type": "image", "mime_type": "image/webp"}),
        ("audio/wav", {"type": "audio", "mime_type": "audio/wav"}),
        ("audio/x-wav", {"type": "audio", "mime_type": "audio/wav"}),
        ("audio/mpeg", {"type": "audio", "mime_type": "audio/mp3"}),
        ("audio/ogg", {"type": "audio", "mime_type": "audio/ogg"}),
        ("video/mp4", {"type": "video", "mime_type": "video/mp4"}),
        ("application/pdf", {"type": "file", "mime_type": "application/pdf", "filename": "document.pdf"}),
        ("application/x-nothing", {"type": "file", "mime_type": "application/x-nothing", "filename": "document"}),
    ],
)
def test_media_are_standard_blocks(mime: str, expected: dict[str, Any]) -> None:
    (message,) = from_poml([poml("human", [{"type": mime, "base64": "AAAA", "alt": "what it is"}])])
    assert message.content == [{**expected, "base64": "AAAA", "extras": {"alt": "what it is"}}]
    # LangChain itself knows the block: it would wrap what it does not know.
    assert message.content_blocks[0]["type"] == expected["type"]


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        ({"a": [1]}, {"a": [1]}),
        ('{"a": 1}', {"a": 1}),
        ("Oslo", {"input": "Oslo"}),
        ([1, 2], {"input": [1, 2]}),
        ("[1]", {"input": [1]}),
        (None, {"input": None}),
    ],
    ids=repr,
)
def test_a_tool_calls_arguments_are_an_object(content: Any, arguments: dict[str, Any]) -> None:
    (message,) = from_poml([poml("ai", [{**REQUEST, "content": content}])])
    assert message.tool_calls[0]["args"] == arguments


def test_native_messages_are_used_unchanged() -> None:
    native = AIMessage("own", id="1")
    messages = from_poml([poml("system", "a"), poml("ai", "own"), poml("human", "b")], {1: native})
    assert messages == [SystemMessage("a"), native, HumanMessage("b")]
    assert messages[1] is native


def test_every_render_gives_messages_of_its_own() -> None:
    output = [poml("human", ["a", PICTURE])]
    first, second = from_poml(output)[0], from_poml(output)[0]
    first.content.append(text("more"))
    first.content[0]["text"] = "changed"
    assert second.content == [text("a"), BLOCK]
    assert output == [poml("human", ["a", PICTURE])]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HumanMessage("Hi"), poml("human", "Hi")),
        (AIMessage("Hi"), poml("ai", "Hi")),
        (SystemMessage("Hi"), poml("system", "Hi")),
        (HumanMessageChunk("Hi"), poml("human", "Hi")),
        (AIMessageChunk("Hi"), poml("ai", "Hi")),
        (ChatMessage("Hi", role="user"), poml("human", "Hi")),
        (ChatMessage("Hi", role="assistant"), poml("ai", "Hi")),
        (ChatMessage("Hi", role="developer"), poml("system", "Hi")),
        (ChatMessage("Hi", role="narrator"), poml("human", "Hi")),
        (FunctionMessage("Hi", name="f"), poml("tool", "Hi")),
        (AIMessage(""), poml("ai", "")),
        (AIMessage([text("a")]), poml("ai", "a")),
        (HumanMessage(["a", BLOCK]), poml("human", ["a", PICTURE])),
        (AIMessage("", tool_calls=[CALL]), poml("ai", [REQUEST])),
        (AIMessage("a", tool_calls=[CALL]), poml("ai", ["a", REQUEST])),
        (ToolMessage("seen", tool_call_id="c1", name="look"), poml("tool", [RESPONSE])),
        (ToolMessage("", tool_call_id="c1", name="look"), poml("tool", [{**RESPONSE, "content": ""}])),
        (
            ToolMessage([text("a"), BLOCK], tool_call_id="c1"),
            poml("tool", [{**RESPONSE, "name": "", "content": ["a", PICTURE]}]),
        ),
    ],
    ids=repr,
)
def test_langchains_messages_become_pomls(message: BaseMessage, expected: dict[str, Any]) -> None:
    assert message_to_poml(message) == expected
    PomlFrame.model_validate({"messages": [message_to_poml(message)]})


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (BLOCK, PICTURE),
        ({"type": "image", "source_type": "base64", "data": "AAAA", "mime_type": "image/png"}, PICTURE),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, PICTURE),
        ({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, PICTURE),
        ({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, "[image_url https://x.org/a.png]"),
        ({"type": "image", "url": "https://x.org/a.png"}, "[image https://x.org/a.png]"),
        ({"type": "image", "file_id": "f"}, "[image]"),
        ({"type": "file", "base64": "AAAA", "mime_type": "text/csv"}, {"type": "text/csv", "base64": "AAAA"}),
        ({**BLOCK, "extras": {"alt": "a dot"}}, {**PICTURE, "alt": "a dot"}),
        ({"type": "audio", "base64": "AAAA"}, {"type": "audio/*", "base64": "AAAA"}),
        ({"type": "whatever", "x": 1}, "[whatever]"),
        ({"text": "bare"}, "bare"),
        ({}, "[]"),
    ],
    ids=str,
)  # fmt: skip
def test_content_blocks_become_pomls_parts(block: dict[str, Any], part: Any) -> None:
    expected = part if isinstance(part, str) else [part]
    assert message_to_poml(HumanMessage([block]))["content"] == expected


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"x": 1}},
    ],
    ids=lambda block: block["type"],
)
def test_reasoning_and_repeated_calls_are_left_out(block: dict[str, Any]) -> None:
    message = AIMessage([block, text("a")], tool_calls=[CALL])
    assert message_to_poml(message)["content"] == ["a", REQUEST]


def test_expressions_read_the_fields_of_a_message() -> None:
    assert describe(AIMessage("a", tool_calls=[CALL], id="1", name="n")) == {
        "speaker": "ai",
        "content": "a",
        "type": "ai",
        "name": "n",
        "id": "1",
        "tool_calls": [{"id": "c1", "name": "look", "args": {"x": 1}}],
    }
    assert describe(HumanMessage([text("a")])) == {"speaker": "human", "content": "a", "type": "human"}
    assert describe(HumanMessage(["a", BLOCK]))["content"] == ["a", PICTURE]
    seen = describe(ToolMessage("seen", tool_call_id="c1"))
    assert (seen["content"], seen["tool_call_id"]) == ("seen", "c1")
