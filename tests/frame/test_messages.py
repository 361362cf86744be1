"""A frame's messages in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from pomlflow.frame.openai import chat_messages, trace_messages

PICTURE = {"type": "image/png", "base64": "iVBORw0KGgo=", "alt": "a chart"}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND = {"type": "audio/mpeg", "base64": "SUQz"}


def request(identity: str) -> dict[str, Any]:
    kind = "application/vnd.poml.toolrequest"
    return {"type": kind, "id": identity, "name": "plot", "content": {"of": "naïve"}}


def response(identity: str, content: Any) -> dict[str, Any]:
    return {"type": "application/vnd.poml.toolresponse", "id": identity, "name": "plot", "content": content}


def test_pictures_of_tools_follow_the_last_response() -> None:
    """OpenAI accepts only text in a tool's message, and all tools' messages directly after their requests."""
    messages = chat_messages(
        [
            {"speaker": "ai", "content": ["Two plots.", request("1"), request("2")]},
            {"speaker": "tool", "content": [response("1", ["Here:", PICTURE])]},
            {"speaker": "tool", "content": [response("2", "none")]},
            {"speaker": "human", "content": "And now?"},
        ]
    )
    arguments = {"name": "plot", "arguments": '{"of": "naïve"}'}
    assert messages == [
        {
            "role": "assistant",
            "content": "Two plots.",
            "tool_calls": [{"id": name, "type": "function", "function": arguments} for name in ("1", "2")],
        },
        {"role": "tool", "tool_call_id": "1", "content": "Here:\n\n[image/png: a chart]"},
        {"role": "tool", "tool_call_id": "2", "content": "none"},
        {"role": "user", "content": [{"type": "text", "text": "From plot (1):"}, SHOWN]},
        {"role": "user", "content": "And now?"},
    ]


def test_media_of_a_last_response_are_kept() -> None:
    messages = chat_messages([{"speaker": "tool", "content": [response("1", [SOUND])]}])
    assert messages[0] == {"role": "tool", "tool_call_id": "1", "content": "[audio/mpeg]"}
    assert messages[1]["content"][1] == {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}


def test_messages_without_content_are_left_out() -> None:
    messages = chat_messages([{"speaker": "human", "content": []}, {"speaker": "ai", "content": [request("1")]}])
    assert [sorted(message) for message in messages] == [["role", "tool_calls"]]


def test_a_text_or_a_list_of_parts_is_one_user_message() -> None:
    assert chat_messages("Hello") == [{"role": "user", "content": "Hello"}]
    text = {"type": "text", "text": "Look:"}
    assert chat_messages(["Look:", PICTURE]) == [{"role": "user", "content": [text, SHOWN]}]


def test_trace_messages_keep_pictures_in_responses() -> None:
    messages = trace_messages([{"speaker": "tool", "content": [response("1", [PICTURE])]}])
    assert messages == [
        {"role": "tool", "speaker": "tool", "tool_call_id": "1", "name": "plot", "content": [SHOWN]},
    ]
