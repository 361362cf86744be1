r"""A parser of POML markup that reads it as POML does: elements, attributes and text, each with its offset.

An XML parser cannot be used: markup may have several roots or none. Broken markup is read as far as possible, since
rendering it reports the errors. Offsets count the characters of the unchanged source, in which ``\r\n`` counts as two
and a byte-order mark as one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_NAME = r"[A-Za-z_:][A-Za-z0-9_:.\-\u00b7\u0300-\u036f\u203f\u2040]*"
_MARKUP = re.compile(rf"<(?:!--|!\[CDATA\[|[!?/]|(?=[A-Za-z_:]))|&(?:{_NAME};|#[0-9]+;|#x[0-9A-Fa-f])")
_TAG = re.compile(rf"""({_NAME})(?:\s*=\s*("[^"]*"|'[^']*'))?|(/?>)|(<)|\s+|.""", re.DOTALL)
# Everything that JavaScript's `.` takes as a line end becomes \n. \r\n becomes a blank and \n: offsets do not change.
_LINES = str.maketrans({"\r": "\n", "\u2028": "\n", "\u2029": "\n", "\ufeff": " "})
_OPEN, _CLOSE = re.compile(r"\{\{"), re.compile(r"\}\}(?!\})")
_OPEN_LINE, _CLOSE_LINE = re.compile(r"^[^\S\n]*\{\{", re.MULTILINE), re.compile(r"\}\}(?=[^\S\n]*$)", re.MULTILINE)
_SPACES = re.compile(r"\s+")
_LOOP = re.compile(r"^(.*\S)\s++in\s++(.+)", re.MULTILINE)  # possessive, so that a run of blanks takes linear time
# POML drops an entity from text, and does not decode it in an expression.
ENTITY = re.compile(r"&(amp|lt|gt|quot|apos);")
ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
# The elements that define a tool, without hyphens.
TOOLS = ("tool", "tooldef", "tooldefinition")
# All names and aliases of the elements of poml 0.0.8, in lower case and without hyphens.
_ELEMENTS = frozenset(
    "aimessage aimsg anyorfree audio b bold br caption captionedparagraph captiontext code context conversation cp "
    "dataobj div doc document example exampleinput exampleoutput examples exampleset folder h header hint humanmessage "
    "humanmsg image img include inline input introducer italic i item let list listitem messagecontent msgcontent meta "
    "newline obj object output outputformat outputschema p paragraph poml qa question role runtime s section span "
    "stepwiseinstructions strike strikethrough stylesheet subcontent systemmessage systemmsg table task text tool "
    "tooldef tooldefinition toolrequest toolresponse tree u underline webpage".split()
)


class SourceText(NamedTuple):
    """The text of a file, or of inline markup."""

    text: str
    file: Path | None = None

    def locate(self, offset: int) -> tuple[int, int, str]:
        """Return the line and the column of an offset, both from 1, and the line's text."""
        begin = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", begin)
        line = self.text[begin : len(self.text) if end < 0 else end].rstrip("\r")
        return self.text.count("\n", 0, begin) + 1, offset - begin + 1, line

    def offset(self, line: int, column: int) -> int:
        """Return the offset of a line and a column."""
        begin = 0
        for _ in range(line - 1):
            begin = self.text.find("\n", begin) + 1
        return begin + column - 1


class Passage(NamedTuple):
    """A text in the markup: an attribute's value, one piece of text, or the joined pieces of an element."""

    text: str
    pieces: tuple[tuple[int, int], ...] = ((0, 0),)  # the offset of each piece in the text and in the source

    def at(self, index: int) -> int:
        """Return the offset in the source of a character of the text."""
        where, start = self.pieces[bisect_right(self.pieces, index, key=lambda piece: piece[0]) - 1]
        return start + index - where


_NOTHING = Passage("")


class Element:
    """An element."""

    __slots__ = ("attributes", "children", "end", "end_tag", "faults", "name", "name_offsets", "start")

    def __init__(self, name: str, start: int = 0) -> None:
        prefix, _, local = name.partition(":")
        self.name = (local if prefix and local and ":" not in local else name).lower()
        self.attributes: list[tuple[str, Passage]] = []  # by keys in lower case
        self.children: list[Element | Passage] = []
        self.name_offsets: dict[str, int] = {}  # of the attributes
        # The offset and the kind of each fault in the start tag: "unquoted" (a value without quotes), "bare" (an
        # attribute without a value), "stray" (other characters), "open" (not closed).
        self.faults: list[tuple[int, str]] = []
        self.end_tag: tuple[int, str] | None = None  # its offset and name, which POML does not compare
        self.start = self.end = start  # of the start tag

    def find(self, key: str) -> Passage:
        """Return the value of an attribute, the first one if it is repeated; an empty passage if there is none."""
        return next((value for name, value in self.attributes if name == key), _NOTHING)

    @property
    def content_end(self) -> int:
        """The offset where its content ends."""
        return self.end if self.end_tag is None else self.end_tag[0]

    def text(self) -> Passage:
        """Return the text directly inside it, without that of its child elements."""
        texts, pieces, length = [], [], 0
        for child in self.children:
            if isinstance(child, Passage):
                texts.append(child.text)
                pieces.append((length, child.at(0)))
                length += len(child.text) + 1
        return Passage(" ".join(texts), tuple(pieces)) if pieces else _NOTHING

    def walk(self) -> Iterator[Element]:
        """Yield the element and all elements inside it, in reading order."""
        pending: list[Element] = [self]
        while pending:
            element = pending.pop()
            yield element
            pending += [child for child in reversed(element.children) if isinstance(child, Element)]


