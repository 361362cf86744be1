"""Write POML markup that renders to given messages: texts, variables, pictures and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

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


class Markup(str):
    """A part of a message that is markup; any other string is a text, which renders unchanged."""

    __slots__ = ()


class Item(NamedTuple):
    """A message or a history, as a line of markup."""

    speaker: str | None  # None for a history, which may be empty
    markup: str


def write(items: Iterable[Item]) -> str:
    """Return the markup of a prompt; raise a `ConversionError` for two messages of one speaker, which POML joins.

    Example:
        >>> print(write([message("human", ["a < b, ", variable("name")]), conversation("history")]))
        <poml>
          <human-msg whiteSpace="pre">a #lt; b, {{name}}</human-msg>
          <conversation messages="{{history}}"/>
        </poml>
        <BLANKLINE>
    """
    speaker = None
    lines = ["<poml>"]
    for item in items:
        if item.speaker == speaker and speaker in _TAGS:
            raise ConversionError(f"two {speaker} messages in a row are one message in POML: join them", "messages")
        speaker = item.speaker or speaker
        lines.append(f"  {item.markup}")
    return "\n".join([*lines, "</poml>", ""])


def message(speaker: str, parts: Iterable[str]) -> Item:
    """Return a message of ``system``, ``human`` or ``ai``; raise a `ConversionError` if it is empty."""
    written = ""
    for is_markup, some in groupby(parts, lambda part: isinstance(part, Markup)):
        text = "".join(some)
        written += text if is_markup else _text(text)
    if not written:
        raise ConversionError(f"an empty {speaker} message disappears in POML", "messages")
    return Item(speaker, f'<{_TAGS[speaker]} whiteSpace="pre">{written}</{_TAGS[speaker]}>')


def conversation(name: str, last: int | None = None) -> Item:
    """Return a ``<conversation>`` with the messages of the variable `name`: all of them, or the `last` ones."""
    code = _name(name)
    if last is not None:
        code = f" (typeof {code} === 'undefined' ? [] : {code}).slice(-{last}) "
    return Item(None, f'<conversation messages="{{{{{code}}}}}"/>')


def tool_response(call_id: str, name: str, text: str) -> Item:
    """Return the result of a tool call."""
    names = f'id="{_attribute(call_id)}" name="{_attribute(name)}"'
    return Item("tool", f'<tool-response {names}><p whiteSpace="pre">{_text(text)}</p></tool-response>')


def tool_request(call_id: str, name: str, arguments: dict[str, Any]) -> Markup:
    """Return a tool call."""
    names = f'id="{_attribute(call_id)}" name="{_attribute(name)}"'
    return Markup(f'<tool-request {names} parameters="{{{{ {_value(arguments)} }}}}"/>')


def variable(name: str, default: Any = None) -> Markup:
    """Return a variable whose value is rendered as text; `default` is used if it is not given."""
    code = _name(name)
    if default is None:
        return Markup(f"{{{{{code}}}}}")
    if not isinstance(default, str):
        raise no_form(name, f"has a partial value of type {type(default).__name__}: give it to the new prompt")
    return Markup(f"{{{{ typeof {code} === 'undefined' ? {_string(default)} : {code} }}}}")


def with_variables(pieces: Sequence[str], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a text that was split at its variables: every second piece is a variable's name."""
    for number, piece in enumerate(pieces):
        if number % 2:
            yield variable(piece, defaults.get(piece))
        elif piece:
            yield piece


def picture(mime_type: str, data: str) -> Markup:
    """Return a picture; `data` is base64, or the markup of a variable that holds it."""
    return Markup(f'<img base64="{data}" type="{_attribute(mime_type)}" syntax="multimedia"/>')


def no_form(part: str, why: str) -> ConversionError:
    """Return the error for a part of a prompt that cannot be converted."""
    return ConversionError(f"{part} {why}", part)


def _name(name: str) -> str:
    if not is_identifier(name):
        raise ConversionError(f"the variable {name!r} is not a name in JavaScript: rename it", name)
    return name


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
