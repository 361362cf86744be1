"""The texts of renders outside of any run, to be known again when they reach a model.

An agent's or engine's ``system_prompt`` is a plain string: rendered once, when the agent is built, and sent with each
of its calls, in traces that know nothing of the render. What is kept of a text is its first characters and a hash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from pomlflow.record import RenderRecord

__all__ = ["known_texts_in", "remember", "text_of"]

_ANCHOR: Final = 32  # characters by which a text is looked for in a longer one
_MOST_ANCHORS: Final = 256
_MOST_TEXTS: Final = 64  # per anchor; one prompt with changing variables often has one
_MOST_PLACES: Final = 8  # in one message, where an anchor is tried

# Without a lock: two threads at once cost an entry at worst, and a forked child must not find one held.
_known: dict[str, dict[tuple[int, int], RenderRecord]] = {}  # by anchor, then length and hash; the newest last


def remember(record: RenderRecord) -> None:
    """Remember what a render made, message by message.

    Args:
        record: A render that was part of no run.

    Example:
        >>> remember(Template("<p>You are a patient teacher of mathematics.</p>").render({}))
        >>> [record.digest for record in known_texts_in("You are a patient teacher of mathematics.")]
        ['5a9ac8c4…']
    """
    if record.output is None:
        return
    texts = [text for text in _texts(record.output["messages"]) if text]
    slim = dataclasses.replace(record, variables={}, output={**record.output, "messages": []})
    for text in texts:
        anchor = text[:_ANCHOR]
        same = _known.pop(anchor, {})
        same.pop((len(text), hash(text)), None)
        same[len(text), hash(text)] = slim
        _shrink(same, _MOST_TEXTS)
        _known[anchor] = same
    _shrink(_known, _MOST_ANCHORS)


def known_texts_in(message: str) -> Iterator[RenderRecord]:
    """Find the renders whose text a message holds.

    Args:
        message: What a model is sent. A remembered text shorter than 32 characters must be all of it.

    Yields:
        The records, without variables and messages.
    """
    if not _known:
        return
    stripped = message.strip()
    for anchor, same in list(_known.items()):
        if anchor not in message:
            continue
        if len(anchor) < _ANCHOR:
            found = same.get((len(stripped), hash(stripped)))
        else:
            found = next(_at_places(message, anchor, same), None)
        if found is not None:
            yield found


def _at_places(message: str, anchor: str, same: dict[tuple[int, int], RenderRecord]) -> Iterator[RenderRecord]:
    at = message.find(anchor)
    for _ in range(_MOST_PLACES):
        if at < 0:
            return
        for (length, digest), record in list(same.items()):
            if hash(message[at : at + length]) == digest:
                yield record
        at = message.find(anchor, at + 1)


def _texts(messages: Any) -> Iterator[str]:
    if isinstance(messages, str) or not all(isinstance(m, dict) and "speaker" in m for m in messages):
        yield text_of(messages)
        return
    for message in messages:
        yield text_of(message["content"])


def text_of(content: Any) -> str:
    """The text of a message's content, which may have other parts, stripped as frameworks do."""
    parts = [content] if isinstance(content, str) else content
    return "".join(part for part in parts if isinstance(part, str)).strip()


def _shrink(memory: dict[Any, Any], most: int) -> None:
    while len(memory) > most:
        memory.pop(next(iter(memory)), None)
