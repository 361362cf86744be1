"""Compare a result with that of poml itself for a case of the corpus."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from tests.corpus.cases import FOLDER, Case

from pomlflow.exceptions import Problem, RenderError


def assert_expected(one: Case, result: dict[str, Any] | RenderError) -> None:
    """Assert that a frame is the expected file's, or that an error has its class and place.

    Not an error's message: many are V8's own, whose wording differs between its versions.
    """
    expected = one.expected
    if not one.fails:
        assert same(result, expected), f"{result}\nis not\n{expected}"
        return
    error = expected["error"]
    assert isinstance(result, RenderError), result
    found = problem_for(error, result)
    assert (found.kind, found.file, found.line, found.column) == (error["kind"], *place(error, one))


def same(actual: Any, expected: Any) -> bool:
    """Compare frames, pictures by what they show.

    POML encodes every picture again with sharp, whose output differs between processors.
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        if actual.keys() != expected.keys():
            return False
        pixels = str(expected.get("type", "")).startswith("image/") and "base64" in expected
        return all(
            (alike if pixels and key == "base64" else same)(actual[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    return type(actual) is type(expected) and bool(actual == expected)


def alike(actual: str, expected: str) -> bool:
    """Whether two pictures, in base64, look the same but for a lossy format's last bits."""
    if actual == expected:
        return True
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in (actual, expected)]
    if images[0].format != images[1].format or images[0].size != images[1].size:
        return False
    difference = ImageChops.difference(*(image.convert("RGBA") for image in images))
    return all(high <= 8 for _, high in difference.getextrema())


def place(error: dict[str, Any], one: Case) -> tuple[str | None, int | None, int | None]:
    """Return the file, line and column of poml's offset, from 1 and in characters."""
    file = Path(str(error.get("file") or one.file).replace("<corpus>", str(FOLDER)))
    if error.get("start") is None:
        return str(file), None, None
    units = file.read_bytes().decode().encode("utf-16-le")[: 2 * error["start"]]
    before = units.decode("utf-16-le")
    return str(file), before.count("\n") + 1, len(before) - before.rfind("\n")


def problem_for(error: dict[str, Any], failure: RenderError) -> Problem:
    """Return the problem for the error that ended poml's command line.

    It is the first if POML reported the error. A JavaScript exception that ended the render is last, after the problems
    that POML had collected.
    """
    return failure.problems[0 if error["kind"] in {"ReadError", "WriteError", "SystemError"} else -1]
