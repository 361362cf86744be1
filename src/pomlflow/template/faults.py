"""Find the cause of a syntax error: POML's parser reports the place where it fails, often long after the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pomlflow.template.markup import Element, Passage, is_known, parse_document

ESCAPES = "in text, write #amp; for & and #lt; for <"
EXPRESSION = (
    'an expression in text cannot hold & or <: name its value first, <let name="both" value="a && b"/>, or write it '
    "in an if=; write a < b as b > a"
)
_ONE_ROOT = "remove it, or put everything into one <poml>…</poml>"
_BAD = re.compile(r"<(?!!--)|&(?!(?:[A-Za-z_:][\w:.\-]*|#[0-9]+|#x[0-9A-Fa-f]+);)")
_NAME = re.compile(r"[^\s>/=]+")
_VALUE = re.compile(r"\s*=\s*(\{\{.*?\}\}|[^\s>]*)")


class Fault(NamedTuple):
    """A fault in markup, at an offset, of `width` characters."""

    offset: int
    width: int
    message: str
    remedy: str
    since: int = -1  # the first offset at which POML may report it, if that is before the fault; else -1


def find_fault(text: str, reported: int) -> Fault | None:
    """Return the cause of an error that POML reports at an offset: the first fault, if it is not after the offset."""
    document = parse_document(text)
    found = (fault for one in document.walk() for fault in (*_in_tag(text, one), *_in_text(text, one)))
    inside = sorted([*_unended(text), *found])
    fault = inside[0] if inside else _in_nesting(text, document)
    if fault is None or reported < (fault.offset if fault.since < 0 else fault.since):
        return None
    return fault


def _in_tag(text: str, element: Element) -> Iterator[Fault]:
    for key, value in element.attributes:
        if (at := value.text.find("<")) >= 0:
            is_code = key in {"if", "for"} or "{{" in value.text[:at] or element.name == "let"
            remedy = "in an expression, write a < b as b > a" if is_code else "in an attribute, write #lt; for <"
            yield Fault(value.at(at), 1, f"the value of the attribute {key} holds <", remedy, element.start)
    is_tag = is_known(element.name) and all(kind != "open" for _, kind in element.faults)
    for offset, kind in element.faults[:1]:
        if kind == "unquoted" and is_tag:
            yield _unquoted(text, offset)
        elif not is_tag and element.attributes and is_known(element.name):
            why = f"the tag <{element.name} is not closed"
            yield Fault(element.start, len(element.name) + 1, why, "close it with > before the next <")
        elif not is_tag:
            yield _stray(text, element.start)
        elif kind == "bare" and (cut := _cut_attribute(element)):
            why = f"the value of the attribute {cut} ends inside its {{{{…}}}}, at a quote"
            yield Fault(offset - 1, 1, why, "inside an attribute's value, use the other quotes: \"{{x['a']}}\"")
        elif kind == "bare" and (name := _NAME.match(text, offset)):
            yield Fault(offset, len(name[0]), f"the attribute {name[0]} has no value", f'write {name[0]}="true"')
        else:
            yield Fault(offset, 1, f"{text[offset]!r} stands in a tag", 'write attributes as name="value"')


def _stray(text: str, offset: int) -> Fault:
    remedy = EXPRESSION if text.rfind("{{", 0, offset) > text.rfind("}}", 0, offset) else ESCAPES
    what = "an element" if text[offset] == "<" else "an entity"
    return Fault(offset, 1, f"{text[offset]} in text is read as the start of {what}", remedy)


def _cut_attribute(element: Element) -> str | None:
    last = element.attributes[-1:]
    return next((key for key, value in last if value.text.count("{{") > value.text.count("}}")), None)


def _unquoted(text: str, offset: int) -> Fault:
    found = _VALUE.search(text, offset)
    name = text[offset : found.start() if found else offset].strip()
    value = found[1] if found else ""
    if value[:1] in {'"', "'"}:
        return Fault(offset, len(name), f"the value of the attribute {name} has no closing quote", "close the quote")
    return Fault(
        offset, len(name), f"the value of the attribute {name} has no quotes",
        f'put the value of an attribute in quotes: {name}="{value}"',
    )  # fmt: skip


def _in_text(text: str, element: Element) -> Iterator[Fault]:
    for child in element.children:
        if isinstance(child, Passage) and (found := _BAD.search(child.text)):
            yield _stray(text, child.at(found.start()))


def _unended(text: str) -> Iterator[Fault]:
    for begin, end, name in (("<!--", "-->", "comment"), ("<![CDATA[", "]]>", "CDATA section")):
        if (offset := text.find(begin, text.rfind(end) + 1)) >= 0:
            yield Fault(offset, len(begin), f"the {name} has no end", f"end it with {end}", 0)


def _in_nesting(text: str, document: Element) -> Fault | None:
    """Return the first missing or superfluous end tag, by the tag names, which POML does not compare."""
    if found := re.match(r"\ufeff?\s*<[?!](?!--)[^>]*>", text):
        return Fault(found.start(), len(found[0]), "POML takes no XML declaration", "remove it")
    tags = [(element.start, element.name, True) for element in document.walk() if element is not document]
    tags = [one for one in tags if text[one[0]] == "<"]
    endings = [element.end_tag for element in document.walk() if element.end_tag is not None]
    tags += [(offset, name.rpartition(":")[2], False) for offset, name in endings]
    closed = {element.start for element in document.walk() if text[element.end - 2 : element.end] == "/>"}
    opened: list[tuple[int, str]] = []
    for offset, name, opens in sorted(tags):
        if opens:
            opened += [] if offset in closed else [(offset, name)]
        elif opened and opened[-1][1] == name:
            opened.pop()
        elif name in {other for _, other in opened}:
            break
        else:
            return Fault(offset, len(name) + 3, f"</{name}> ends no element", _ONE_ROOT)
    if not opened:
        return None
    offset, name = opened[-1]
    if not is_known(name):
        return _stray(text, offset)
    return Fault(offset, len(name) + 1, f"<{name}> has no end tag", f"write </{name}>, or <{name}/> if it is empty")
