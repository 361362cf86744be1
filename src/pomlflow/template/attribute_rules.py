"""Lint rules about elements and attributes."""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from pomlflow.engine.installation import package_folder
from pomlflow.template.inference import EVALUATED, READERS, json_value
from pomlflow.template.markup import SCHEMAS, Element, Fault, expressions
from pomlflow.template.runtime import KNOWN, canonical
from pomlflow.template.source import Page

_ANY_ELEMENT = frozenset({"for", "if", "key"})
# Attributes of HTML and of other template languages, with those of POML that are probably meant.
_INSTEAD = {
    "class": "className", "style": "captionStyle", "title": "caption", "role": "speaker", "language": "lang",
    **dict.fromkeys(("fro", "ofr", "foreach", "vfor", "ngfor", "each", "loop", "repeat"), "for"),
    **dict.fromkeys(("fi", "vif", "ngif", "when", "test", "condition", "unless", "show"), "if"),
}  # fmt: skip
_SCHEMA = "see https://json-schema.org/understanding-json-schema"
# An array or an object in JavaScript, nested once at most.
_CONTAINER = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\{(?:[^{}]|\{[^{}]*\})*\}")
# Keywords of JSON Schema. A schema without any of them is probably an example.
_KEYWORDS = frozenset(
    "$ref $defs $schema $id type properties required items enum const anyOf oneOf allOf not additionalProperties "
    "description title default format pattern minimum maximum definitions prefixItems patternProperties if".split()
)
# Second names of elements that no docstring has.
_ALIASES = {"document": "doc", "paragraph": "div"}
# Second names in the docstring of an element's method: "Object (`<obj>`, `<dataObj>`) displays …".
_OTHER_NAMES = re.compile(r"[\w ]+ \((.*?)\)")
# Undocumented elements, which PomlFile handles itself. <runtime> is missing: it accepts any attribute.
_SYNTAX = EVALUATED | {
    "include": ("src",),
    "let": ("name", "src", "type", "value"),
    "meta": ("minVersion", "maxVersion", "components"),
}


@lru_cache(maxsize=1)
def attributes() -> Mapping[str, Mapping[str, str]]:
    """Return the attributes of each element: by the element's name, then the attribute's name, its exact spelling.

    The names are in lower case and without hyphens. The attributes are the parameters of the methods of
    ``poml.Prompt``, which POML generates from its documentation.
    """
    found: dict[str, Mapping[str, str]] = {name: {key.lower(): key for key in keys} for name, keys in _SYNTAX.items()}
    folder = package_folder("poml")
    # Parsed, since an import takes a second.
    tags = ast.parse((folder / "_tags.py").read_text("utf-8") if folder else "")
    methods = {one.name.replace("_", ""): one for one in ast.walk(tags) if isinstance(one, ast.FunctionDef)}
    own = {name: {one.arg.lower(): one.arg for one in method.args.args[1:]} for name, method in methods.items()}
    for name, method in methods.items():
        # Components pass attributes that they do not know on to <span> and <p>, and those with a caption to <cp>.
        known = {"name": "name", "type": "type", **own["inline"], **own["paragraph"], **own[name]}
        known |= own["captionedparagraph"] if "captionstyle" in known else {}
        others = _OTHER_NAMES.match(ast.get_docstring(method) or "")
        names = (
            name,
            _ALIASES.get(name, name.replace("message", "msg")),
            *re.findall(r"<(\w+)>", others[1].lower() if others else ""),
        )
        found |= dict.fromkeys(names, known)
    return found


def unknown_attribute(page: Page) -> Iterator[Fault]:
    """Find attributes that POML does not have."""
    for element in page.document.elements:
        known = attributes().get(element.kind)
        for key, name in element.names.items():
            plain = key.replace("-", "")
            if known is None or key in _ANY_ELEMENT or ":" in key:
                continue
            if plain not in known or (element.kind == "meta" and plain != key):  # POML reads no hyphens there
                is_version = "version" in plain
                remedy = 'write <meta minVersion="0.0.8"/>' if is_version else _near_attribute(plain, known)
                yield Fault(name.at(0), len(key), f"POML has no attribute {name.text} of <{element.name}>", remedy)


def _near_attribute(key: str, known: Mapping[str, str]) -> str:
    """Return the remedy for an unknown attribute, with the one that was probably meant."""
    near = [_INSTEAD.get(key, "").lower(), *difflib.get_close_matches(key, known, 1, 0.65)]
    near += difflib.get_close_matches(key, ("for", "if"), 1, 0.75)
    instead = next((known.get(name, name) for name in near if name in {*known, "for", "if"}), None)
    return f"write {instead}" if instead else "remove it"


def unknown_setting(page: Page) -> Iterator[Fault]:
    """Find runtime settings that no provider has, and objects and arrays, which POML turns into text."""
    for element in page.document.elements:
        if element.kind != "runtime":
            continue
        yield from _literal_settings(element)
        for key, name in element.names.items():
            if canonical(name.text) in KNOWN or key in _ANY_ELEMENT:
                continue
            near = difflib.get_close_matches(canonical(name.text), KNOWN, 1, 0.7)
            remedy = f"write {_camel(near[0])}" if near else "write the name that the provider's API has"
            yield Fault(name.at(0), len(key), f"{name.text} is not a setting of a model", remedy)


