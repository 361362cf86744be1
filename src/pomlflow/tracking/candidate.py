"""Check a text that MLflow's prompt optimiser tries instead of a version's own text.

It must be POML, with the variables, tools, files and other parts of the version.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from pomlflow.exceptions import CandidateError
from pomlflow.template.inference import infer
from pomlflow.template.markup import TOOLS, Element, is_poml, parse_document
from pomlflow.template.source import Inference
from pomlflow.tracking.bundle import ExtractedFiles

__all__ = ["check_candidate"]

_PARTS: Final = {"schema": "<output-schema>", "runtime": "<runtime>"}


def check_candidate(text: str, found: Inference, original: str, files: ExtractedFiles, uri: str) -> None:
    """Raise a `CandidateError` if a candidate is not POML, or lacks or adds a variable, tool, file or part."""
    if not is_poml(text) or (_is_document(original) and not _is_document(text)):
        raise CandidateError(
            f"the candidate for {uri} is not a POML document: it must be the whole markup, from <poml> to </poml>, "
            "with nothing before or after it, no comment, no Markdown fence and no explanation",
            uri,
        )
    before, after = (
        _contents(original, infer(original, files.folder, read=files.read), files),
        _contents(text, found, files),
    )
    lost, new = [", ".join(_missing(*pair)) for pair in ((before, after), (after, before))]
    if lost or new:
        changes = " and ".join(filter(None, (lost and f"lost {lost}", new and f"added {new}")))
        raise CandidateError(
            f"the candidate for {uri} has {changes}: change the wording, and keep each variable, tool, file and "
            "part as it is in the original",
            uri,
        )


def _is_document(text: str) -> bool:
    """Whether a text is one ``<poml>`` from its beginning; `is_poml` also takes comments and several elements."""
    elements = [child for child in parse_document(text).children if isinstance(child, Element)]
    return len(elements) == 1 and text.lstrip("\ufeff \t\r\n").lower().startswith("<poml")


def _contents(text: str, found: Inference, files: ExtractedFiles) -> dict[str, set[str]]:
    """Return the names that must not change, by a format string that describes one of them in an error."""
    tools = [one for one in parse_document(text).walk() if one.name.replace("-", "") in TOOLS]
    paths = {os.path.relpath(file, files.folder).replace(os.sep, "/") for file in (*found.includes, *found.assets)}
    return {
        "the variable {{{{{}}}}}": {use.name for use in found.uses},
        "the tool {}": {tool.find("name").text for tool in tools},
        "the file {}": paths,
        "{}": {_PARTS[part] for part in found.fields & _PARTS.keys()},
    }


def _missing(one: dict[str, set[str]], other: dict[str, set[str]]) -> Iterator[str]:
    """Yield descriptions of the names in one content that the other lacks."""
    for description, names in one.items():
        yield from (description.format(name) for name in sorted(names - other[description]))
