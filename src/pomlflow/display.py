"""Notebook displays of prompts, renders and replays, as HTML of bounded size, and short reprs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final, TypeVar

from pomlflow.content import REQUEST, RESPONSE, as_chat

T = TypeVar("T")

MAX_BYTES: Final = 200_000  # the maximum size of a display
_RESERVE: Final = 2_000  # bytes kept free for closing the last element and for notes about what was left out
_MAX_TEXT: Final = 20_000  # the maximum number of characters of one text
_MAX_REPR: Final = 300
_PICTURE: Final = re.compile(r"image/[\w.+-]+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}\s*")
# Colours are inherited, or are readable on light and dark: each notebook host has its own names for themes.
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
.pomlflow ins, .pomlflow del { color: inherit; text-decoration: none }
.pomlflow ins { background: rgba(34, 197, 94, .25) }
.pomlflow del { background: rgba(239, 68, 68, .25) }
</style>
"""


def short(text: str) -> str:
    """Return a repr, shortened if it is long."""
    if len(text) <= _MAX_REPR:
        return text
    return f"{text[:_MAX_REPR]}… [{len(text) - _MAX_REPR:,} more characters]"


def result_html(output: Mapping[str, Any], title: str | None = None) -> str:
    """Return HTML of the messages, tools, schema and settings in a render's output, ``poml.poml(format="dict")``."""
    page = _Page(title or "POML")
    for message in page.fitting(as_chat(output["messages"]), "messages"):
        page.open(str(message["speaker"]))
        page.content(message["content"])
        page.close()
    if tools := output.get("tools"):
        names = ", ".join(str(tool.get("name")) for tool in tools[:20])
        page.folded(f"{len(tools):,} tool{'s' if len(tools) > 1 else ''}: {names}", tools)
    for key, label in (("schema", "output schema"), ("runtime", "settings")):
        if output.get(key) is not None:
            page.folded(label, output[key])
    return page.html()


def template_html(title: str, facts: Mapping[str, Sequence[str]], source: str) -> str:
    """Return HTML of a template's variables, other facts by label, and markup."""
    page = _Page(title)
    for label, values in facts.items():
        if values:
            page.line(label, ", ".join(values))
    page.open("markup")
    page.text(source)
    page.close()
    return page.html()


def replay_html(title: str, renders: Iterable[str]) -> str:
    """Return HTML of replayed renders, each a heading and lines; a changed line begins with two blanks and - or +."""
    page = _Page(title)
    for render in page.fitting(list(renders), "renders"):
        heading, *lines = render.split("\n")
        page.open(heading)
        for line in page.fitting(lines, "lines"):
            page.text(line, {"  -": "del", "  +": "ins"}.get(line[:3], "span"), after="\n")
        page.close()
    return page.html()


class _Page:
    """A display in the making; it counts the bytes that are left of `MAX_BYTES`."""

    def __init__(self, title: str) -> None:
        self._made: list[str] = []
        self._room = MAX_BYTES - _RESERVE - len(_STYLE)
        self.text(short(title), "b")

    def fitting(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield items while room is left, and note how many are left out."""
        for number, item in enumerate(items):
            if self._room <= 0:
                self.note(f"{len(items) - number:,} more {what}")
                return
            yield item

    def html(self) -> str:
        return f'{_STYLE}<div class="pomlflow">{"".join(self._made)}</div>'

    def _add(self, html: str) -> None:
        self._made.append(html)
        self._room -= len(html.encode())

    def text(self, text: str, tag: str = "pre", *, after: str = "") -> None:
        """Add a text, cut to the room that is left, with a note of how much was cut."""
        limit = min(len(text), _MAX_TEXT, max(self._room, 0))
        while len((shown := _escaped(text[:limit])).encode()) > max(self._room, 0):
            limit //= 2
        more = len(text) - limit
        self._add(f"<{tag}>{shown}{after}</{tag}>")
        if more:
            self.note(f"{more:,} more characters")

    def note(self, text: str) -> None:
        self._add(f"<small>… {_escaped(text)}</small>")

    def line(self, label: str, text: str) -> None:
        self._add(f"<div><small>{_escaped(label)}</small> ")
        self.text(text, "span")
        self._add("</div>")

    def open(self, title: str) -> None:
        """Open the box of a message or another part; `close` ends it."""
        kind = title if title in ("system", "human", "ai", "tool") else "other"
        self._add(f'<div class="pomlflow-part pomlflow-{kind}"><small>{_escaped(short(title))}</small>')

    def close(self) -> None:
        self._add("</div>")

    def folded(self, label: str, value: Any) -> None:
        """Add JSON data in a collapsed section."""
        self._add(f"<details><summary><small>{_escaped(short(label))}</small></summary>")
        self.text(json.dumps(value, ensure_ascii=False, indent=2, default=str))
        self._add("</details>")

    def content(self, content: str | Sequence[Any]) -> None:
        """Add the parts of a message or of a tool's response."""
        parts = [content] if isinstance(content, str) else content
        for part in self.fitting(parts, "parts"):
            if isinstance(part, str):
                self.text(part)
            elif part.get("type") == REQUEST:
                self.text(f"calls {part.get('name')} {json.dumps(part.get('content'), ensure_ascii=False)}")
            elif part.get("type") == RESPONSE:
                self.line("response of", str(part.get("name") or "a tool"))
                self.content(part.get("content", ""))
            else:
                self._media(str(part.get("type")), str(part.get("base64", "")), str(part.get("alt") or ""))

    def _media(self, mime_type: str, data: str, alt: str) -> None:
        """Add a picture if it fits, and the type, size and alt text of any media."""
        size = f"{mime_type}, {len(data) * 3 // 4:,} bytes"
        is_picture = _PICTURE.fullmatch(mime_type) and _BASE64.fullmatch(data)
        if is_picture and len(data) < self._room:
            self._add(f'<img src="data:{mime_type};base64,{data}" alt="{_escaped(short(alt))}">')
        elif is_picture:
            size += ": too large to be shown"
        self.text(short(f"[{size}{f', {alt}' if alt else ''}]"), "small")


def _escaped(text: str) -> str:
    return escape(text).encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded as UTF-8
