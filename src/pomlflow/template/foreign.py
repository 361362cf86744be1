"""Find Python, Jinja and Handlebars in a template's expressions, with the JavaScript to write instead."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from pomlflow.template.javascript import analyse

# Words of Python and Jinja with the JavaScript to write, by their use: constants anywhere, operators in code that is
# not valid JavaScript, functions and methods that are called, and filters after |.
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_OPERATORS = {
    "and": "&&", "or": "||", "not": "!", "is": "===", "if": "condition ? a : b", "for": "xs.map(x => …)",
    "lambda": "x => …",
}  # fmt: skip
_CALLS = {
    "len": "xs.length", "str": "String(x)", "int": "parseInt(x)", "float": "Number(x)", "bool": "Boolean(x)",
    "list": "[...xs]", "sorted": "[...xs].sort()", "reversed": "[...xs].reverse()",
    "sum": "xs.reduce((a, b) => a + b, 0)", "range": "Array.from({length: n}, (_, i) => i)",
    "enumerate": "xs.map((x, i) => …), or loop.index in a for=",
    "zip": "xs.map((x, i) => [x, ys[i]])", "abs": "Math.abs(x)", "round": "Math.round(x)", "min": "Math.min(...xs)",
    "max": "Math.max(...xs)", "any": "xs.some(x => …)", "all": "xs.every(x => …)", "isinstance": "typeof x",
    "dict": "{...x}", "set": "new Set(xs)", "print": "the value alone", "repr": "JSON.stringify(x)",
    "map": "xs.map(x => …)", "filter": "xs.filter(x => …)", "next": "xs[0]", "tuple": "[...xs]", "type": "typeof x",
    "getattr": "x.y ?? z", "hasattr": "'y' in x", "format": "x.toFixed(2)", "pow": "x ** y",
}  # fmt: skip
_ITEMS = 'Object.entries(x), in a loop for="[k, v] in Object.entries(x)"'
_METHODS = {
    "capitalize": "x.charAt(0).toUpperCase() + x.slice(1)", "casefold": "x.toLowerCase()", "dumps": "JSON.stringify(x)",
    "count": "x.split(y).length - 1", "extend": "[...xs, ...ys]", "get": "x.key ?? y", "index": "xs.indexOf(x)",
    "isdigit": "/^\\d+$/.test(x)", "isnumeric": "/^\\d+$/.test(x)", "keys": "Object.keys(x)", "ljust": "x.padEnd(n)",
    "loads": "JSON.parse(x)", "now": "new Date()", "removeprefix": "x.slice(n)", "removesuffix": "x.slice(0, -n)",
    "rjust": "x.padStart(n)", "today": "new Date()", "values": "Object.values(x)", "zfill": "x.padStart(n, '0')",
    "items": _ITEMS, "upper": "x.toUpperCase()", "lower": "x.toLowerCase()", "strip": "x.trim()",
    "lstrip": "x.trimStart()", "rstrip": "x.trimEnd()", "append": "[...xs, x]", "startswith": "x.startsWith(y)",
    "endswith": "x.endsWith(y)", "format": "`…${x}…`", "title": "x.charAt(0).toUpperCase() + x.slice(1)",
    "isoformat": "x.toISOString()", "strftime": "x.toLocaleDateString()", "splitlines": "x.split('\\n')",
}  # fmt: skip
_FILTERS = {
    **dict.fromkeys(
        "batch capfirst capitalize date dictsort filesizeformat floatformat format groupby indent intcomma linebreaks "
        "map max min pluralize pprint random reject rejectattr selectattr select slice slugify striptags sum title "
        "truncate truncatechars truncatewords unique urlencode wordcount wordwrap xmlattr yesno".split(),
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
# Patterns, each with the word to report ("" for the text that it matches), the language, and the JavaScript to write.
# Those of _BROKEN apply to code that is not valid JavaScript; those of _VALID match code with another meaning there.
_BROKEN = {
    r"(?<![\w.])f(?=[\"'])": ("f-string", "Python", "`…${x}…`"),
    r"\[[^\[\]?:]*:[^\[\]?]*\]": ("slice", "Python", "xs.slice(1, 3)"),
    r"\bis\s+(?:not\s+)?(?:un)?defined\b": ("", "Jinja", "typeof x !== 'undefined'"),
    r"\bis\s+not\b(?!\s+(?:un)?defined)": ("is not", "Python", "!=="),
    r"\bnot\s+in\b": ("not in", "Python", "!xs.includes(x)"),
    r"(?<=[\w)\]])\s*(?::[<>^+ ]*\d*,?(?:\.\d+)?[dfeg%]|![rsa])\s*$": ("", "Python", "x.toFixed(2)"),
    r"(?<=[\w'\")\]])\s*~": ("~", "Jinja", "+"),
}
_VALID = {
    r"(?<=[\"'])\s*\.\s*join\s*\(": ("join", "Python", "xs.join(', ')"),
    r"\.split\(\s*\)": ("split()", "Python", "x.trim().split(/\\s+/)"),
    r"\bmath\.(?=ceil|e\b|floor|log|pi|pow|sqrt)": ("math", "Python", "Math"),
    r"\bloop\.(?:index0|revindex0?|previtem|nextitem|cycle|changed|depth0?)\b": (
        "", "Jinja", "loop.index, which counts from 0, loop.first, loop.last or loop.length",
    ),
    r"(?<=[\w)\]])\[\s*-\s*\d+\s*\]": ("", "Python", "xs.at(-1)"),
    # A comment that is an operand: after a name, a number or a bracket, and without words of prose.
    r"(?<=[\w)\]])[ \t]*//(?=\s*[\w$.]+(?:\([^()]*\))?[\s)]*(?:[-+*/%<>=?].*)?$)": ("", "Python", "Math.floor(a / b)"),
    r"(?<=[\"'`])\s*%": ("", "Python", "`…${x}…`"),
    r"(?<=[\"'`])\s*\*|\*(?=\s*[\"'`])": ("", "Python", "x.repeat(n)"),
    r"\bin(?=\s*(?:[\[\"'`]|\([^()]*,))": ("", "Python", "xs.includes(x)"),
    r"===?(?=\s*\[\s*\])": ("", "Python", "xs.length == 0"),
    r"!==?(?=\s*\[\s*\])": ("", "Python", "xs.length != 0"),
    r"===?(?=\s*\{\s*\})": ("", "Python", "Object.keys(x).length == 0"),
    r"!==?(?=\s*\{\s*\})": ("", "Python", "Object.keys(x).length != 0"),
    r"(?<![=<>])[<>]=?\s*[\w$.]+\s*[<>](?![<>])": ("", "Python", "a > b && b > c"),
}  # fmt: skip
# Methods that JavaScript's own objects have too. They are Python's only if they are called on the caller's data.
_SHARED = frozenset({"format", "get", "keys", "now", "values"})
_RECEIVER = re.compile(r"(?:(?<!\.\.\.)(?<!from\()(?<![\w$.])([a-z_]\w*)(?:\??\.[\w$]+|\[[^\[\]]*\])*|[\"'])\s*\Z")
_HANDLEBARS = re.compile(r"[#^>@]\s*[A-Za-z]+|(?:/\s*[A-Za-z]+|else)$")
# A string, or a regular expression that is an argument.
_TEXT = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`(?:\\.|[^`\\])*`|(?<=[(,])/(?![/*])(?:\\.|[^/\\])+/")
_TOKEN = re.compile(r"(\.\s*|(?<!\|)\|\s*)?([A-Za-z_$][A-Za-z0-9_$]*)(\s*\()?(\s*:)?")


class ForeignWord(NamedTuple):
    """A word of another language in an expression."""

    offset: int  # in the code
    word: str
    language: str
    instead: str  # the JavaScript to write


def is_prose(code: str) -> bool:
    """Return whether code looks like a text without quotes: words without any operator or bracket."""
    return _PROSE.fullmatch(code) is not None


def quoted(text: str) -> str:
    """Return a text as a JavaScript string for an attribute in double quotes."""
    return f"`{text}`" if "'" in text else f"'{text}'"


def foreign_words(code: str, bound: Collection[str] = ()) -> Iterator[ForeignWord]:
    """Yield each foreign word of an expression.

    `bound` are the names that a ``<let>`` sets, which may hold any of JavaScript's objects.
    """
    if found := _HANDLEBARS.match(code):
        yield ForeignWord(0, found[0], "Handlebars", "a for= or an if= of an element, or loop.index")
        return
    broken = analyse(code).broken
    code = _TEXT.sub(lambda text: f"{text[0][0]}{' ' * (len(text[0]) - 2)}{text[0][-1]}", code)
    matched: set[int] = set()  # offsets
    for pattern, (what, language, instead) in {**_VALID, **(_BROKEN if broken else {})}.items():
        for found in re.finditer(pattern, code):
            matched.update(range(*found.span()))
            yield ForeignWord(found.end() - len(found[0].lstrip()), what or found[0].strip(), language, instead)
    for token in _TOKEN.finditer(code):
        before, word, called, key = token.groups(default="")
        before = before.strip()
        is_key = key and not called and "?" not in code
        if word in bound or is_key or token.start(2) in matched:
            continue
        if before == "." and not _is_python_method(word, code[: token.start()], bound):
            continue
        javascript = _javascript_for(word, before, called=bool(called), broken=broken)
        if before == "|" and word in _FILTERS:
            yield ForeignWord(token.start(2), word, "Jinja", _FILTERS[word])
        elif javascript is not None:
            yield ForeignWord(token.start(2), word, "Python", javascript)


def _is_python_method(method: str, before: str, bound: Collection[str]) -> bool:
    """Return whether a method is Python's: JavaScript has none of this name, or it is called on data or a string."""
    receiver = _RECEIVER.search(before)
    if method == "now":
        return receiver is not None and receiver[1] == "datetime"
    return method not in _SHARED or (receiver is not None and receiver[1] not in bound)


def _javascript_for(word: str, before: str, *, called: bool, broken: bool) -> str | None:
    """Return the JavaScript for a word of Python, or None; `before` is the ``.`` or ``|`` in front of it."""
    if before == ".":
        return _METHODS.get(word) if called else None
    if called and word in _CALLS:
        return _CALLS[word]
    return _CONSTANTS.get(word) or (_OPERATORS.get(word) if broken else None)
