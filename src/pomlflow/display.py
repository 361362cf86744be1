"""Show prompts, renders and replays: as text, as HTML of bounded size for notebooks, and as short reprs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final, TypeVar

from pomlflow.content import REQUEST, RESPONSE, as_chat, is_chat

T = TypeVar("T")

_MAX_CONTENT: Final = 190_000  # the maximum size of the content; the rest of a display has at most 10,000
_MAX_PICTURE: Final = 150_000  # the maximum size of a picture
_MAX_TEXT: Final = 10_000  # the maximum number of characters of one text, each of which takes up to six bytes
_MAX_REPR: Final = 300
_PICTURE: Final = re.compile(r"image/[\w.+-]+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}\s*")
# Colours are inherited, or readable on light and dark backgrounds: each notebook host names its themes differently.
_STYLE: Final = """<style>
.pomlflow { font-size: 13px; line-height: 1.45; max-width: 62em; text-align: left }
.pomlflow pre { background: none; border: 0; color: inherit; font-family: monospace; font-size: 12px; margin: 0; \
max-height: 24em; overflow: auto; overflow-wrap: anywhere; padding: 0; scrollbar-color: #888 transparent; \
white-space: pre-wrap }
.pomlflow small { opacity: .7 }
.pomlflow img { display: block; margin: 6px 0; max-height: 180px; max-width: 280px }
.pomlflow summary { cursor: pointer }
.pomlflow-part { background: rgba(127, 127, 127, .1); border-left: 3px solid #888; border-radius: 4px; margin: 6px 0; \
padding: 4px 10px }
.pomlflow-human { border-color: #3b82f6; margin-left: 4em }
.pomlflow-ai, .pomlflow-tool { border-color: #16a34a; margin-right: 4em }
.pomlflow-tool { border-color: #d97706 }
</style>
"""


def short(text: str) -> str:
    """Return a repr, shortened if it is long."""
    if len(text) <= _MAX_REPR:
        return text
    return f"{text[:_MAX_REPR]}… [{len(text) - _MAX_REPR:,} more characters]"


def transcript(rendered: Any) -> str:
    """Return a render as a readable text: messages, tools, output schema and settings.

    It is meant for snapshot tests. A picture or sound is shown by its type, digest and size, so that changes show.

    Args:
        rendered: The result of `pomlflow.render`, of a LangChain prompt's ``invoke({…})``, or of a LlamaIndex prompt's
            ``render({…})``.

    Returns:
        The text.

    Raises:
        TypeError: `rendered` is none of these.

    Example:
        >>> import pomlflow
        >>> print(pomlflow.transcript(pomlflow.render("<poml><p>Hello</p><runtime temperature='0'/></poml>")))
        --- human
        Hello
        --- runtime
        {
          "temperature": 0
        }
    """
    frame = getattr(rendered, "frame", rendered)
    if not hasattr(frame, "output_schema"):
        raise TypeError(f"a {type(rendered).__name__} is not a render: pass the result of render() or invoke()")
    output = frame.model_dump(mode="json")
    output["schema"] = output.pop("output_schema")
    texts = (
        (title, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2))
        for title, content in sections(output)
    )
    return "\n".join(f"--- {title}\n{text}" for title, text in texts)


def sections(output: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a title (empty with ``chat=False``), and a text or JSON data, for each part of a render's output."""
    messages = output["messages"]
    if not is_chat(messages):
        yield "", "\n".join(_part_texts(messages))
    else:
        for message in messages:
            yield message["speaker"], "\n".join(_part_texts(message["content"]))
    for key in ("tools", "schema", "runtime"):
        if output.get(key) is not None:
            yield key, output[key]


def _part_texts(content: str | list[Any]) -> Iterator[str]:
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            yield part
        elif part["type"] == REQUEST:
            yield f"[{_call_text(part)}]"
        elif part["type"] == RESPONSE:
            yield f"[{part['name']} returns] " + "\n".join(_part_texts(part["content"]))
        else:
            data = part.get("base64", "")
            digest = hashlib.sha256(data.encode()).hexdigest()[:8]
            alt = f", {part['alt']}" if part.get("alt") else ""
            yield f"[{part['type']} {digest}, {_size(data)}{alt}]"


def _call_text(part: Mapping[str, Any]) -> str:
    return f"calls {part['name']} {json.dumps(part['content'], ensure_ascii=False)}"


def _size(data: str) -> str:
    """Return the size of base64 data."""
    return f"{len(data) * 3 // 4:,} bytes"


def result_html(output: Mapping[str, Any], title: str | None = None) -> str:
    """Return HTML of the messages, tools, schema and settings in a render's output, ``poml.poml(format="dict")``."""
    folded = ""
    if tools := output.get("tools"):
        names = ", ".join(str(tool.get("name")) for tool in tools[:20])
        folded += _folded(f"{len(tools):,} tool{'s' if len(tools) > 1 else ''}: {names}", tools)
    for key, label in (("schema", "output schema"), ("runtime", "settings")):
        if output.get(key) is not None:
            folded += _folded(label, output[key])
    room = _MAX_CONTENT - len(folded.encode())
    return _page(title or "POML", _fitting(as_chat(output["messages"]), _message, "messages", room) + folded)


def template_html(title: str, facts: Mapping[str, Sequence[str]], source: str) -> str:
    """Return HTML of a template's variables, other facts by label, and markup."""
    lines = [_line(label, ", ".join(values)) for label, values in facts.items() if values]
    return _page(title, "".join(lines) + _box("markup", _text(source)))


def replay_html(title: str, renders: Iterable[str]) -> str:
    """Return HTML of replayed renders, each a heading and lines."""

    def box(render: str) -> str:
        heading, _, lines = render.partition("\n")
        return _box(heading, _text(lines))

    return _page(title, _fitting(list(renders), box, "renders"))


def _page(title: str, content: str) -> str:
    return f'{_STYLE}<div class="pomlflow"><b>{_escaped(short(title))}</b>{content}</div>'


def _fitting(items: Sequence[T], html: Callable[[T], str], what: str, room: int = _MAX_CONTENT) -> str:
    """Return the HTML of the first items that take up at most `room` bytes, with a note of how many are left out."""
    made: list[str] = []
    for item in items:
        made.append(html(item))
        room -= len(made[-1].encode())
        if room < 0:
            made[-1] = _note(f"{len(items) - len(made) + 1:,} more {what}")
            break
    return "".join(made)


def _message(message: Mapping[str, Any]) -> str:
    return _box(str(message["speaker"]), _content(message["content"]))


def _content(content: str | Sequence[Any]) -> str:
    return _fitting([content] if isinstance(content, str) else content, _part, "parts", _MAX_CONTENT - 2_000)


def _part(part: Any) -> str:
    """Return HTML of a part of a message or of a tool's response."""
    if isinstance(part, str):
        return _text(part)
    if part.get("type") == REQUEST:
        return _text(_call_text(part))
    if part.get("type") == RESPONSE:
        return _line("response of", str(part.get("name") or "a tool")) + _content(part.get("content", ""))
    return _media(str(part.get("type")), str(part.get("base64", "")), str(part.get("alt") or ""))


def _media(mime_type: str, data: str, alt: str) -> str:
    """Return HTML of a picture, if it is not too large, and of the type, size and alt text of any media."""
    size, picture = f"{mime_type}, {_size(data)}", ""
    if _PICTURE.fullmatch(mime_type) and _BASE64.fullmatch(data):
        if len(data) > _MAX_PICTURE:
            size += ": too large to be shown"
        else:
            picture = f'<img src="data:{mime_type};base64,{data}" alt="{_escaped(short(alt))}">'
    return picture + _text(short(f"[{size}{f', {alt}' if alt else ''}]"), "small")


def _box(title: str, content: str) -> str:
    kind = title if title in ("system", "human", "ai", "tool") else "other"
    return f'<div class="pomlflow-part pomlflow-{kind}"><small>{_escaped(short(title))}</small>{content}</div>'


def _line(label: str, text: str) -> str:
    return f"<div><small>{_escaped(short(label))}</small> {_text(text, 'span', 1_000)}</div>"


def _folded(label: str, value: Any) -> str:
    text = _text(json.dumps(value, ensure_ascii=False, indent=2, default=str))
    return f"<details><summary><small>{_escaped(short(label))}</small></summary>{text}</details>"


def _text(text: str, tag: str = "pre", most: int = _MAX_TEXT) -> str:
    """Return an element with a text, cut to `most` characters, with a note of how many are left out."""
    note = _note(f"{len(text) - most:,} more characters") if len(text) > most else ""
    return f"<{tag}>{_escaped(text[:most])}</{tag}>{note}"


def _note(text: str) -> str:
    return f"<small>… {text}</small>"


def _escaped(text: str) -> str:
    return escape(text).encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded as UTF-8
