"""POML's markup as POML itself parses it: elements, attributes, text, and the expressions in them.

No XML parser will do: markup may have several roots or none, and what is broken is to be read as far as it goes, since
rendering it tells what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["SPACES", "Element", "expressions", "is_poml", "parse_markup", "unwrapped"]

_NAME = r"[A-Za-z_:][A-Za-z0-9_:.\-\u00b7\u0300-\u036f\u203f\u2040]*"
_MARKUP = re.compile(rf"<(?:!--|!\[CDATA\[|[!?/]|(?=[A-Za-z_:]))|&(?:{_NAME};|#[0-9]+;|#x[0-9A-Fa-f])")
_TAG = re.compile(rf"""({_NAME})(?:\s*=\s*("[^"]*"|'[^']*'))?|(/?>)|(<)|\s+|.""", re.DOTALL)
_LINES = re.compile("\r\n?|[\u2028\u2029]")  # all that ends a line for JavaScript's `.`
_OPEN, _CLOSE = re.compile(r"\{\{"), re.compile(r"\}\}(?!\})")
_OPEN_LINE, _CLOSE_LINE = re.compile(r"^[^\S\n]*\{\{", re.MULTILINE), re.compile(r"\}\}(?=[^\S\n]*$)", re.MULTILINE)
SPACES = re.compile(r"\s+")
# All elements of poml 0.0.8 by all their names, in lower case and without hyphens.
_ELEMENTS = frozenset(
    "aimessage aimsg anyorfree audio b bold br caption captionedparagraph captiontext code context conversation cp "
    "dataobj div doc document example exampleinput exampleoutput examples exampleset folder h header hint humanmessage "
    "humanmsg image img include inline input introducer italic i item let list listitem messagecontent msgcontent meta "
    "newline obj object output outputformat outputschema p paragraph poml qa question role runtime s section span "
    "stepwiseinstructions strike strikethrough stylesheet subcontent systemmessage systemmsg table task text tool "
    "tooldef tooldefinition toolrequest toolresponse tree u underline webpage".split()
)


class Element:
    """An element: its name in lower case, attributes as (key in lower case, value), children in order."""

    __slots__ = ("attributes", "children", "name")

    def __init__(self, name: str) -> None:
        prefix, _, local = name.partition(":")
        self.name = (local if prefix and local and ":" not in local else name).lower()
        self.attributes: list[tuple[str, str]] = []
        self.children: list[Element | str] = []

    def find(self, key: str) -> tuple[int, str]:
        """The place and the value of an attribute; the first counts."""
        return next(((at, value) for at, (name, value) in enumerate(self.attributes) if name == key), (0, ""))

    def text(self) -> str:
        """The text right inside it, without that of its children."""
        return " ".join(child for child in self.children if isinstance(child, str))


def is_poml(text: str) -> bool:
    """Whether a text is POML, as far as its content tells.

    POML takes any text. So what counts is that nothing stands outside elements, and that the outermost elements are
    POML's: a prompt that only puts some of its text into XML tags is plain text.

    Example:
        >>> is_poml("<role>Clerk</role> <task>{{task}}</task>"), is_poml("Answer briefly: {{question}}")
        (True, False)
        >>> is_poml("Use what is in the document: <document>{{text}}</document>")
        False
    """
    document = _parse(text.replace("\ufeff", " "))
    elements = [child for child in document.children if isinstance(child, Element)]
    around = document.text()
    return bool(elements) and not around.strip() and all(_known(element.name) for element in elements)


def _known(name: str) -> bool:
    return name.replace("-", "") in _ELEMENTS


def parse_markup(markup: str) -> Element:
    """Parse as POML does: with an element ``<poml>`` around what is not one element alone."""
    document = _parse(_LINES.sub("\n", markup).replace("\ufeff", " "))
    solid = [child for child in document.children if isinstance(child, Element) or not child.isspace()]
    return solid[0] if len(solid) == 1 and isinstance(solid[0], Element) else document


def _parse(text: str) -> Element:
    """Parse what XML's tags there are; an end tag ends the innermost element, whatever its name, as in POML."""
    document = Element("poml")
    open_elements = [document]
    find = _finder(text)
    at = 0
    while found := _MARKUP.search(text, at):
        children = open_elements[-1].children
        start, kind = found.start(), found[0]
        if start > at:
            children.append(text[at:start])
        at = found.end()
        if kind == "<":
            element, at, is_open = _tag(text, at)
            children.append(element)
            if is_open:
                open_elements.append(element)
        elif kind == "</":
            at = find(">", at) or at
            del open_elements[max(1, len(open_elements) - 1) :]
        elif kind in {"<!--", "<!"}:
            at = (kind == "<!--" and find("-->", at)) or find(">", at) or at
        else:
            children.append("")  # nothing to read, but it ends a piece of text, and outside the root it is content
            if kind == "<![CDATA[":
                at = find("]]>", at) or at
            elif kind == "<?":  # greedy: up to the last end in the line
                end, line = find("?>", at), find("\n", at) or len(text)
                at = max(end, text.rfind("?>", at, line) + 2) if end else at
    if at < len(text):
        open_elements[-1].children.append(text[at:])
    return document


def _finder(text: str) -> Callable[[str, int], int]:
    """Find where an end ends, else give 0; looks only once for what is not there, so that garbage stays linear."""
    missing: set[str] = set()

    def find(what: str, start: int) -> int:
        at = -1 if what in missing else text.find(what, start)
        if at < 0:
            missing.add(what)
            return 0
        return at + len(what)

    return find


def _tag(text: str, at: int) -> tuple[Element, int, bool]:
    """Read a start tag behind its ``<``; give the element, where it ends, and whether content follows."""
    element: Element | None = None
    end = len(text)
    for token in _TAG.finditer(text, at):
        name, value, close, opening = token.groups()
        end = token.end()
        if element is None:
            element = Element(name)
        elif name is not None and value is not None:
            element.attributes.append((name.lower(), value[1:-1]))
        elif close or opening:
            return element, end - len(opening or ""), close == ">"
    return element or Element(""), end, False


def _between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[str]:
    r"""Give what JavaScript's ``/{{\s*(.+?)\s*}}/g`` captures, in linear time, for these forms of its braces."""
    at, close, tail, line = 0, -1, -1, -1
    while opened := opening.search(text, at):
        spaces = SPACES.match(text, opened.end())
        body = spaces.end() if spaces else opened.end()
        if close <= body:
            closed = closing.search(text, body + 1)
            if closed is None:
                return
            tail = close = closed.start()
            while text[tail - 1].isspace():
                tail -= 1
        if line < body:
            line = text.find("\n", body)
            line = len(text) if line < 0 else line
        if line < tail:
            at = opened.start() + 1
        else:
            yield text[body:tail]
            at = close + 2


def expressions(text: str) -> Iterator[str]:
    """The expressions in a text, without their braces."""
    return _between(text, _OPEN, _CLOSE)


def unwrapped(code: str) -> str:
    """An expression without the braces that POML allows around it."""
    return next(_between(code, _OPEN_LINE, _CLOSE_LINE), code)
