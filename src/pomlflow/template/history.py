"""A framework's own messages through a POML template, untouched.

POML's messages hold less than a framework's: ``<conversation>`` (poml 0.0.8) refuses tool messages, drops messages
without text, merges neighbours of one speaker and knows no ids. So each native message goes in as a mark, POML decides
where it comes out, and there the native message is put back.
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

# Private-use characters: no syntax of POML's escapes them or breaks a line at them. The number is random, so
# that no text of a message or a variable can pretend to be a mark.
_NONCE = secrets.token_hex(8)
# With the one or two line ends that POML puts between messages.
_WHOLE_LINE = re.compile(rf"(?:\A|(?<=\n)|\n\n?)\ue000{_NONCE}:(\d+)\ue001(?:\n\n?|\Z)")
_TORN = re.compile(rf"\ue000{_NONCE[0]}|{_NONCE[-1]}:\d+\ue001")


class History(ABC, Generic[M]):
    """The native messages of one render; each framework's adapter has a subclass.

    `native` is the framework's class of messages; `marks` has, by variable, the mark of each of its messages, for the
    engine; `placed` has, after `splice`, the native message at each place of the output.
    """

    native: ClassVar[type]

    def __init__(self) -> None:
        self._messages: list[M] = []
        self.marks: dict[str, list[str]] = {}
        self.placed: dict[int, M] = {}

    @abstractmethod
    def convert(self, value: Any) -> list[M]:
        """Make native messages of whatever the framework takes for them."""

    @abstractmethod
    def to_poml(self, message: M) -> dict[str, Any]:
        """Make POML's message of a native one: ``speaker`` and ``content``."""

    @abstractmethod
    def describe(self, message: M) -> dict[str, Any]:
        """Make what expressions see of a message; ``speaker`` and ``content`` are among it."""

    def take(self, variables: Mapping[str, Any], named: Sequence[str], passed: Sequence[str] = ()) -> Mapping[str, Any]:
        """Take the native messages out of a template's variables; return these as expressions see them.

        `named` variables are themselves the messages of a ``<conversation>``, and may hold whatever the framework takes
        for messages. `passed` ones have their items there, ``{{history.slice(-6)}}``, and may hold pairs, too, of which
        POML (0.0.8) would make empty messages. Raises a `VariableError` for a named one that holds something else.
        """
        taken: dict[str, Any] = {}
        for name, value in variables.items():
            if name in named or (name in passed and _holds_pairs(value)):
                try:
                    taken[name] = self._marked(name, [] if value is None else self.convert(value))
                except Exception as error:
                    raise VariableError(f"variable {name!r} holds no messages: {error}", name) from error
            elif isinstance(value, self.native):
                taken[name] = self.describe(cast("M", value))
            elif self._holds(value):
                taken[name] = self._marked(name, self.convert(value))
            elif isinstance(value, dict) and (lists := self._lists(value, pairs=name in passed)):
                # A graph's state as one variable. Its messages come out as POML's own, which need a speaker.
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
        """Return what replaces messages that cannot be native: text and pictures, which POML takes anywhere."""
        contents = iter([_plain(self.to_poml(message)["content"]) for message in self._messages])
        return {name: [next(contents) for _ in marks] for name, marks in self.marks.items()}

    def splice(self, output: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the engine's output with each mark's message in POML's form; `placed` then has their places.

        None where a mark is not a message of its own: it is part of serialised XML or JSON, or cut by a ``charLimit``.
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
    """The first and the last of a list: a list of a million numbers is a variable too."""
    return (*value[:1], *value[-1:]) if isinstance(value, list | tuple) else ()


def _content(parts: list[Any]) -> str | list[Any]:
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _plain(content: str | list[Any]) -> str | list[Any]:
    """A message's content as ``<conversation>`` of poml 0.0.8 takes it, in every syntax."""
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
        elif kind.startswith("image/"):  # without its alt text, which POML would show in its place
            parts.append({"type": kind, "base64": part["base64"]})
        else:
            parts.append(f"[{kind}]" if kind else part)
    return parts
