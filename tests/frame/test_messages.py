"""A frame's messages as OpenAI's API takes them."""

from __future__ import annotations

from typing import Any

from pomlflow.frame.openai import chat_messages, shown_messages

PICTURE = {"type": "image/png", "base64": "iVBORw0KGgo=", "alt": "a chart"}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND = {"type": "audio/mpeg", "base64": "SUQz"}


def request(identity: str) -> dict[str, Any]:
    kind = "application/vnd.poml.toolrequest"
    return {"type": kind, "id": identity, "name": "plot", "content": {"of": "naïve"}}


def response(identity: str, content: Any) -> dict[str, Any]:
    return {"type": "application/vnd.poml.toolresponse", "id": identity, "name": "plot", "content": content}


def test_pictures_of_tools_follow_when_all_of_them_have_answered() -> None:
    """OpenAI takes text only in a tool's message, and all tools' messages right behind their requests."""
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


def test_pictures_of_the_last_tool_are_not_lost() -> None:
    messages = chat_messages([{"speaker": "tool", "content": [response("1", [SOUND])]}])
    assert messages[0] == {"role": "tool", "tool_call_id": "1", "content": "[audio/mpeg]"}
    assert messages[1]["content"][1] == {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}


def test_a_message_without_content_is_left_out_and_one_without_text_has_no_content() -> None:
    messages = chat_messages([{"speaker": "human", "content": []}, {"speaker": "ai", "content": [request("1")]}])
    assert [sorted(message) for message in messages] == [["role", "tool_calls"]]


def test_one_text_or_a_list_of_parts_is_a_users_message() -> None:
    assert chat_messages("Hello") == [{"role": "user", "content": "Hello"}]
    text = {"type": "text", "text": "Look:"}
    assert chat_messages(["Look:", PICTURE]) == [{"role": "user", "content": [text, SHOWN]}]


def test_what_is_shown_keeps_pictures_where_they_were() -> None:
    messages = shown_messages([{"speaker": "tool", "content": [response("1", [PICTURE])]}])
    assert messages == [
        {"role": "tool", "speaker": "tool", "tool_call_id": "1", "name": "plot", "content": [SHOWN]},
    ]
