r"""A parser of POML markup that reads it as POML does: elements, attributes and text, each with its offset.

An XML parser cannot be used: markup may have several roots or none. Broken markup is read as far as possible, since
rendering it reports the errors. Offsets count the characters of the unchanged source, in which ``\r\n`` counts as two
and a byte-order mark as one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_NAME = r"[A-Za-z_:][A-Za-z0-9_:.\-\u00b7\u0300-\u036f\u203f\u2040]*"
_MARKUP = re.compile(rf"<(?:!--|!\[CDATA\[|[!?/]|(?=[A-Za-z_:]))|&(?:{_NAME};|#[0-9]+;|#x[0-9A-Fa-f])|(?P<stray>[<&])")
# An attribute, with the value in quotes or without; the end of the tag; the start of another one; other characters.
_TAG = re.compile(
    rf"""({_NAME})(?:\s*=\s*(?:("[^"]*"|'[^']*')|(\{{\{{[^{{}}<>"']*\}}\}}|(?:[^\s"'<>/]|/(?!>))*)))?"""
    r"|(/?>)|(<)|\s+|.",
    re.DOTALL,
)
# Everything that JavaScript's `.` takes as a line end becomes \n. \r\n becomes a blank and \n: offsets do not change.
_LINES = str.maketrans({"\r": "\n", "\u2028": "\n", "\u2029": "\n", "\ufeff": " "})
_START = re.compile(r"\s*(<)")  # the first < of a markup, if only blanks precede it
_OPEN, _CLOSE = re.compile(r"\{\{"), re.compile(r"\}\}(?!\})")
_OPEN_LINE, _CLOSE_LINE = re.compile(r"^[^\S\n]*\{\{", re.MULTILINE), re.compile(r"\}\}(?=[^\S\n]*$)", re.MULTILINE)
_SPACES = re.compile(r"\s+")
_LOOP = re.compile(r"^(.*\S)\s++in\s++(.+)", re.MULTILINE)  # possessive, so that a run of blanks takes linear time
# POML drops an entity from text, and does not decode it in an expression.
ENTITY = re.compile(r"&(amp|lt|gt|quot|apos);")
ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
# The elements that define a tool, without hyphens; those with a schema; those whose content is in no message.
TOOLS = ("tool", "tooldef", "tooldefinition")
SCHEMAS = frozenset({"outputschema", *TOOLS})
NOT_TEXT = SCHEMAS | {"stylesheet", "context", "let", "meta", "runtime"}
_ESCAPES = "in text, write #amp; for & and #lt; for <"
EXPRESSION = (
    'an expression in text cannot hold & or <: name its value first, <let name="both" value="a && b"/>, or write it '
    "in an if=; write a < b as b > a"
)
_ONE_ROOT = "remove it, or put everything into one <poml>…</poml>"
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


class Fault(NamedTuple):
    """A fault in markup, at an offset, of `width` characters."""

    offset: int
    width: int
    message: str
    remedy: str
    since: int = -1  # the first offset at which POML may report it, if that is before the fault; else -1


class Element:
    """An element of a markup, with offsets."""

    __slots__ = ("attributes", "children", "end", "end_tag", "inside", "kind", "name", "names", "start")

    def __init__(self, name: str, start: int = 0, inside: frozenset[str] = frozenset()) -> None:
        prefix, _, local = name.partition(":")
        self.name = (local if prefix and local and ":" not in local else name).lower()
        self.kind = self.name.replace("-", "")  # what POML reads
        self.inside = inside  # the kinds of the elements around it
        self.attributes: list[tuple[str, Passage]] = []  # by keys in lower case
        self.children: list[Element | Passage] = []
        self.names: dict[str, Passage] = {}  # of the attributes, as they are written
        self.end_tag: int | None = None  # its offset
        self.start = self.end = start  # of the start tag

    def find(self, key: str) -> Passage:
        """Return the value of an attribute, the first one if it is repeated; an empty passage if there is none."""
        return next((value for name, value in self.attributes if name == key), _NOTHING)

    def within(self, kinds: Collection[str]) -> bool:
        """Return whether it, or an element around it, is of one of these kinds."""
        return self.kind in kinds or not self.inside.isdisjoint(kinds)

    @property
    def content_end(self) -> int:
        """The offset where its content ends."""
        return self.end if self.end_tag is None else self.end_tag

    def text(self) -> Passage:
        """Return the text directly inside it, without that of its child elements."""
        texts, pieces, length = [], [], 0
        for child in self.children:
            if isinstance(child, Passage):
                texts.append(child.text)
                pieces.append((length, child.at(0)))
                length += len(child.text) + 1
        return Passage(" ".join(texts), tuple(pieces)) if pieces else _NOTHING


class Document:
    """Parsed markup."""

    def __init__(self, source: SourceText) -> None:
        self.source = source
        self.root = Element("poml")  # around all of it
        self.elements = [self.root]  # in reading order
        self.comments: list[Passage] = []
        self.fault: Fault | None = None  # the first one in a tag or a text
        # The first missing or superfluous tag, found by comparing names, which POML does not do.
        self.nesting: Fault | None = None

    def content(self) -> Element:
        """Return the root as POML sees it: markup that is not a single element gets a ``<poml>`` around it."""
        solid = [one for one in self.root.children if isinstance(one, Element) or not one.text.isspace()]
        return solid[0] if len(solid) == 1 and isinstance(solid[0], Element) else self.root

    def texts(self) -> Iterator[tuple[Passage, Element]]:
        """Yield every piece of text of a message, with its element."""
        for element in self.elements:
            if not element.within(NOT_TEXT):
                yield from ((one, element) for one in element.children if isinstance(one, Passage) and one.text)

    def values(self) -> Iterator[tuple[Passage, Element]]:
        """Yield the value of every attribute in which POML replaces ``{{…}}``, with its element."""
        for element in self.elements:
            if element.kind not in {"let", "include", "meta"}:
                yield from ((value, element) for key, value in element.attributes if key not in {"for", "if"})

    def cause(self, reported: int) -> Fault | None:
        """Return the cause of a syntax error that POML reports at an offset, which is often long after the cause."""
        fault = self.fault or self.nesting
        return None if fault is None or reported < (fault.offset if fault.since < 0 else fault.since) else fault


def is_poml(text: str) -> bool:
    """Return whether a text looks like POML: it has elements of POML, and no text outside of elements."""
    # A guess, since POML accepts any text: a plain prompt that has some of its text in XML tags is not POML.
    root = parse(text).root
    elements = [child for child in root.children if isinstance(child, Element)]
    return bool(elements) and not root.text().text.strip() and all(is_known(element) for element in elements)


def is_known(element: Element) -> bool:
    """Return whether POML has such an element."""
    return element.kind in _ELEMENTS


def parse(markup: str, file: Path | None = None) -> Document:
    """Parse XML's tags; an end tag ends the innermost element, whatever its name, as in POML."""
    document = Document(SourceText(markup, file))
    text = markup.replace("\r\n", " \n").translate(_LINES)
    open_elements, named = [document.root], list[Element]()
    find, at, start_at = _finder(text), 0, 0
    while found := _MARKUP.search(text, start_at):
        start, kind, start_at = found.start(), found[0], found.end()
        if found["stray"]:
            document.fault = document.fault or _stray(text, start)
            continue
        inner = open_elements[-1]
        if start > at:
            inner.children.append(Passage(text[at:start], ((0, at),)))
        if kind == "<":
            element, start_at, is_open = _tag(text, start_at, inner, document)
            if is_open:
                open_elements.append(element)
                named.append(element)
        elif kind == "</":
            start_at = find(">", start_at) or start_at
            inner.end_tag = start if inner.end_tag is None else inner.end_tag
            del open_elements[max(1, len(open_elements) - 1) :]
            name = text[start + 2 : start_at].rstrip("> \n").lower().rpartition(":")[2]
            document.nesting = document.nesting or _ended(text, named, name, start)
        else:
            start_at = _skip(text, found, inner, document, find)
        at = start_at
    if at < len(text):
        open_elements[-1].children.append(Passage(text[at:], ((0, at),)))
    if named:
        document.nesting = document.nesting or _unended(text, named[-1])
    return document


