"""A framework's own messages in a template, with a minimal framework that is defined here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from poml.api import PomlMessage

from pomlflow.exceptions import RenderError, VariableError
from pomlflow.record import RenderRecord
from pomlflow.template import Template
from pomlflow.template.history import History, in_poml_form


@dataclass
class Note:
    """A framework's message."""

    speaker: str
    text: str
    parts: tuple[Any, ...] = ()


class Notes(History[Note]):
    native = Note

    def convert(self, item: Any) -> list[Note]:
        return [item if isinstance(item, Note) else Note(*item.split(": ", 1))]

    def to_poml(self, message: Note) -> dict[str, Any]:
        return {"speaker": message.speaker, "content": list(message.parts) or message.text}

    def describe(self, message: Note) -> dict[str, Any]:
        return {"speaker": message.speaker, "content": message.text, "long": len(message.text) > 9}


ONE, TWO, THREE = Note("human", "one"), Note("ai", "a longer two"), Note("tool", "three")
PICTURE = {"type": "image/png", "base64": "AAAA", "alt": "a dot"}


def render(markup: str, chat: bool = True, **variables: Any) -> tuple[RenderRecord, Notes]:
    history = Notes()
    return Template(markup, chat=chat).render(variables, history=history), history


def shown(record: RenderRecord) -> list[str]:
    return [f"{message['speaker']}: {message['content']}" for message in record.result()["messages"]]


def test_a_history_has_the_positions_of_native_messages() -> None:
    record, history = render(
        '<poml><system-msg>s</system-msg><conversation messages="{{h}}"/><human-msg>q</human-msg></poml>',
        h=[ONE, TWO, THREE],
    )
    assert shown(record) == ["system: s", "human: one", "ai: a longer two", "tool: three", "human: q"]
    assert history.placed == {1: ONE, 2: TWO, 3: THREE}
    assert record.message_variables == ("h",)
    assert all(history.placed[place] is note for place, note in ((1, ONE), (2, TWO), (3, THREE)))


async def test_an_async_render_places_native_messages() -> None:
    history = Notes()
    record = await Template('<conversation messages="{{h}}"/>').arender({"h": [TWO]}, history=history)
    assert (shown(record), history.placed) == (["ai: a longer two"], {0: TWO})


def test_the_items_of_a_conversations_variable_are_converted() -> None:
    record, history = render('<conversation messages="{{h}}"/>', h=["human: hi", "ai: yo"])
    assert history.placed == {0: Note("human", "hi"), 1: Note("ai", "yo")}
    assert shown(record) == ["human: hi", "ai: yo"]


def test_native_messages_are_found_in_any_variable() -> None:
    """Alone, or as the first or last item of a list, also in an expression."""
    record, history = render('<conversation messages="{{ h.filter(m => m.long) }}"/>', h=["ai: first", ONE, TWO])
    assert (shown(record), history.placed) == (["ai: a longer two"], {0: TWO})
    record, _ = render("<p>{{m.content}}</p>", m=ONE)
    assert shown(record) == ["human: one"]


def test_messages_in_a_state_keep_their_speakers() -> None:
    """A nested message is rendered as POML's; the framework's object is not kept."""
    record, history = render('<conversation messages="{{state.messages}}"/>', state={"messages": [ONE, TWO], "n": 1})
    assert (shown(record), history.placed) == (["human: one", "ai: a longer two"], {})
    record, _ = render('<conversation messages="{{state.messages}}"/>', state={"messages": [ONE, THREE]})
    assert isinstance(record.error, RenderError)  # POML's own refusal of a tool's content


def test_variables_without_messages_are_returned_unchanged() -> None:
    variables = {
        "words": ["a", "b"],
        "numbers": list(range(9)),
        "none": [],
        "text": "t",
        "object": {"h": [1], "none": [], "t": "t"},
    }
    assert Notes().collect(variables, ()) is variables


def test_the_records_variables_are_what_expressions_saw() -> None:
    record, _ = render('<conversation messages="{{h}}"/>', h=[TWO])
    assert record.variables == {"h": [{"speaker": "ai", "content": "a longer two", "long": True}]}


def test_none_is_no_message() -> None:
    record, history = render('<poml><p>x</p><conversation messages="{{h}}"/></poml>', h=None)
    assert (shown(record), history.placed) == (["human: x"], {})


def test_an_error_names_the_variable_that_cannot_be_converted() -> None:
    record, _ = render('<conversation messages="{{h}}"/>', h=7)
    assert isinstance(record.error, VariableError)
    assert record.error.variable == "h"
    assert "variable 'h' holds no messages: 'int' object is not iterable" in str(record.error)
    assert record.output is None


