"""Convert POML's errors to `Problem`: offsets in UTF-16 units become lines and columns."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pomlflow.engine.file_access import FileAccess
from pomlflow.engine.protocol import Request
from pomlflow.exceptions import Problem, RenderError

SCHEMA_REMEDY = "a schema is JSON, {…}, or a JavaScript expression with zod, z.object({…})"
# POML's messages for media that do not exist; it gives them too if a file may not be read.
_PROBED = re.compile(r"(?:Image|Audio) file not found: (.*)", re.DOTALL)
_SCHEMA_SYNTAX = re.compile(r"JSON|[Uu]nexpected|missing|Invalid")


def render_error(reported: Sequence[Mapping[str, Any]], request: Request, files: FileAccess) -> RenderError:
    """Return one error for all problems that POML reported in a render, in the order of the reports."""
    # A report is {kind, message, start, end, path, schema}; start and end (inclusive) count UTF-16 units from 0.
    root = request.path or ""
    texts: dict[str, str | None] = {root: request.markup}
    problems = [_problem(item, root, texts, request.label, files) for item in reported]
    hint = files.remedy
    if reported[0].get("schema") and _SCHEMA_SYNTAX.search(problems[0].message):
        hint = SCHEMA_REMEDY
    return RenderError(problems, hint)


def _problem(
    item: Mapping[str, Any], root: str, texts: dict[str, str | None], label: str | None, files: FileAccess
) -> Problem:
    path = item.get("path")
    if not path or not isinstance(path, str):
        path = root
    if path not in texts:
        texts[path] = files.text(path)  # checked: a template can throw an error that names any file
    message, kind = str(item.get("message", "")).strip() or "POML gives no message", str(item.get("kind", ""))
    if (probed := _PROBED.match(message)) and probed[1] in files.denied:
        message = f"reading {probed[1]!r} is not allowed"
    file = label if path == root else os.path.normpath(path)
    text, start, end = texts[path], item.get("start"), item.get("end")
    if text is None or not isinstance(start, int):
        return Problem(message, kind, file)
    first, last = _corrected(text, characters(text, start), characters(text, end if isinstance(end, int) else start))
    line = text.count("\n", 0, first) + 1
    begin = text.rfind("\n", 0, first) + 1
    line_text = text[begin:].split("\n", 1)[0].rstrip("\r")
    width = max(1, min(last + 1, begin + len(line_text)) - first)
    return Problem(message, kind, file, line, first - begin + 1, line_text, width)


def _corrected(text: str, first: int, last: int) -> tuple[int, int]:
    """Return the first and last offset of a problem, corrected where POML's are known to be wrong."""
    # upstream: poml 0.0.8: a place in an attribute is one character early, one in a schema begins with the line break
    if text[first + 1 : last + 2].startswith("{{") and text[first + 1 : last + 2].endswith("}}"):
        return first + 1, last + 1
    if first < last:
        first += len(text[first : last + 1]) - len(text[first : last + 1].lstrip())
    return first, max(first, last)


def characters(text: str, units: int) -> int:
    """Return the offset in characters for an offset in UTF-16 units: JavaScript counts an emoji as two."""
    if text.isascii():
        return min(units, len(text))
    encoded = text.encode("utf-16-le", "surrogatepass")[: 2 * units]
    return len(encoded.decode("utf-16-le", "replace"))