def _skip(text: str, found: re.Match[str], inner: Element, document: Document, find: Callable[[str, int], int]) -> int:
    """Skip a comment, a declaration, an entity, a CDATA section or an instruction; return the offset after it."""
    start, kind, at = found.start(), found[0], found.end()
    end = {"<!--": "-->", "<![CDATA[": "]]>"}.get(kind)
    after = find(end, at) if end else 0
    if end and not after:
        what = "comment" if kind == "<!--" else "CDATA section"
        fault = Fault(start, len(kind), f"the {what} has no end", f"end it with {end}", 0)
        document.fault = document.fault or fault
    if kind in {"<!", "<?"} and (first := _START.match(text)) and first.start(1) == start:
        width = (find(">", at) or at) - start
        document.nesting = document.nesting or Fault(
            start, width, "POML does not accept an XML declaration", "remove it"
        )
    if kind in {"<!--", "<!"}:
        if after:
            document.comments.append(Passage(text[at : after - 3], ((0, at),)))
        return after or find(">", at) or at
    # POML drops it, but it separates pieces of text, and counts as content outside the root.
    inner.children.append(Passage("", ((0, start),)))
    if kind == "<?":  # greedy: up to the last ?> of the line
        after, line = find("?>", at), find("\n", at) or len(text)
        return max(after, text.rfind("?>", at, line) + 2) if after else at
    return after or at


