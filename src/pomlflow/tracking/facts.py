"""The span attribute ``poml.replay``: what `pomlflow.replay` needs in addition to a span's inputs and outputs.

It adds some fifty bytes to a span, and eighty for each file that the markup names. A fact is left out where it is as in
most prompts:

===============  =====================================================================================================
``pomlflow``     the version of this package
``folder``       the folder that relative sources are resolved against, relative to the prompt root, where it is not
                 that of ``poml.path``
``files``        of each file that the markup names, the first half of its SHA-256
``version``      the number of the registry's version that was rendered, where it came from there
``runtime``      the settings that came of that version's model config
``chat``         false where one text was rendered
``natives``      the variables that were lists of a framework's own messages
``spaced``       true where texts kept their whitespace
``bare``         where, in the inputs, an attachment replaces base64 without a data URI's head
``masked``       of ``inputs`` and ``outputs``, what the handler's mask changed
``cut``          the same of what was longer than `pomlflow.configure`'s ``max_content``
===============  =====================================================================================================
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pomlflow._version import __version__
from pomlflow.record import RenderRecord

__all__ = ["ATTRIBUTE", "bare_media", "facts_of", "folder_of", "is_attachment"]

ATTRIBUTE: Final = "poml.replay"
_DIGEST_LENGTH: Final = 32  # hexadecimal digits: enough to see that a file has changed


def facts_of(record: RenderRecord) -> dict[str, Any]:
    """Return the value of ``poml.replay`` for a render, except ``bare``, ``masked`` and ``cut``."""
    facts: dict[str, Any] = {"pomlflow": __version__}
    if record.folder != folder_of(record.path):
        facts["folder"] = record.folder
    if record.files:
        facts["files"] = {file.path: file.sha256[:_DIGEST_LENGTH] for file in record.files}
    if record.version is not None:
        facts["version"] = record.version
    if record.added_runtime:
        facts["runtime"] = dict(record.added_runtime)
    if not record.chat:
        facts["chat"] = False
    if record.natives:
        facts["natives"] = list(record.natives)
    if record.spaced:
        facts["spaced"] = True
    return facts


def folder_of(path: str | None) -> str:
    """Return the folder of a prompt's path; that of inline markup is the prompt root."""
    return posixpath.dirname(path or "") or "."


def is_attachment(value: object) -> bool:
    """Whether a stored value is MLflow's reference to an attachment."""
    return isinstance(value, str) and value.startswith("mlflow-attachment://")


def bare_media(given: Any, stored: Any, place: tuple[str | int, ...] = ()) -> Iterator[list[str | int]]:
    """Yield the keys and indices of each attachment that replaces base64 without a data URI's head."""
    if isinstance(stored, dict) and isinstance(given, Mapping):
        for key, value in stored.items():
            yield from bare_media(given.get(key), value, (*place, key))
    elif isinstance(stored, list) and isinstance(given, list):
        for index, pair in enumerate(zip(given, stored, strict=False)):
            yield from bare_media(*pair, (*place, index))
    elif is_attachment(stored) and isinstance(given, str) and not given.startswith("data:"):
        yield list(place)
