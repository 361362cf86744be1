"""Pass a framework's own (native) messages through a POML template unchanged.

POML's messages cannot express all of a framework's: ``<conversation>`` (poml 0.0.8) refuses tool messages, drops
messages without text, merges neighbours of one speaker and has no ids. So each native message is sent to POML as a
mark, and each mark in the output is replaced by its native message.
"""

from __future__ import annotations

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

from pomlflow.exceptions import VariableError

__all__ = ["REQUEST", "RESPONSE", "History"]

REQUEST = "application/vnd.poml.toolrequest"
RESPONSE = "application/vnd.poml.toolresponse"
M = TypeVar("M")

# A mark is between private-use characters: no output syntax of POML escapes them or breaks a line at them. The number
# is random, so that no text of a message or a variable can imitate a mark.
_NONCE = secrets.token_hex(8)
# A mark with the one or two line ends that POML puts between messages.
_WHOLE_LINE = re.compile(rf"(?:\A|(?<=\n)|\n\n?)\ue000{_NONCE}:(\d+)\ue001(?:\n\n?|\Z)")
_TORN = re.compile(rf"\ue000{_NONCE[0]}|{_NONCE[-1]}:\d+\ue001")


class History(ABC, Generic[M]):
    """The native messages of one render; each framework's adapter has a subclass.

    Attributes:
        native: The framework's class of messages.
        marks: The marks of the messages of each variable, for the engine.
        placed: After `splice`, the native messages by their index in the output's messages.
    """

    native: ClassVar[type]

    def __init__(self) -> None:
        self._messages: list[M] = []
        self.marks: dict[str, list[str]] = {}
        self.placed: dict[int, M] = {}

    @abstractmethod
    def convert(self, value: Any) -> list[M]:
        """Return native messages for any value that the framework accepts as messages."""

    @abstractmethod
    def to_poml(self, message: M) -> dict[str, Any]:
        """Return a native message in POML's form: ``speaker`` and ``content``."""

    @abstractmethod
    def describe(self, message: M) -> dict[str, Any]:
        """Return a message as expressions see it, with at least ``speaker`` and ``content``."""

    def take(
        self, variables: Mapping[str, Any], named: Sequence[str], sources: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        """Record the native messages in a template's variables; return the variables as expressions see them.

        `named` variables are by themselves the messages of a ``<conversation>``, and may be anything that the framework
        accepts as messages. The items of `sources` are such messages, ``{{history.slice(-6)}}``; these may
        also be pairs, of which POML (0.0.8) would make empty messages. A `VariableError` is raised for a named variable
        that has no messages.
        """
        taken: dict[str, Any] = {}
        for name, value in variables.items():
            if name in named or (name in sources and _holds_pairs(value)):
                try:
                    taken[name] = self._marked(name, [] if value is None else self.convert(value))
                except Exception as error:
                    raise VariableError(f"variable {name!r} holds no messages: {error}", name) from error
            elif isinstance(value, self.native):
                taken[name] = self.describe(cast("M", value))
            elif self._holds(value):
                taken[name] = self._marked(name, self.convert(value))
            elif isinstance(value, dict) and (lists := self._lists(value, pairs=name in sources)):
                # The state of a graph as one variable: describe its messages for expressions, but do not pass them.
                taken[name] = {**value, **{key: list(map(self.describe, self.convert(value[key]))) for key in lists}}
        return {**variables, **taken} if taken else variables

    def _lists(self, state: dict[str, Any], *, pairs: bool) -> list[str]:
        return [key for key, inner in state.items() if self._holds(inner) or (pairs and _holds_pairs(inner))]

    def _holds(self, value: Any) -> bool:
        return any(isinstance(end, self.native) for end in _ends(value))

    def _marked(self, name: str, messages: list[M]) -> list[dict[str, Any]]:
        if messages:
            first = len(self._messages)
            self._messages.extend(messages)
            self.marks[name] = [f"\ue000{_NONCE}:{index}\ue001" for index in range(first, len(self._messages))]
        return [self.describe(message) for message in messages]

    def texts(self) -> dict[str, list[Any]]:
        """Return texts and pictures, which POML accepts anywhere, for messages that cannot be passed natively."""
        contents = iter([_plain(self.to_poml(message)["content"]) for message in self._messages])
        return {name: [next(contents) for _ in marks] for name, marks in self.marks.items()}

    def splice(self, output: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the engine's output with each mark replaced by its message in POML's form, and set `placed`.

        Return None if a mark is not a message of its own: it is part of serialised XML or JSON, or a ``charLimit`` cut
        it.
        """
        messages: list[dict[str, Any]] = []
        for message in output["messages"]:
            content = message["content"]
            pieces = [content] if isinstance(content, str) else content
            if not any("\ue000" in piece or "\ue001" in piece for piece in pieces if isinstance(piece, str)):
                messages.append(message)
                continue
            parts: list[Any] = []
            for piece in pieces:
                if not isinstance(piece, str):
                    parts.append(piece)
                    continue
                first, *rest = _WHOLE_LINE.split(piece)  # text, index, text, index … text
                if _TORN.search("\n".join([first, *rest[1::2]])):
                    self.placed = {}
                    return None
                parts += [first] if first or not rest else []
                for index, text in zip(rest[::2], rest[1::2], strict=True):
                    if parts:
                        messages.append({**message, "content": _content(parts)})
                    native = self._messages[int(index)]
                    self.placed[len(messages)] = native
                    messages.append(self.to_poml(native))
                    parts = [text] if text else []
            if parts:
                messages.append({**message, "content": _content(parts)})
        return {**output, "messages": messages}


def _holds_pairs(value: Any) -> bool:
    return any(isinstance(end, list | tuple) and len(end) == 2 and isinstance(end[0], str) for end in _ends(value))  # noqa: PLR2004


def _ends(value: Any) -> tuple[Any, ...]:
    """Return the first and the last item of a list. A variable may be a list of a million numbers: do not scan it."""
    return (*value[:1], *value[-1:]) if isinstance(value, list | tuple) else ()


def _content(parts: list[Any]) -> str | list[Any]:
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _plain(content: str | list[Any]) -> str | list[Any]:
    """Return a message's content in the form that ``<conversation>`` of poml 0.0.8 accepts in every syntax."""
    if isinstance(content, str):
        return content
    parts: list[Any] = []
    for part in content:
        kind: str = "" if isinstance(part, str) else part["type"]
        if kind == RESPONSE:
            inner = _plain(part["content"])
            parts += [inner] if isinstance(inner, str) else inner
        elif kind == REQUEST:
            parts.append(f"[{part['name']} {json.dumps(part['content'], ensure_ascii=False, default=str)}]")
        elif kind.startswith("image/"):  # without the alt text, which POML would show instead of the picture
            parts.append({"type": kind, "base64": part["base64"]})
        else:
            parts.append(f"[{kind}]" if kind else part)
    return parts
