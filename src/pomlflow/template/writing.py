"""Write POML markup that renders to given messages: texts, variables, pictures and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pomlflow.engine import is_identifier
from pomlflow.exceptions import ConversionError

_TAGS: Final = {"system": "system-msg", "human": "human-msg", "ai": "ai-msg"}
_ESCAPES: Final = {"<": "#lt;", ">": "#gt;", "&": "#amp;", "{": "#lbrace;", "}": "#rbrace;"}
_PAIRS: Final = re.compile(r"\{{2,}|\}{2,}|^\}|\{$|[<>&]")  # a single brace inside a text is no expression
_ESCAPE_LIKE: Final = re.compile(r"#(?=[A-Za-z]+;)")
# Control characters, line ends other than \n, byte-order marks, lone surrogates and private-use characters.
_UNWRITABLE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff\ue000-\uf8ff]+"
)
_UNSAFE: Final = re.compile(r"[^\w .,:;!?()\[\]*/+=|~@$%^-]", re.ASCII)


@dataclass(frozen=True)
class Text:
    """A text, which renders unchanged."""

    text: str


@dataclass(frozen=True)
class Variable:
    """A variable whose value is rendered as text; `default` is used if it is not given."""

    name: str
    default: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture in base64, or the variable that holds it."""

    mime_type: str
    base64: str | Variable
    alt: str | None = None


@dataclass(frozen=True)
class ToolRequest:
    """A call of a tool."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ToolResponse:
    """The result of a call."""

    id: str
    name: str
    text: str


Part = Text | Variable | Picture | ToolRequest


@dataclass(frozen=True)
class Message:
    """A message of ``system``, ``human`` or ``ai``."""

    speaker: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Conversation:
    """The place of a message history: all of its messages, or the `last` ones."""

    name: str
    last: int | None = None


def write(items: Sequence[Message | Conversation | ToolResponse]) -> str:
    """Return the markup of a prompt; raise a `ConversionError` for what has no form in POML.

    Example:
        >>> print(write([Message("human", [Text("a < b, "), Variable("name")]), Conversation("history")]))
        <poml>
          <human-msg whiteSpace="pre">a #lt; b, {{name}}</human-msg>
          <conversation messages="{{history}}"/>
        </poml>
        <BLANKLINE>
    """
    speaker = None  # of the last message; a conversation does not reset it, since it may be empty
    lines = ["<poml>"]
    for item in items:
        if isinstance(item, Conversation):
            lines.append(f'  <conversation messages="{{{{{_history(item)}}}}}"/>')
        elif isinstance(item, ToolResponse):
            names = f'id="{_attribute(item.id)}" name="{_attribute(item.name)}"'
            lines.append(f'  <tool-response {names}><p whiteSpace="pre">{_text(item.text)}</p></tool-response>')
            speaker = "tool"
        else:
            if item.speaker == speaker:
                raise ConversionError(f"two {speaker} messages in a row are one message in POML: join them", "messages")
            speaker = item.speaker
            lines.append(f'  <{_TAGS[speaker]} whiteSpace="pre">{_content(item)}</{_TAGS[speaker]}>')
    return "\n".join([*lines, "</poml>", ""])


def _content(message: Message) -> str:
    if not any(not isinstance(part, Text) or part.text for part in message.parts):
        raise ConversionError(f"an empty {message.speaker} message disappears in POML", "messages")
    merged: list[Part] = []
    for part in message.parts:
        if isinstance(part, Text) and merged and isinstance(merged[-1], Text):
            merged[-1] = Text(merged[-1].text + part.text)
        else:
            merged.append(part)
    return "".join(_WRITERS[type(part)](part) for part in merged)


def _history(item: Conversation) -> str:
    name = _name(item.name)
    return name if item.last is None else f" (typeof {name} === 'undefined' ? [] : {name}).slice(-{item.last}) "


def _name(name: str) -> str:
    if not is_identifier(name):
        raise ConversionError(f"the variable {name!r} is not a name in JavaScript: rename it", name)
    return name


def _variable(part: Variable) -> str:
    name = _name(part.name)
    if part.default is None:
        return f"{{{{{name}}}}}"
    return f"{{{{ typeof {name} === 'undefined' ? {_string(part.default)} : {name} }}}}"


def _picture(part: Picture) -> str:
    data = part.base64 if isinstance(part.base64, str) else _variable(part.base64)
    alt = f' alt="{_attribute(part.alt)}"' if part.alt else ""
    return f'<img base64="{data}" type="{_attribute(part.mime_type)}"{alt} syntax="multimedia"/>'


def _request(part: ToolRequest) -> str:
    names = f'id="{_attribute(part.id)}" name="{_attribute(part.name)}"'
    return f'<tool-request {names} parameters="{{{{ {_value(part.arguments)} }}}}"/>'


_WRITERS: Final[dict[type, Callable[[Any], str]]] = {
    Text: lambda part: _text(part.text),
    Variable: _variable,
    Picture: _picture,
    ToolRequest: _request,
}


def _text(text: str) -> str:
    escaped = _PAIRS.sub(lambda found: "".join(_ESCAPES[char] for char in found[0]), _ESCAPE_LIKE.sub("#hash;", text))
    return _UNWRITABLE.sub(lambda found: f"{{{{ {_string(found[0])} }}}}", escaped)


def _attribute(text: str) -> str:
    """Return a text for an attribute in double quotes, as an expression if it has unsafe characters."""
    return f"{{{{ {_string(text)} }}}}" if _UNSAFE.search(text) else text


def _string(text: str) -> str:
    """Return a text as a JavaScript string that is safe in text and in an attribute."""
    return f"'{_UNSAFE.sub(_code_units, text)}'"


def _code_units(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _value(value: Any) -> str:
    """Return JSON data as a JavaScript expression that is safe in an attribute: it never has ``}}``."""
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_string(str(key))}: {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
