"""A text that was rendered before is known again in what a model is sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("llama_index.core")

from pomlflow.llama_index import texts
from pomlflow.llama_index.texts import known_texts_in, remember
from pomlflow.record import RenderRecord

LONG = "You are a patient teacher of mathematics, and you never give the answer away."


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    texts._known.clear()
    yield
    texts._known.clear()


def record(*contents: object, digest: str = "d", chat: bool = True) -> RenderRecord:
    messages = [{"speaker": "system", "content": content} for content in contents] if chat else contents[0]
    output = {"messages": messages, "schema": {"type": "object"}}
    return RenderRecord("<p/>", digest, {"secret": "x"}, 0, 1, name="n", output=output)


def found(message: str) -> list[str]:
    return [known.digest for known in known_texts_in(message)]


@pytest.mark.parametrize(
    ("message", "known"),
    [
        (LONG, True),
        (f"\n {LONG}\n", True),
        (f"{LONG}\n\nContext: …", True),
        (f"Answer in JSON.\n{LONG}\nThank you.", True),
        (f"{LONG[:60]} and so on, {LONG}", True),
        (LONG[:-1], False),
        (LONG.replace("patient", "stern"), False),
        ("", False),
    ],
)
def test_a_long_text_is_found_anywhere(message: str, known: bool) -> None:
    remember(record(LONG))
    assert found(message) == (["d"] if known else [])


def test_a_short_text_must_be_the_whole_message() -> None:
    remember(record("Be brief."))
    assert found(" Be brief.\n") == ["d"]
    assert found("Be brief. Or not.") == []


def test_every_message_of_a_render_is_known_and_of_parts_their_text() -> None:
    picture = {"type": "image/png", "base64": "iVBO"}
    remember(record(LONG, ["See ", picture, "the picture that is shown to you, please."]))
    assert found(LONG) == ["d"]
    assert found("See the picture that is shown to you, please.") == ["d"]
    assert found("") == []


def test_one_text_is_known_too() -> None:
    remember(record(LONG, digest="one", chat=False))
    assert found(LONG) == ["one"]


def test_texts_that_begin_alike_are_told_apart_and_the_last_render_counts() -> None:
    for number in range(3):
        remember(record(f"{LONG} {number}", digest=str(number)))
    assert found(f"{LONG} 1") == ["1"]
    remember(record(f"{LONG} 1", digest="anew"))
    assert found(f"{LONG} 1") == ["anew"]


def test_a_failed_render_is_none() -> None:
    remember(RenderRecord("<p/>", "d", {}, 0, 1, name="n"))
    assert texts._known == {}


def test_of_a_text_neither_content_nor_variables_are_kept() -> None:
    remember(record(LONG))
    ((anchor, same),) = texts._known.items()
    (kept,) = same.values()
    assert anchor == LONG[:32]
    assert (kept.output, kept.variables) == ({"messages": [], "schema": {"type": "object"}}, {})


def test_memory_is_bounded() -> None:
    for number in range(2_000):
        remember(record(f"{number} is where this text begins, and it goes on.", digest=str(number)))
        remember(record(f"{LONG} {number}", digest=str(number)))
    assert len(texts._known) <= 256
    assert max(len(same) for same in texts._known.values()) <= 64
    assert found(f"{LONG} 1999") == ["1999"]
    assert found(f"{LONG} 1") == []
