"""Check a text that MLflow's prompt optimiser tries instead of a version's own text.

It must be POML, with the variables, tools, files, schemas, roles and other parts of the version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Final

from pomlflow.exceptions import CandidateError
from pomlflow.template.inference import READERS, infer
from pomlflow.template.javascript import analyse
from pomlflow.template.markup import TOOLS, Element, is_poml, parse_document
from pomlflow.template.source import Inference
from pomlflow.tracking.bundle import ExtractedFiles

_Elements = list[tuple[str, Element]]
_PARTS: Final = {"schema": "<output-schema>", "runtime": "<runtime>"}
_ROLES: Final = {
    **dict.fromkeys(("systemmsg", "systemmessage"), "system"),
    **dict.fromkeys(("humanmsg", "humanmessage"), "human"),
    **dict.fromkeys(("aimsg", "aimessage"), "ai"),
}


def check_candidate(text: str, found: Inference, original: str, files: ExtractedFiles, uri: str) -> None:
    """Raise a `CandidateError` if a candidate is not POML, or differs from the original in more than its wording.

    `found` is the inference of `text`; `files` are those of the version with `uri`, whose text is `original`.
    """
    document, candidate = parse_document(original), parse_document(text)
    if not is_poml(text) or (_is_document(document, original) and not _is_document(candidate, text)):
        raise CandidateError(
            f"the candidate for {uri} is not a POML document: it must be the whole markup, from <poml> to </poml>, "
            "with nothing before or after it, no comment, no Markdown fence and no explanation",
            uri,
        )
    elements, others = _elements(document), _elements(candidate)
    before = _contents(elements, infer(original, files.folder, read=files.read), files)
    after = _contents(others, found, files)
    lost, new = [list(_missing(*pair)) for pair in ((before, after), (after, before))]
    lost += [f"the role {role}" for role in sorted(_roles(elements) - _roles(others))]
    details, now = _details(elements), _details(others)
    changed = [what for what in details if what in now and details[what] != now[what]]
    changes = [
        f"{verb} {', '.join(them)}" for verb, them in (("lost", lost), ("added", new), ("changed", changed)) if them
    ]
    if changes:
        raise CandidateError(
            f"the candidate for {uri} has {' and '.join(changes)}: change the wording, and keep each variable, tool, "
            "file, role and part as it is in the original",
            uri,
        )


def _is_document(document: Element, text: str) -> bool:
    """Whether a text is one ``<poml>`` from its beginning; `is_poml` also takes comments and several elements."""
    elements = [child for child in document.children if isinstance(child, Element)]
    return len(elements) == 1 and text.lstrip("\ufeff \t\r\n").lower().startswith("<poml")


def _elements(document: Element) -> _Elements:
    """Return all elements by their names in the spelling without hyphens."""
    return [(element.name.replace("-", ""), element) for element in document.walk()]


def _contents(elements: _Elements, found: Inference, files: ExtractedFiles) -> dict[str, set[str]]:
    """Return the names that must not change, by a format string that describes one of them in an error."""
    constant = [one for one in found.expressions if one.kind in {"if", "for"} and not analyse(one.code).uses]
    paths = {os.path.relpath(file, files.folder).replace(os.sep, "/") for file in (*found.includes, *found.assets)}
    return {
        "the variable {{{{{}}}}}": {use.name for use in found.uses},
        "the tool {}": {one.find("name").text for name, one in elements if name in TOOLS},
        "the file {}": paths,
        "the condition {}": {f'{one.kind}="{one.code}"' for one in constant},
        "{}": {_PARTS[part] for part in found.fields & _PARTS.keys()},
    }


def _roles(elements: _Elements) -> set[str]:
    """Return the roles of the messages; markup without messages is one human message."""
    named = {_ROLES.get(name, one.find("speaker").text) for name, one in elements} - {""}
    return named or {"human"}


def _details(elements: _Elements) -> dict[str, Any]:
    """Return the schemas without descriptions, and which files are pictures, by what an error names them."""
    found: dict[str, Any] = {}
    for name, one in elements:
        if name in READERS:
            source = one.find("src").text or f"<{name}>"
            found[f'syntax="multimedia" of {source}'] = one.find("syntax").text == "multimedia"
        elif name in TOOLS or name == "outputschema":
            part = "<output-schema>" if name == "outputschema" else f"the tool {one.find('name').text}"
            schema = one.text().text
            try:
                value = _without_descriptions(json.loads(schema))
            except (ValueError, RecursionError):  # JavaScript, or JSON with expressions in it
                value = " ".join(schema.split())
            found[f"the schema of {part}"] = value
    return found


def _without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        texts = {key for key, value in schema.items() if key == "description" and isinstance(value, str)}
        return {key: _without_descriptions(value) for key, value in schema.items() if key not in texts}
    return [_without_descriptions(one) for one in schema] if isinstance(schema, list) else schema


def _missing(one: dict[str, set[str]], other: dict[str, set[str]]) -> Iterator[str]:
    """Yield descriptions of the names in one content that the other lacks."""
    for description, names in one.items():
        yield from (description.format(name) for name in sorted(names - other[description]))
