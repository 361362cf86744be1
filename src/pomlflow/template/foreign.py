"""Find Python, Jinja and Handlebars in a template's expressions, with the JavaScript to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pomlflow.template.javascript import analyse, find_nodes

# Words of Python and Jinja, by how an expression uses them: constants anywhere, operators in code that is not
# JavaScript, called functions, called methods, and filters after |.
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_OPERATORS = {"and": "&&", "or": "||", "not": "!", "is": "===", "if": "condition ? a : b", "for": "xs.map(x => …)"}
_CALLS = {
    "len": "xs.length", "str": "String(x)", "int": "parseInt(x)", "float": "Number(x)", "bool": "Boolean(x)",
    "list": "[...xs]", "sorted": "[...xs].sort()", "reversed": "[...xs].reverse()",
    "sum": "xs.reduce((a, b) => a + b, 0)", "range": "Array.from({length: n}, (_, i) => i)",
    "enumerate": "xs.map((x, i) => …), or loop.index in a for=",
    "zip": "xs.map((x, i) => [x, ys[i]])", "abs": "Math.abs(x)", "round": "Math.round(x)", "min": "Math.min(...xs)",
    "max": "Math.max(...xs)", "any": "xs.some(x => …)", "all": "xs.every(x => …)", "isinstance": "typeof x",
    "dict": "{...x}", "set": "new Set(xs)", "print": "the value alone", "repr": "JSON.stringify(x)",
}  # fmt: skip
_ITEMS = 'Object.entries(x), in a loop for="[k, v] in Object.entries(x)"'
_METHODS = {
    "items": _ITEMS, "upper": "x.toUpperCase()", "lower": "x.toLowerCase()", "strip": "x.trim()",
    "lstrip": "x.trimStart()", "rstrip": "x.trimEnd()", "append": "[...xs, x]", "startswith": "x.startsWith(y)",
    "endswith": "x.endsWith(y)", "format": "`…${x}…`", "title": "x.charAt(0).toUpperCase() + x.slice(1)",
    "isoformat": "x.toISOString()", "strftime": "x.toLocaleDateString()", "splitlines": "x.split('\\n')",
}  # fmt: skip
_FILTERS = {
    **dict.fromkeys(
        "batch capitalize dictsort groupby indent map max min pprint random reject rejectattr selectattr select slice "
        "striptags sum title truncate unique urlencode wordcount wordwrap xmlattr".split(),
        "it with JavaScript's own methods",
    ),
    **dict.fromkeys(("e", "escape", "safe", "string"), "the value alone"),
    "abs": "Math.abs(x)", "count": "xs.length", "d": "x ?? y", "default": "x ?? y", "first": "xs[0]",
    "float": "Number(x)", "int": "parseInt(x)", "items": _ITEMS, "join": "xs.join(', ')",
    "last": "xs.at(-1)", "length": "xs.length", "list": "[...xs]", "lower": "x.toLowerCase()",
    "replace": "x.replaceAll(a, b)", "reverse": "[...xs].reverse()", "round": "Math.round(x)", "sort": "[...xs].sort()",
    "tojson": "JSON.stringify(x)", "trim": "x.trim()", "upper": "x.toUpperCase()",
}  # fmt: skip
_PROSE = re.compile(r"[A-Za-z0-9][^(){}\[\]=+*<>|\"`]*")
_SYNTAX = {
    r"(?<![\w.])f(?=[\"'])": ("f-string", "`…${x}…`"),
    r"\[\s*-?\w*\s*:\s*-?\w*\s*\]": ("slice", "xs.slice(1, 3)"),
    r"\bis\s+not\b": ("is not", "!=="),
    r"(?<=[\"'])\s*\.\s*join\s*\(": ("join", "xs.join(', ')"),
}
_NEGATIVE = re.compile(r"(.+?)(?:\?\.)?(\[\s*-\s*(\d+)\s*\])", re.DOTALL)
# A comment that is an operand: after a name, a number or a bracket in its line, and without words of prose.
_DIVISOR = re.compile(r"//\s*([\w$.]+(?:\([^()]*\))?)\s*\)*\s*(?:[-+*/%<>=?].*)?")
_DIVIDEND = re.compile(r"[\w)\]][ \t]*\Z")
_OPERANDS = re.compile(r"\s*([\w$.]+)\s*//\s*([\w$.]+)\s*")
_HANDLEBARS = re.compile(r"[#^>]\s*[A-Za-z]+|(?:/\s*[A-Za-z]+|else)$")
_TOKEN = re.compile(
    r"(?P<text>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`(?:\\.|[^`\\])*`)"
    r"|(?P<before>\.\s*|(?<!\|)\|\s*)?(?P<word>[A-Za-z_$][A-Za-z0-9_$]*)(?P<called>\s*\()?(?P<key>\s*:)?"
)


def is_prose(code: str) -> bool:
    """Return whether code looks like a text without quotes: words without any operator or bracket."""
    return _PROSE.fullmatch(code) is not None


def quoted(text: str) -> str:
    """Return a text as a JavaScript string for an attribute in double quotes."""
    return f"`{text}`" if "'" in text else f"'{text}'"


def foreign_words(code: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield each foreign word of an expression: its offset, the word, its language and the JavaScript for it."""
    if found := _HANDLEBARS.match(code):
        yield 0, found[0], "Handlebars", "a for= or an if= of an element"
        return
    broken = analyse(code).broken
    for pattern, (what, instead) in _SYNTAX.items():
        if found := re.search(pattern, code) if broken or what == "join" else None:
            yield found.start(), what, "Python", instead
    yield from _operators(code)
    for token in _TOKEN.finditer(code):
        word, before, called = token["word"], (token["before"] or "").strip(), token["called"]
        is_key = token["key"] and not called and "?" not in code
        javascript = None if word is None or is_key else _of_python(word, before, called=bool(called), broken=broken)
        if before == "|" and word in _FILTERS:
            yield token.start("word"), word, "Jinja", _FILTERS[word]
        elif javascript is not None:
            yield token.start("word"), word, "Python", javascript


def _operators(code: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield Python's negative indexes and integer divisions, which are valid JavaScript with another meaning."""
    if "//" not in code and "-" not in code:
        return
    for at, text in find_nodes(code, "subscript_expression", "comment"):
        if found := _NEGATIVE.fullmatch(text):
            yield at + found.start(2), found[2], "Python", f"{found[1]}.at(-{found[3]})"
        elif _DIVISOR.fullmatch(text) and _DIVIDEND.search(code, 0, at):
            whole = _OPERANDS.fullmatch(code)
            yield at, "//", "Python", f"Math.floor({whole[1]} / {whole[2]})" if whole else "Math.floor(a / b)"


def _of_python(word: str, before: str, *, called: bool, broken: bool) -> str | None:
    if before == ".":
        return _METHODS.get(word) if called else None
    if called and word in _CALLS:
        return _CALLS[word]
    return _CONSTANTS.get(word) or (_OPERATORS.get(word) if broken else None)
