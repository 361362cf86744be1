"""Lint rules about text, expressions and variables: other template languages, and what POML silently sends or drops."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pomlflow.template.foreign import foreign_words, quoted
from pomlflow.template.inference import MESSAGE_ELEMENTS, json_value
from pomlflow.template.javascript import WORD, analyse, bound_by
from pomlflow.template.markup import ENTITIES, NOT_TEXT, Element, Fault, Passage, expressions, split_loop
from pomlflow.template.source import Page

# A field of `str.format`, and a run of such fields, which does not follow a brace, `$` or the like.
_FIELD = re.compile(
    r"\{(?![A-Z]\})([A-Za-z_]\w*(?:\.\w+|\[(?:\w+|'\w*'|\"\w*\")\]|\([\w.]*\))*)(?:![rsa])?(?::[^{}\s\"']*)?\}"
)
_FIELDS = re.compile(rf"(?<![{{$\\\w}}/#@%^])(?:{_FIELD.pattern})+(?![}}\w/])")
_ENTITY = re.compile(r"&(?:#\d+|#x[\da-fA-F]+|[A-Za-z]\w*);")
# Elements in which single braces are probably literal: code, data, and formats for the answer.
_LITERAL = frozenset(
    "code outputformat obj object dataobj table example exampleoutput output examples exampleset".split()
)
_STATEMENT = re.compile(r"\{%-?\s*(\w+)(?:(?!%\}).)*%\}|\{#(?:(?!#\}).)+#\}", re.DOTALL)
_TWO_NAMES = re.compile(r"\s*[A-Za-z_$][\w$]*\s*,\s*[A-Za-z_$][\w$]*")
_TRIPLE = re.compile(r"\{\s*[A-Za-z_$][\w$.]*\s*\}")  # the code of {{{x}}}
# Texts that are valid JavaScript: a path is divisions, a list of words is a comma expression, a date is subtractions.
_PATH = re.compile(r"(?:[\w.-]+/)*[\w-]+\.(?:txt|json|csv|md|poml|png|jpe?g|pdf|docx?|xlsx?|ya?ml|html?|xml)")
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")
_LIST = re.compile(r"\w+(?:\s*,\s*\w+)+")
# Statements of Jinja, with the markup to write instead.
_STATEMENTS = {
    **dict.fromkeys(("if", "elif", "else", "endif"), 'an attribute of an element: <p if="condition">…</p>'),
    **dict.fromkeys(("for", "endfor"), 'an attribute of an element: <p for="item in items">…</p>'),
    **dict.fromkeys(("include", "import", "extends", "from"), '<include src="part.poml"/>'),
    "set": '<let name="x" value="…"/>',
}


def single_braces(page: Page) -> Iterator[Fault]:
    """Find ``{name}``, the syntax of f-strings and ``str.format``."""
    known = {*page.snapshot.inference.variables, *page.snapshot.inference.optional, *_let_names(page)}
    places = [(text, element.within(_LITERAL)) for text, element in page.document.texts()]
    places += [(value, value is not element.find("caption")) for value, element in page.document.values()]
    for passage, only_known in places:
        for run in _FIELDS.finditer(_without_expressions(passage.text)):
            for found in _FIELD.finditer(run[0]):
                if only_known and not known & set(WORD.findall(found[1])):
                    continue
                foreign = next(foreign_words(found[1]), None)
                remedy = f"write {{{{{found[1]}}}}}" + (f", in JavaScript: {foreign.instead}" if foreign else "")
                at = passage.at(run.start() + found.start())
                yield Fault(at, len(found[0]), f"{found[0]} is sent as it is", remedy)


def _let_names(page: Page) -> set[str]:
    return {element.find("name").text.strip() for element in page.document.elements if element.kind == "let"}


def _without_expressions(text: str) -> str:
    """Return the text with its expressions replaced by blanks, so that offsets do not change."""
    parts: list[str] = []
    last = 0
    for start, code in expressions(text):
        begin, end = text.rfind("{{", last, start + 1), text.find("}}", start + len(code)) + 2
        parts += text[last:begin], " " * (end - begin)
        last = end
    return "".join((*parts, text[last:]))


def unclosed_braces(page: Page) -> Iterator[Fault]:
    """Find ``{{`` that begins no expression, and so is sent as text."""
    for passage, element in (*page.document.texts(), *page.document.values()):
        text = _without_expressions(passage.text)
        for found in re.finditer(r"\{\{(\s*\}\})?", text):
            if element.kind == "code" or text[found.start() - 1 : found.start()] == "\\":
                continue
            end = text.find("}}", found.start())
            if found[1]:
                yield Fault(passage.at(found.start()), len(found[0]), "an empty {{}}", "name a variable, or remove it")
            elif end >= 0 and "\n" in text[found.start() : end]:
                why = "an expression of several lines is sent as it is"
                yield Fault(passage.at(found.start()), 2, why, "write {{…}} in one line")
            else:
                why = "{{ is not closed, and is sent as it is"
                yield Fault(passage.at(found.start()), 2, why, "close it with }}; no tag or entity may be in between")


def jinja_syntax(page: Page) -> Iterator[Fault]:
    """Find statements, comments and filters of Jinja, and helpers of Handlebars."""
    for passage, element in (*page.document.texts(), *page.document.values()):
        if element.kind == "code":
            continue
        for found in _STATEMENT.finditer(passage.text):
            instead = _STATEMENTS.get(found[1] or "", "POML's own elements" if found[1] else "<!-- … --> for a comment")
            shown = found[0].split("\n")[0][:40]
            why = f"{shown} is Jinja, and is sent as it is"
            yield Fault(passage.at(found.start()), len(shown), why, f"write {instead}")
    for expression in page.expressions:
        code = expression.code
        if expression.kind == "text" and _TRIPLE.fullmatch(code):
            why = f"{{{{{code}}}}} is Handlebars: here it makes an object"
            yield Fault(expression.offset, len(code), why, "write two braces")
    yield from (fault for language, fault in _foreign(page) if language != "Python")


def python_expression(page: Page) -> Iterator[Fault]:
    """Find Python in expressions, which are JavaScript."""
    yield from (fault for language, fault in _foreign(page) if language == "Python")
    for element in page.document.elements:
        loop = element.find("for")
        parts = split_loop(loop.text)
        if parts and _TWO_NAMES.fullmatch(parts[0]):
            names = parts[0].strip()
            why = f"for={names!r} is Python: POML binds the whole item to the first name"
            yield Fault(loop.at(loop.text.find(names)), len(names), why, f"write [{names}] in …")


def _foreign(page: Page) -> Iterator[tuple[str, Fault]]:
    """Yield the language and the fault of each word of another language in the expressions of a page."""
    bound = _let_names(page)
    for expression in page.expressions:
        for at, word, language, instead in foreign_words(expression.code, bound):
            why = f"{word!r} is {language}, and an expression is JavaScript"
            yield language, Fault(expression.offset + at, len(word), why, f"write {instead}")


def dropped_text(page: Page) -> Iterator[Fault]:
    """Find what POML (0.0.8) drops from text, and entities in attributes."""
    source = page.text
    yield from _beside_messages(page)
    for value, _ in page.document.values():
        for found in _ENTITY.finditer(_without_expressions(value.text)):
            why = f"POML (0.0.8) sends {found[0]} of an attribute as it is"
            yield Fault(value.at(found.start()), len(found[0]), why, _entity_remedy(found[0]))
    for element in page.document.elements:
        if element.within({"stylesheet", "context"}):
            continue
        for child in element.children:
            if not isinstance(child, Passage) or child.text:
                continue
            offset = child.at(0)
            if source.startswith("<![CDATA[", offset):
                yield Fault(offset, 9, "POML (0.0.8) drops <![CDATA[…]]> from text", "write its text without it")
            elif source[offset] == "&":
                what = source[offset : source.find(";", offset) + 1]
                yield Fault(offset, len(what), f"POML (0.0.8) drops {what} from text", _entity_remedy(what))


def _beside_messages(page: Page) -> Iterator[Fault]:
    """Find bare text beside messages. POML (0.0.8) drops it, unless an element that is no message follows it."""
    for element in page.document.elements:
        inner = [child for child in element.children if isinstance(child, Element) and child.kind not in NOT_TEXT]
        is_message = {child: child.kind in MESSAGE_ELEMENTS or child.find("speaker").text != "" for child in inner}
        if element.kind in MESSAGE_ELEMENTS or not any(is_message.values()):
            continue
        is_dropped = True  # what follows is a message, or the end
        for child in reversed(element.children):
            if isinstance(child, Element):
                is_dropped = is_message.get(child, is_dropped)
            elif is_dropped and (text := child.text.strip()):
                why = "POML (0.0.8) drops bare text next to message tags"
                yield Fault(child.at(child.text.find(text)), len(text), why, "put it in a message tag")


def _entity_remedy(entity: str) -> str:
    return f"write {f'#{entity[1:]}' if entity[1:-1] in ENTITIES else 'the character itself'}"


def let_value(page: Page) -> Iterator[Fault]:
    """Find values of ``<let>`` that are a text where an expression or JSON is expected, and yet are accepted."""
    for element in page.document.elements:
        if element.kind != "let":
            continue
        value, body = element.find("value"), element.text()
        code, text = value.text.strip(), body.text.strip()
        if code:
            if _PATH.fullmatch(code) or _LIST.fullmatch(code) or _DATE.fullmatch(code):
                why = "value= is a JavaScript expression, and this is a text"
                remedy = f'put it in quotes of its own: value="{quoted(code)}"'
                yield Fault(value.at(0), len(value.text), why, remedy)
        elif "{{" in text and not element.find("src").text:
            yield Fault(body.at(body.text.find("{{")), 2, "the content of a <let> is not evaluated", 'write value="…"')
        elif text[:1] in {"{", "["} and json_value(text) is None:
            at = body.at(len(body.text) - len(body.text.lstrip()))
            why = "the content of the <let> is not JSON, so POML uses it as a text"
            yield Fault(at, 1, why, "write JSON, or value= with JavaScript")


def unused_variable(page: Page) -> Iterator[Fault]:
    """Find variables that a ``<let>`` sets and no expression uses."""
    used = {name for one in page.snapshot.inference.expressions for name in _names(one.code)}
    for element in page.document.elements:
        name = element.find("name")
        if element.kind == "let" and name.text.strip() and not used & set(bound_by(name.text)):
            why = f"the variable {name.text} is set and never used"
            yield Fault(name.at(0), len(name.text), why, "remove the <let>")


def _names(code: str) -> list[str]:
    """Return the names that an expression uses: all its words if it is not JavaScript."""
    found = analyse(code)
    return WORD.findall(code) if found.broken else [use.name for use in found.uses]


def shadowed_variable(page: Page) -> Iterator[Fault]:
    """Find variables that a ``<let>`` sets again."""
    lets: dict[str, Element] = {}
    for element in page.document.elements:
        name, value = element.find("name"), element.find("value").text
        for one in bound_by(name.text) if element.kind == "let" else ():
            before = lets.get(one)
            lets[one] = element
            if before is None or one in WORD.findall(value):
                continue
            line = page.document.source.locate(before.start)[0]
            conditional = element.find("if").text or before.find("if").text
            also = ": POML (0.0.8) ignores the if= of a <let>" if conditional else ""
            why = f"the variable {one} of line {line} is set again{also}"
            yield Fault(name.at(0), len(name.text), why, 'give it another name, or write value="condition ? a : b"')
