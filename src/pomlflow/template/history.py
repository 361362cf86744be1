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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar, cast

from pomlflow.content import REQUEST, RESPONSE, SPEAKERS, joined_parts, split_data_uri
from pomlflow.exceptions import VariableError

M = TypeVar("M")
_REMEDY: Final = 'Write {"role": "user", "content": "…"} for a message'

# A mark is between private-use characters: no output syntax of POML escapes them or breaks a line at them. It begins
# with a random number, so that no text of a message or a variable can imitate one, and ends with the message's index.
_NONCE = secrets.token_hex(8)
# A mark with the one or two line ends that POML puts between messages.
_WHOLE_LINE = re.compile(rf"(?:\A|(?<=\n)|\n\n?)\ue000{_NONCE}:(\d+)\ue001(?:\n\n?|\Z)")
_TORN = re.compile(rf"\ue000{_NONCE[0]}|{_NONCE[-1]}:\d+\ue001")  # the beginning or the end of a mark


class History(ABC, Generic[M]):
    """The native messages of one render; each framework's adapter has a subclass."""

    native: ClassVar[type]

    def __init__(self) -> None:
        self._messages: list[M] = []
        self.marks: dict[str, list[str]] = {}  # those of the messages of each variable, for the engine
        self.placed: dict[int, M] = {}  # after `splice`, the native messages by their index in the output's messages

    @abstractmethod
    def convert(self, item: Any) -> list[M]:
        """Return native messages for any item of a history that the framework accepts."""

    def items(self, value: Any) -> Iterable[Any]:
        """Return the items of a history, which may be a single message."""
        return [value] if isinstance(value, (Mapping, self.native)) else value

    @abstractmethod
    def to_poml(self, message: M) -> dict[str, Any]:
        """Return a native message in POML's form: ``speaker`` and ``content``."""

    @abstractmethod
    def describe(self, message: M) -> dict[str, Any]:
        """Return a message as expressions see it, with at least ``speaker`` and ``content``."""

    def collect(
        self, variables: Mapping[str, Any], messages: Sequence[str], sources: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        """Record the native messages in a template's variables; return the variables as expressions see them.

        A variable in `messages` is the whole ``messages`` of a ``<conversation>``. The items of a variable in `sources`
        become such messages; they may also be pairs, of which POML (0.0.8) would make empty messages.
        """
        converted: dict[str, Any] = {}
        for name, value in variables.items():
            if name in messages or self._holds(value) or (name in sources and _holds_pairs(value)):
                converted[name] = self._marked(name, self._converted(name, value))
            elif isinstance(value, self.native):
                converted[name] = self.describe(cast("M", value))
            elif isinstance(value, dict) and (lists := self._lists(value, pairs=name in sources)):
                # The state of a graph as one variable: describe its messages for expressions, but do not pass them.
                described = {key: list(map(self.describe, self._converted(name, value[key]))) for key in lists}
                converted[name] = {**value, **described}
            elif name in sources:
                converted[name] = _with_speakers(name, value)
        return {**variables, **converted} if converted else variables

    def _converted(self, name: str, value: Any) -> list[M]:
        return _converted(name, value, self.items, self.convert)

    def _lists(self, state: dict[str, Any], *, pairs: bool) -> list[str]:
        return [key for key, inner in state.items() if self._holds(inner) or (pairs and _holds_pairs(inner))]

    def _holds(self, value: Any) -> bool:
        """Return whether a list begins or ends with a native message."""
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
        """Return the engine's output with each mark replaced by its message, and set `placed`.

        Return None if a mark is part of serialised XML or JSON, or a ``charLimit`` cut it.
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
                        messages.append({**message, "content": joined_parts(parts)})
                    native = self._messages[int(index)]
                    self.placed[len(messages)] = native
                    messages.append(self.to_poml(native))
                    parts = [text] if text else []
            if parts:
                messages.append({**message, "content": joined_parts(parts)})
        return {**output, "messages": messages}


def plain_histories(
    variables: Mapping[str, Any], messages: Sequence[str], sources: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Return the variables of a render without a framework, with histories in POML's form.

    `messages` and `sources` are as in `History.collect`.
    """
    converted: dict[str, Any] = {}
    for name, value in variables.items():
        if name in messages and (value is None or isinstance(value, str | Mapping | list | tuple)):
            converted[name] = _converted(name, value, _items, lambda item: [in_poml_form(item)])
        elif name in sources:
            converted[name] = _with_speakers(name, value)
    return {**variables, **converted} if converted else variables


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        raise TypeError("it is a text, and not a list of messages")
    return [value] if isinstance(value, Mapping) else value


def _with_speakers(name: str, value: Any) -> Any:
    """Convert messages of OpenAI's form in a list, or in the lists of a dict; other values are unchanged."""
    if isinstance(value, dict):
        lists = {key: _with_speakers(name, inner) for key, inner in value.items() if isinstance(inner, list | tuple)}
        return {**value, **lists}
    if not any(map(_has_role, _ends(value))):
        return value
    return _converted(name, value, _items, lambda item: [in_poml_form(item) if _has_role(item) else item])


def _has_role(item: Any) -> bool:
    return isinstance(item, Mapping) and "speaker" not in item and {"role", "content"} <= item.keys()


def in_poml_form(message: Any) -> Any:
    """Return a message of POML's form, ``speaker`` and ``content``, or raise a TypeError if it cannot be one."""
    if isinstance(message, list | tuple) and len(message) == 2:  # noqa: PLR2004
        message = dict(zip(("role", "content"), message, strict=True))
    if not isinstance(message, Mapping):
        if not hasattr(message, "speaker"):
            raise TypeError(f"a value of type {type(message).__name__} is not a message of POML")
        return message
    key = "speaker" if "speaker" in message else "role"
    if (speaker := SPEAKERS.get(str(message.get(key)))) is None:
        raise TypeError(f"the {key} {message[key]!r} is unknown" if key in message else "it has no role")
    content = message.get("content")
    if not isinstance(content, str | list | tuple):
        raise TypeError("its content is neither a text nor a list of parts")
    if key == "speaker":
        return message if message[key] == speaker else {**message, key: speaker}
    if speaker == "tool" or message.get("tool_calls"):
        raise TypeError(
            "POML's messages have no tool calls: pass the messages of a framework to its own PomlPromptTemplate"
        )
    parts = content if isinstance(content, str) else list(map(_part, content))
    return {**message, "speaker": speaker, "content": parts}


def _part(part: Any) -> Any:
    """Return a content part of OpenAI's form in POML's form."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text"):
        return part["text"]
    image = part.get("image_url") if kind == "image_url" else None
    uri = split_data_uri(str(image.get("url") if isinstance(image, Mapping) else image))
    if uri and uri[0].startswith("image/"):
        return {"type": uri[0], "base64": uri[1]}
    if isinstance(part, str) or "/" in str(kind):
        return part
    raise TypeError(f"a part of type {kind} is neither a text nor a picture in base64")


def _converted(
    name: str, value: Any, items: Callable[[Any], Iterable[Any]], convert: Callable[[Any], Iterable[M]]
) -> list[M]:
    """Return the converted messages of a history, or raise an error that names the first invalid item."""
    made: list[M] = []
    place = ""
    try:
        for index, item in enumerate(() if value is None else items(value)):
            place = f"at index {index}, "
            made += convert(item)
    except Exception as error:
        raise VariableError(f"variable {name!r} holds no messages: {place}{error}. {_REMEDY}", name) from error
    return made


def _holds_pairs(value: Any) -> bool:
    return any(isinstance(end, list | tuple) and len(end) == 2 and isinstance(end[0], str) for end in _ends(value))  # noqa: PLR2004


def _ends(value: Any) -> tuple[Any, ...]:
    """Return the first and the last item of a list. A variable may be a list of a million numbers: do not scan it."""
    return (*value[:1], *value[-1:]) if isinstance(value, list | tuple) else ()


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
