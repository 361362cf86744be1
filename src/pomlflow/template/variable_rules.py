"""Lint rules about ``<let>``, and about the names that it and loops bind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from pomlflow.template.faults import Fault
from pomlflow.template.foreign import is_prose, quoted
from pomlflow.template.javascript import WORD, analyse, bound_by
from pomlflow.template.markup import Element, split_loop
from pomlflow.template.page import Page, Rule

_PATH = re.compile(r"(?:[\w.-]+/)*[\w-]+\.(?:txt|json|csv|md|poml|png|jpe?g|pdf|docx?|xlsx?|ya?ml|html?|xml)")
_DATE = re.compile(r"\d{1,4}([-/.:])\d{1,2}\1\d{1,4}")  # or a time; JavaScript calculates, or reports an error
_NUMBER = re.compile(r"\s*[-+]?\.?\d")  # POML reads the number at the start of the text
_LIST = re.compile(r"\w+(?:\s*,\s*\w+)+")


def let_value(page: Page) -> Iterator[Fault]:
    """Find values of ``<let>`` that are a text where an expression, JSON or a number is expected."""
    for node in page.nodes:
        if node.name != "let":
            continue
        value, body = node.element.find("value"), node.element.text()
        code, text = value.text.strip(), body.text.strip()
        if code:
            is_text = _PATH.fullmatch(code) or _LIST.fullmatch(code) or _DATE.fullmatch(code)
            if is_text or (is_prose(code) and analyse(code).broken):
                why = "value= is a JavaScript expression, and this is a text"
                remedy = f'put it in quotes of its own: value="{quoted(code)}"'
                yield Fault(value.at(0), len(value.text), why, remedy)
        elif "{{" in text and not node.element.find("src").text:
            yield Fault(body.at(body.text.find("{{")), 2, "the content of a <let> is not evaluated", 'write value="…"')
        elif text[:1] in {"{", "["} and not _is_json(text):
            at = body.at(len(body.text) - len(body.text.lstrip()))
            why = "the content of the <let> is not JSON, and so a text"
            yield Fault(at, 1, why, "write JSON, or value= with JavaScript")
        elif node.element.find("type").text in {"integer", "float", "number"} and not _NUMBER.match(text):
            at = body.at(0) if text else node.element.start
            yield Fault(at, max(len(text), 1), f"{text!r} is not a number", "write a number, or remove type=")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def unused_variable(page: Page) -> Iterator[Fault]:
    """Find variables that a ``<let>`` sets and nothing uses."""
    uses = [(one, set(_names(one.code))) for one in page.snapshot.inference.expressions]
    for node in page.nodes:
        name, value = node.element.find("name"), node.element.find("value")
        if node.name != "let" or not name.text.strip():
            continue
        file, own = page.source.file, range(value.at(0), value.at(len(value.text)) + 1)
        used = {use for one, names in uses if one.source.file != file or one.offset not in own for use in names}
        if not used & set(bound_by(name.text)):
            why = f"the variable {name.text} is set and never used"
            yield Fault(name.at(0), len(name.text), why, "remove the <let>")


def _names(code: str) -> list[str]:
    """Return the names that an expression uses: all its words if it is not JavaScript."""
    found = analyse(code)
    return WORD.findall(code) if found.broken else [*(use.name for use in found.uses), *found.assigned]


def shadowed_variable(page: Page) -> Iterator[Fault]:
    """Find variables that are set twice, hidden by a loop, or used before they are set."""
    lets: dict[str, Element] = {}
    loops: list[tuple[Element, str, int]] = []
    for node in page.nodes:
        element = node.element
        if node.name == "let" and (name := element.find("name")).text.strip():
            for loop in (loop for loop, item, end in loops if item == name.text.strip() and element.start < end):
                line = page.source.locate(loop.start)[0]
                why = f"the loop of line {line} hides the variable {name.text}"
                yield Fault(name.at(0), len(name.text), why, "give it another name")
            yield from _let_again(page, element, lets)
            lets.update(dict.fromkeys(bound_by(name.text), element))
        parts = split_loop(element.find("for").text)
        for item in bound_by(parts[0]) if parts else ():
            outer = next(
                (loop for loop, other, end in loops if other == item and loop.end <= element.start < end), None
            )
            hidden = outer or lets.get(item)
            if hidden is not None:
                line = page.source.locate(hidden.start)[0]
                at = element.find("for").at(0)
                yield Fault(at, len(item), f"the loop's {item} hides that of line {line}", "give it another name")
            elif item == "loop" or item in WORD.findall(parts[2] if parts else ""):
                why = "loop is POML's own name in a loop" if item == "loop" else f"the loop's {item} hides its own list"
                yield Fault(element.find("for").at(0), len(item), why, "give it another name")
            loops.append((element, item, element.content_end))


def _let_again(page: Page, element: Element, lets: Mapping[str, Element]) -> Iterator[Fault]:
    name, value = element.find("name"), element.find("value").text
    for one in bound_by(name.text):
        before = lets.get(one)
        own = set(WORD.findall(value))
        if before is not None and one not in own:
            line = page.source.locate(before.start)[0]
            conditional = element.find("if").text or before.find("if").text
            also = ": POML (0.0.8) ignores the if= of a <let>" if conditional else ""
            why = f"the variable {one} of line {line} is set again{also}"
            yield Fault(name.at(0), len(name.text), why, 'give it another name, or write value="condition ? a : b"')
        elif before is None and one not in own:
            early = page.first_uses.get(one)
            if early is not None and early.offset < element.start:
                why = f"the variable {one} is used before, in line {early.position[0]}, and there is the caller's"
                yield Fault(name.at(0), len(name.text), why, "move the <let> up, or give it another name")


RULES: Mapping[str, Rule] = {
    "let-value": let_value,
    "unused-variable": unused_variable,
    "shadowed-variable": shadowed_variable,
}