@pytest.mark.parametrize("item", [7, "no message", None])
@pytest.mark.parametrize("markup", ['<conversation messages="{{h}}"/>', "<p>{{h.length}}</p>", "<p>{{s.h}}</p>"])
def test_an_item_that_cannot_be_converted_is_named_by_its_index(markup: str, item: Any) -> None:
    """Also in a list recognised by its first and last item, as a variable or in a state."""
    messages = [ONE, item, TWO]
    record, _ = render(markup, h=messages, s={"h": messages})
    assert isinstance(record.error, VariableError)
    assert "' holds no messages: at index 1, " in str(record.error)
    assert '"role": "user"' in str(record.error)


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "user", "content": "Hi"}, "human: Hi"),
        ({"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}, "ai: Hi"),
        ({"role": "developer", "content": "Hi"}, "system: Hi"),
        ({"speaker": "human", "role": "x", "content": "Hi"}, "human: Hi"),
        (PomlMessage(speaker="ai", content="Hi"), "ai: Hi"),
    ],
)
def test_without_a_framework_messages_have_pomls_form_or_openais(message: Any, rendered: str) -> None:
    for code, variables in (
        ("h", {"h": [message]}),
        ("h.slice(-9)", {"h": [message]}),
        ("state.h", {"state": {"h": [message]}}),
    ):
        record = Template(f'<conversation messages="{{{{{code}}}}}"/>').render(variables)
        assert shown(record) == [rendered]
        assert '"speaker":' in json.dumps(dict(record.variables))  # a replay renders the same


def test_a_pair_is_a_message_too() -> None:
    record = Template('<conversation messages="{{h}}"/>').render({"h": [("user", "Hi"), ("ai", "Hello")]})
    assert shown(record) == ["human: Hi", "ai: Hello"]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "user"}, "its content is neither"),
        ({"role": "user", "text": "Hi"}, "its content is neither"),
        ({"speaker": "human", "content": None}, "its content is neither"),
        ({"role": "robot", "content": "Hi"}, "the role 'robot' is unknown"),
        ({"content": "Hi"}, "it has no role"),
        ({"role": "tool", "content": "Hi"}, "POML's messages have no tool calls"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "POML's messages have no tool calls"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "a part of type input_audio"),
        (ONE.text, "a value of type str is not a message"),
        (7, "a value of type int is not a message"),
    ],
)
def test_what_is_no_message_is_an_error_with_index_and_remedy(message: Any, why: str) -> None:
    """POML would render a system message, or nothing."""
    given = [{"speaker": "human", "content": "Hi"}, message]
    record = Template('<conversation messages="{{h}}"/>').render({"h": given})
    assert isinstance(record.error, VariableError)
    assert str(record.error).startswith(f"variable 'h' holds no messages: at index 1, {why}")
    assert '"role": "user"' in str(record.error)


@pytest.mark.parametrize("markup", ['<p>a</p><conversation messages="{{h}}"/>', '<conversation messages="{{h}}"/>'])
def test_marks_do_not_outlive_a_render(markup: str) -> None:
    for chat in (True, False):
        record, _ = render(markup, chat, h=[ONE, THREE])
        assert "\ue000" not in str(record.result())
        assert "three" in str(record.result())


def test_only_the_line_ends_next_to_a_mark_are_removed() -> None:
    """The input is a message that POML merged from text, a picture, a mark and text."""
    history = Notes()
    history.collect({"h": [ONE]}, ())
    (mark,) = history.marks["h"]
    merged = {"speaker": "human", "content": ["\n text\n", PICTURE, f"\nbefore\n\n{mark}\n\nafter\n"]}
    assert history.splice({"messages": [merged], "runtime": {}}) == {
        "messages": [
            {"speaker": "human", "content": ["\n text\n", PICTURE, "\nbefore"]},
            {"speaker": "human", "content": "one"},
            {"speaker": "human", "content": "after\n"},
        ],
        "runtime": {},
    }
    assert history.placed == {1: ONE}


def test_conversations_that_poml_flattens_become_text() -> None:
    """In JSON, under charLimit or in a list item; no message is native then."""
    for markup in (
        '<poml syntax="json"><conversation messages="{{h}}"/></poml>',
        '<p charLimit="3"><conversation messages="{{h}}"/></p>',
        '<list><item><conversation messages="{{h}}"/></item></list>',
    ):
        record, history = render(markup, h=[TWO, ONE])
        assert history.placed == {}
        assert "\ue000" not in str(record.output)
        assert "a l" in str(record.output)


def test_media_and_tools_as_text() -> None:
    request = {"type": "application/vnd.poml.toolrequest", "id": "c", "name": "look", "content": {"at": "é"}}
    response = {"type": "application/vnd.poml.toolresponse", "id": "c", "name": "look", "content": "seen"}
    rich = {**response, "content": ["a", PICTURE]}
    sound = {"type": "audio/wav", "base64": "AAAA"}
    history = Notes()
    history.collect(
        {"h": [Note("ai", "", ("t", request)), Note("tool", "", (response, rich)), Note("human", "", (sound,))]}, ()
    )
    assert history.texts() == {
        "h": [["t", '[look {"at": "é"}]'], ["seen", "a", {"type": "image/png", "base64": "AAAA"}], ["[audio/wav]"]]
    }  # fmt: skip


def test_an_error_of_the_template_stays_its_error() -> None:
    record, _ = render('<conversation messages="{{h.nope()}}"/>', h=[ONE])
    assert isinstance(record.error, RenderError)


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", {"url": "data:image/png;base64,AAAA"}])
def test_the_uri_of_a_picture_of_openais_form_may_stand_alone(url: Any) -> None:
    message = in_poml_form({"role": "user", "content": [{"type": "image_url", "image_url": url}]})
    assert message["content"] == [{"type": "image/png", "base64": "AAAA"}]