def _literal_settings(element: Element) -> Iterator[Fault]:
    """Find settings whose value is an object or an array in JavaScript."""
    for key, value in element.attributes:
        for start, code in expressions(value.text) if key not in _ANY_ELEMENT else ():
            literal = code.removeprefix("(").removesuffix(")").strip()
            if not _CONTAINER.fullmatch(literal):
                continue
            written = element.names[key].text
            why = f"{'an object' if literal[0] == '{' else 'an array'} in {written} of <runtime> becomes text"
            quote = '"' if "'" in literal else "'"
            instead = f"{written}={quote}{{{{ JSON.stringify({literal}) }}}}{quote}"
            yield Fault(value.at(start), len(code), why, f"write {instead}")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.title() for word in rest)


def invalid_schema(page: Page) -> Iterator[Fault]:
    """Find schemas that POML accepts although they are not JSON Schema."""
    for element in page.document.elements:
        passage = element.text()
        text = passage.text.strip()
        if element.kind not in SCHEMAS or "{{" in text or element.find("parser").text == "eval":
            continue
        if not text:
            name = element.name
            yield Fault(element.start, len(name) + 1, f"<{name}> is empty", "write a JSON Schema in it")
            continue
        value = json_value(text)
        is_json = value is not None or text == "null"  # else it is JavaScript, or the render reports it
        wrong = _not_schema(value) if is_json else None
        if wrong is not None:
            begin = passage.at(len(passage.text) - len(passage.text.lstrip()))
            message, word, remedy = wrong
            at = page.text.find(word, begin) if word else begin
            yield Fault(max(at, begin), max(len(word), 1), message, remedy)


def _not_schema(value: Any) -> tuple[str, str, str] | None:
    """Return the problem of a schema, the word that it is about and the remedy; None if it is valid."""
    from jsonschema import Draft202012Validator  # imported late: it takes 30 ms
    from jsonschema.exceptions import SchemaError

    if not isinstance(value, dict):
        return "a schema is a JSON object", "", _SCHEMA
    if value and not _KEYWORDS & value.keys():
        return 'it has no keyword of JSON Schema: is it an example, or the content of "properties"?', "", _SCHEMA
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        path = ".".join(map(str, error.absolute_path))
        shown = json.dumps(error.instance, ensure_ascii=False)
        word = shown if isinstance(error.instance, str) else ""
        return f"it is not JSON Schema: {path or 'it'} must not be {shown[:60]}", word, _SCHEMA
    return _misspelt(value, Draft202012Validator.VALIDATORS)


def _misspelt(schema: Mapping[str, Any], keywords: Iterable[str]) -> tuple[str, str, str] | None:
    """Return the problem of the first misspelt keyword."""
    pending: list[Any] = [schema]
    while pending:
        one = pending.pop()
        if not isinstance(one, dict):
            continue
        for key in one:
            near = () if key in _KEYWORDS else difflib.get_close_matches(key, keywords, 1, 0.8)
            if near and near[0] != key:
                return f"JSON Schema has no keyword {key}", json.dumps(key, ensure_ascii=False), f"write {near[0]}"
        inner = [one.get(key) for key in ("items", "additionalProperties", "not")]
        inner += [schema for key in ("anyOf", "oneOf", "allOf") for schema in one.get(key, ())]
        inner += [schema for key in ("properties", "$defs", "definitions") for schema in one.get(key, {}).values()]
        pending += reversed(inner)
    return None


def media_as_text(page: Page) -> Iterator[Fault]:
    """Find pictures that POML replaces by their alt text, and pictures and sounds that it drops."""
    styles = [json.dumps(page.stylesheet or {})]
    styles += [element.text().text for element in page.document.elements if element.kind == "stylesheet"]
    for element in page.document.elements:
        syntax, alt = element.find("syntax").text, element.find("alt").text
        picture = element.kind in {"img", "image"}
        if not (picture or element.kind == "audio") or _is_alone(page, element):
            continue
        what, width, start = "picture" if picture else "sound", len(element.name) + 1, element.start
        if "multimedia" in "".join(styles) or syntax == "multimedia" or "{{" in syntax:
            continue
        if not picture or alt or syntax:
            why = f"the {what} is not sent{', only its alt text' if picture and alt else ''}"
            yield Fault(start, width, why, f'write <{element.name} syntax="multimedia" …/>')


def _is_alone(page: Page, element: Element) -> bool:
    """Return whether a template consists of this element alone: POML sends it as media."""
    return page.document.source.file is None and page.document.content() is element


def missing_file(page: Page) -> Iterator[Fault]:
    """Find files that do not exist; an expression in the path of an include is not evaluated."""
    where = "the folder of the .poml file" if page.snapshot.path is not None else os.fspath(page.folder)
    for element in page.document.elements:
        source = element.find("src")
        at, width = source.at(0), len(source.text)
        if not source.text or page.snapshot.uri is not None or element.kind not in READERS | {"include", "let"}:
            continue
        folder = page.folder if element.kind in {"include", "let"} else page.snapshot.folder
        is_evaluated = "{{" in source.text and element.kind != "include"
        # Path.exists raises an error for a name that is too long.
        if not is_evaluated and not os.path.exists(folder / source.text):  # noqa: PTH110
            yield Fault(at, width, f"there is no file {source.text[:100]}", f"a path is relative to {where}")
