"""How long a stored text may be: `pomlflow.configure`'s ``max_content``, on whatever way content gets into a span.

What is longer is cut, and says how much is missing; an image, a sound or a file, which half of would be none, is left
out whole, before MLflow makes an attachment of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mlflow.entities import SpanEvent

from pomlflow.record import well_formed
from pomlflow.settings import settings

__all__ = ["LimitedSpan", "event_within_limit", "within_limit"]

_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,]")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
_MEDIA = 256  # characters; a shorter run of letters is a word, or an id

T = TypeVar("T")


def within_limit(value: T, plain: Callable[[T], Any] | None = None) -> Any:
    """Cut what is too long in content that is to be stored.

    Args:
        value: The content.
        plain: What makes plain data of it, where it is none; asked only where there is a limit.

    Returns:
        The same with its texts cut; the very same object where nothing is.

    Example:
        >>> import pomlflow
        >>> before = pomlflow.configure().max_content
        >>> _ = pomlflow.configure(max_content=5)
        >>> within_limit({"context": {"word": "POML", "text": "Hello Ada"}})
        {'context': {'word': 'POML', 'text': 'Hello… [4 more characters: max_content]'}}
        >>> _ = pomlflow.configure(max_content=before)
    """
    limit = settings().max_content
    if not limit:
        return value
    return _cut(value if plain is None else plain(value), limit)


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= limit else _shortened(value, limit)
    if isinstance(value, Mapping):
        items = {key: _cut(item, limit) for key, item in value.items()}
        return items if any(items[key] is not item for key, item in value.items()) else value
    if isinstance(value, list | tuple):
        cut = [_cut(item, limit) for item in value]
        return cut if any(new is not old for new, old in zip(cut, value, strict=True)) else value
    return value


def _shortened(text: str, limit: int) -> str:
    uri = _URI.match(text)
    if uri is not None or (len(text) >= _MEDIA and _BASE64.fullmatch(text)):
        kind = (uri and uri[1]) or "base64"
        return f"[{kind} of {len(text)} characters left out: max_content]"
    return f"{text[:limit]}… [{len(text) - limit} more characters: max_content]"


def event_within_limit(event: SpanEvent) -> SpanEvent:
    """Cut what an event says, such as an exception's message and traceback, and leave in it what a store can hold."""
    return replace(event, attributes=_sound(within_limit(event.attributes)))


def _sound(value: Any) -> Any:
    """Plain data with texts that a store can hold; MLflow (3.12 to 3.17) loses a trace with half an emoji in it."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {_sound(key): _sound(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(item) for item in value]
    return value


class LimitedSpan:
    """A span for whoever writes to it beside us, MLflow's own tracers: what they write is cut, and can be stored.

    Args:
        span: MLflow's.
    """

    def __init__(self, span: Any) -> None:
        self._span = span

    def set_attribute(self, key: str, value: Any) -> None:
        """As the span's own."""
        self._span.set_attribute(key, _sound(within_limit(value)))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """As the span's own."""
        self._span.set_attributes(_sound(within_limit(attributes)))

    def add_event(self, event: SpanEvent) -> None:
        """As the span's own."""
        self._span.add_event(event_within_limit(event))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span, name)
