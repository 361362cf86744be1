"""Lint rules about text and expressions: syntax of other template languages, and what POML silently sends or drops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pomlflow.template.faults import Fault
from pomlflow.template.foreign import foreign_words
from pomlflow.template.markup import ENTITIES, Passage, expressions, split_loop
from pomlflow.template.page import Page, Rule

_FIELD = re.compile(
    r"\{(?![A-Z]\})([A-Za-z_]\w*(?:\.\w+|\[(?:\w+|'\w*'|\"\w*\")\]|\([\w.]*\))*)(?:![rsa])?(?::[^{}\s\"']*)?\}"
)
_FIELDS = re.compile(rf"(?<![{{$\\\w}}/#@%^])(?:{_FIELD.pattern})+(?![}}\w/])")
_WORD = re.compile(r"[A-Za-z_]\w*")
_ENTITY = re.compile(r"&(?:#\d+|#x[\da-fA-F]+|[A-Za-z]\w*);")
# Elements in which single braces are probably literal: code, data, and formats for the answer.
_LITERAL = frozenset({"code", "outputformat", "obj", "object", "dataobj", "table"})
_EXAMPLES = frozenset({"example", "exampleoutput", "output", "examples", "exampleset"})
_STATEMENT = re.compile(r"\{%-?\s*(\w+)(?:(?!%\}).)*%\}|\{#(?:(?!#\}).)+#\}", re.DOTALL)
_TWO_NAMES = re.compile(r"\s*[A-Za-z_$][\w$]*\s*,\s*[A-Za-z_$][\w$]*")
_TRIPLE = re.compile(r"\{\s*[A-Za-z_$][\w$.]*\s*\}")
_STATEMENTS = {
    **dict.fromkeys(("if", "elif", "else", "endif"), 'an attribute of an element: <p if="condition">…</p>'),
    **dict.fromkeys(("for", "endfor"), 'an attribute of an element: <p for="item in items">…</p>'),
    **dict.fromkeys(("include", "import", "extends", "from"), '<include src="part.poml"/>'),
    "set": '<let name="x" value="…"/>',
}


def single_braces(page: Page) -> Iterator[Fault]:
    """Find ``{name}``, the syntax of f-strings and ``str.format``."""
    known = {*page.snapshot.inference.variables, *page.snapshot.inference.optional, *_bound(page)}
    places = [(text, bool((_LITERAL | _EXAMPLES) & {node.name, *node.inside})) for text, node in page.texts]
    places += [(value, value is not node.element.find("caption")) for value, node in page.values]
    for text, only_known in places:
        for run in _FIELDS.finditer(_without_expressions(text.text)):
            for found in _FIELD.finditer(run[0]):
                if only_known and not known & set(_WORD.findall(found[1])):
                    continue
                foreign = next(foreign_words(found[1]), None)
                remedy = f"write {{{{{found[1]}}}}}" + (f", in JavaScript: {foreign[3]}" if foreign else "")
                at = text.at(run.start() + found.start())
                yield Fault(at, len(found[0]), f"{found[0]} is sent as it is", remedy)


def _bound(page: Page) -> set[str]:
    return {node.element.find("name").text.strip() for node in page.nodes if node.name == "let"}


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
    """Find ``{{`` that does not begin an expression."""
    for passage, node in (*page.texts, *page.values):
        text = _without_expressions(passage.text)
        for found in re.finditer(r"\w\s*(\}\})(?!\})", text):
            before, at = text[: found.start(1)], passage.at(found.start(1))
            counts = [(before.count("{"), before.count("}"))]
            counts += [(page.text.count("{{", 0, at), page.text.count("}}", 0, at))]
            if node.name != "code" and all(opening <= closing for opening, closing in counts):
                yield Fault(at, 2, "}} closes no {{, and is sent as it is", "write {{…}}, or remove it")
        for found in re.finditer(r"\{\{(\s*\}\})?", text):
            if node.name == "code" or text[found.start() - 1 : found.start()] == "\\":
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
    for passage, node in (*page.texts, *page.values):
        if node.name == "code":
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
        for at, word, language, instead in foreign_words(code):
            if language != "Python":
                why = f"{word!r} is {language}, and an expression is JavaScript"
                yield Fault(expression.offset + at, len(word), why, f"write {instead}")


def python_expression(page: Page) -> Iterator[Fault]:
    """Find Python in expressions, which are JavaScript."""
    bound = _bound(page)
    for expression in page.expressions:
        for at, word, language, instead in foreign_words(expression.code, bound):
            if language == "Python":
                why = f"{word!r} is Python, and an expression is JavaScript"
                yield Fault(expression.offset + at, len(word), why, f"write {instead}")
    for node in page.nodes:
        loop = node.element.find("for")
        parts = split_loop(loop.text)
        if parts and _TWO_NAMES.fullmatch(parts[0]):
            names = parts[0].strip()
            why = f"for={names!r} is Python: POML gives the whole item to the first name"
            yield Fault(loop.at(loop.text.find(names)), len(names), why, f"write [{names}] in …")


def dropped_text(page: Page) -> Iterator[Fault]:
    """Find entities and CDATA sections, which POML (0.0.8) drops from text, and entities in attributes."""
    source = page.text
    for value, _ in page.values:
        for found in _ENTITY.finditer(_without_expressions(value.text)):
            why = f"POML (0.0.8) sends {found[0]} of an attribute as it is"
            yield Fault(value.at(found.start()), len(found[0]), why, _instead_of(found[0]))
    for node in page.nodes:
        if {"stylesheet", "context"} & {node.name, *node.inside}:
            continue
        for child in node.element.children:
            if not isinstance(child, Passage) or child.text:
                continue
            offset = child.at(0)
            if source.startswith("<![CDATA[", offset):
                yield Fault(offset, 9, "POML (0.0.8) drops <![CDATA[…]]> from text", "write its text without it")
            elif source[offset] == "&":
                what = source[offset : source.find(";", offset) + 1]
                yield Fault(offset, len(what), f"POML (0.0.8) drops {what} from text", _instead_of(what))


def _instead_of(entity: str) -> str:
    return f"write {f'#{entity[1:]}' if entity[1:-1] in ENTITIES else 'the character itself'}"


RULES: Mapping[str, Rule] = {
    "single-braces": single_braces,
    "unclosed-braces": unclosed_braces,
    "jinja-syntax": jinja_syntax,
    "python-expression": python_expression,
    "dropped-text": dropped_text,
}