def _stray(text: str, offset: int) -> Fault:
    remedy = EXPRESSION if text.rfind("{{", 0, offset) > text.rfind("}}", 0, offset) else _ESCAPES
    what = "an element" if text[offset] == "<" else "an entity"
    return Fault(offset, 1, f"{text[offset]} in text is read as the start of {what}", remedy)


def _ended(text: str, named: list[Element], name: str, offset: int) -> Fault | None:
    """Remove the last open element if the end tag has its name, else return the fault."""
    if named and named[-1].name == name:
        named.pop()
        return None
    if any(element.name == name for element in named):
        return _unended(text, named[-1])
    return Fault(offset, len(name) + 3, f"</{name}> has no start tag", _ONE_ROOT)


def _unended(text: str, element: Element) -> Fault:
    name = element.name
    if not is_known(element):
        return _stray(text, element.start)
    remedy = f"write </{name}>, or <{name}/> if it is empty"
    return Fault(element.start, len(name) + 1, f"<{name}> has no end tag", remedy)


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


def _tag(text: str, at: int, inner: Element, document: Document) -> tuple[Element, int, bool]:
    """Read a start tag after its ``<``; return the element, the offset after it, and whether content follows."""
    inside = inner.inside if inner.kind in inner.inside else inner.inside | {inner.kind}
    tokens = _TAG.finditer(text, at)
    token = next(tokens)
    element, close = Element(token[1], at - 1, inside), None
    in_values: list[Fault] = []
    in_tag: Fault | None = None
    for token in tokens:
        name, value, _, close, opening = token.groups()
        if close or opening:
            break
        if value is not None:
            key, passage = name.lower(), Passage(value[1:-1], ((0, token.start(2) + 1),))
            element.names.setdefault(key, Passage(name, ((0, token.start()),)))
            element.attributes.append((key, passage))
            if "<" in value:
                in_values.append(_fault_in_value(element, key, passage))
        elif not token[0].isspace():
            in_tag = in_tag or _fault_in_tag(text, element, token)
    element.end = token.end() - (0 if close else len(token[5] or ""))
    inner.children.append(element)
    document.elements.append(element)
    if document.fault is None and (in_values or in_tag or not close):
        if not close or (in_tag and not is_known(element)):
            in_tag = _unclosed(text, element)
        document.fault = min([*in_values, *([in_tag] if in_tag else [])])
    return element, element.end, close == ">"


def _unclosed(text: str, element: Element) -> Fault:
    if not element.attributes or not is_known(element):
        return _stray(text, element.start)
    why, remedy = f"the tag <{element.name} is not closed", "close it with > before the next <"
    return Fault(element.start, len(element.name) + 1, why, remedy)


def _fault_in_tag(text: str, element: Element, token: re.Match[str]) -> Fault:
    name, offset = token[1], token.start()
    if token[3] is not None and text[token.end() : token.end() + 1] in {'"', "'"}:
        return Fault(offset, len(name), f"the value of the attribute {name} has no closing quote", "close the quote")
    if token[3] is not None:
        remedy = f'put the value of an attribute in quotes: {name}="{token[3]}"'
        return Fault(offset, len(name), f"the value of the attribute {name} has no quotes", remedy)
    key, value = element.attributes[-1] if name and element.attributes else ("", _NOTHING)
    if value.text.count("{{") > value.text.count("}}"):
        why = f"the value of the attribute {key} ends inside its {{{{…}}}}, at a quote"
        return Fault(offset - 1, 1, why, "inside an attribute's value, use the other quotes: \"{{x['a']}}\"")
    if name:
        return Fault(offset, len(name), f"the attribute {name} has no value", f'write {name}="true"')
    return Fault(offset, 1, f"{token[0]!r} is unexpected in a tag", 'write attributes as name="value"')


def _fault_in_value(element: Element, key: str, value: Passage) -> Fault:
    at = value.text.find("<")
    is_code = key in {"if", "for"} or "{{" in value.text[:at] or element.kind == "let"
    remedy = "in an expression, write a < b as b > a" if is_code else "in an attribute, write #lt; for <"
    return Fault(value.at(at), 1, f"the value of the attribute {key} holds <", remedy, element.start)


def _between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    r"""Yield what JavaScript's ``/{{\s*(.+?)\s*}}/g`` captures, with these patterns for the braces, in linear time.

    For that, the closing braces and the line end are searched for only when the position has passed the last ones.
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