def is_poml(text: str) -> bool:
    """Return whether a text looks like POML: it has elements of POML, and no text outside of elements."""
    # POML accepts any text. A prompt with some of its text in XML tags is plain text.
    document = _parse(text.replace("\ufeff", " "))
    elements = [child for child in document.children if isinstance(child, Element)]
    return bool(elements) and not document.text().text.strip() and all(is_known(element.name) for element in elements)


def is_known(name: str) -> bool:
    """Return whether POML has an element of that name, given in lower case."""
    return name.replace("-", "") in _ELEMENTS


def parse_document(markup: str) -> Element:
    """Parse markup, and return an element around all of it."""
    return _parse(markup.replace("\r\n", " \n").translate(_LINES))


def parse_markup(markup: str) -> Element:
    """Parse as POML does: markup that is not a single element gets a ``<poml>`` around it."""
    document = parse_document(markup)
    solid = [child for child in document.children if isinstance(child, Element) or not child.text.isspace()]
    return solid[0] if len(solid) == 1 and isinstance(solid[0], Element) else document


def _parse(text: str) -> Element:
    """Parse XML's tags; an end tag ends the innermost element, whatever its name, as in POML."""
    document = Element("poml")
    open_elements = [document]
    find = _finder(text)
    at = 0
    while found := _MARKUP.search(text, at):
        children = open_elements[-1].children
        start, kind = found.start(), found[0]
        if start > at:
            children.append(Passage(text[at:start], ((0, at),)))
        at = found.end()
        if kind == "<":
            element, is_open = _tag(text, at)
            at = element.end
            children.append(element)
            if is_open:
                open_elements.append(element)
        elif kind == "</":
            end = find(">", at) or at
            last = open_elements[-1]
            last.end_tag = last.end_tag or (start, text[at:end].rstrip("> \n").lower())
            at = end
            del open_elements[max(1, len(open_elements) - 1) :]
        elif kind in {"<!--", "<!"}:
            at = (kind == "<!--" and find("-->", at)) or find(">", at) or at
        else:
            # POML drops it, but it separates pieces of text, and counts as content outside the root.
            children.append(Passage("", ((0, start),)))
            if kind == "<![CDATA[":
                at = find("]]>", at) or at
            elif kind == "<?":  # greedy: up to the last ?> of the line
                end, line = find("?>", at), find("\n", at) or len(text)
                at = max(end, text.rfind("?>", at, line) + 2) if end else at
    if at < len(text):
        open_elements[-1].children.append(Passage(text[at:], ((0, at),)))
    return document


def _finder(text: str) -> Callable[[str, int], int]:
    """Return a function that finds a delimiter and returns the offset after it, or 0."""
    missing: set[str] = set()  # searched for only once, so that parsing takes linear time

    def find(what: str, start: int) -> int:
        at = -1 if what in missing else text.find(what, start)
        if at < 0:
            missing.add(what)
            return 0
        return at + len(what)

    return find


def _tag(text: str, at: int) -> tuple[Element, bool]:
    """Read a start tag after its ``<``; return the element, and whether content follows."""
    element: Element | None = None
    for token in _TAG.finditer(text, at):
        name, value, close, opening = token.groups()
        element = element or Element(name, at - 1)
        element.end = token.end() - len(opening or "")
        if close or opening:
            if opening:
                element.faults.append((element.start, "open"))
            return element, close == ">"
        if token.start() == at or token[0].isspace():
            continue
        if value is not None:
            element.name_offsets.setdefault(name.lower(), token.start())
            element.attributes.append((name.lower(), Passage(value[1:-1], ((0, token.start(2) + 1),))))
        elif token[0] == "=" and element.faults and element.faults[-1][1] == "bare":
            element.faults[-1] = (element.faults[-1][0], "unquoted")
        elif element.faults[-1:] == [] or element.faults[-1][1] != "unquoted":
            element.faults.append((token.start(), "bare" if name else "stray"))
    element = element or Element("", at)
    element.faults.append((element.start, "open"))
    return element, False


def _between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    r"""Yield what JavaScript's ``/{{\s*(.+?)\s*}}/g`` captures, with these patterns for the braces, in linear time.

    So the closing braces and the line end after a position are searched for only if those found before are behind it.
    """
    at, braces, code_end, line_end = 0, -1, -1, -1
    while opened := opening.search(text, at):
        blanks = _SPACES.match(text, opened.end())
        start = blanks.end() if blanks else opened.end()
        if braces <= start:
            closed = closing.search(text, start + 1)
            if closed is None:
                return
            code_end = braces = closed.start()
            while text[code_end - 1].isspace():
                code_end -= 1
        if line_end < start:
            line_end = text.find("\n", start)
            line_end = len(text) if line_end < 0 else line_end
        if line_end < code_end:  # it has several lines, and stays literal text
            at = opened.start() + 1
        else:
            yield start, text[start:code_end]
            at = braces + 2


def expressions(text: str) -> Iterator[tuple[int, str]]:
    """Yield the offset of each expression in a text, and the expression without its braces."""
    return _between(text, _OPEN, _CLOSE)


def unwrapped(code: str) -> tuple[int, str]:
    """Return the offset of an expression, and the expression without the braces that POML allows around it."""
    return next(_between(code, _OPEN_LINE, _CLOSE_LINE), (0, code))


def split_loop(loop: str) -> tuple[str, int, str] | None:
    """Split ``item in list``; return the item, the offset of the list, and the list, or None if it is malformed."""
    found = _LOOP.search(loop)
    return None if found is None else (found[1], found.start(2), found[2])
