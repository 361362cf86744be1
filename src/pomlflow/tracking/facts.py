"""The span attribute ``poml.replay``: what `pomlflow.replay` needs in addition to a span's inputs and outputs.

It adds about fifty bytes to a span, and eighty for each file that the markup names. A fact is left out if it has its
usual value:

===============  =====================================================================================================
``pomlflow``     the version of this package
``folder``       the folder that relative sources are resolved against, relative to the prompt root, if it is not the
                 folder of ``poml.path``
``files``        the first half of the SHA-256 of each file that the markup names, by path
``version``      the number of the version that was rendered, if the prompt came from the registry
``runtime``      the settings that came from that version's model config
``chat``         false if the render is one text
``natives``      the names of variables that were lists of a framework's own messages
``spaced``       true if texts kept their whitespace
``bare``         the paths in the inputs where an attachment replaces base64 that was not in a data URI
``masked``       which of ``inputs`` and ``outputs`` the handler's mask changed
``cut``          which of them were longer than ``max_content`` of `pomlflow.configure`
===============  =====================================================================================================
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pomlflow._version import __version__
from pomlflow.record import RenderRecord

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
    if record.message_variables:
        facts["natives"] = list(record.message_variables)
    if record.kept_whitespace:
        facts["spaced"] = True
    return facts


def folder_of(path: str | None) -> str:
    """Return the folder of a prompt's path; the prompt root (``.``) for inline markup."""
    return posixpath.dirname(path or "") or "."


def is_attachment(value: object) -> bool:
    """Whether a stored value is MLflow's reference to an attachment."""
    return isinstance(value, str) and value.startswith("mlflow-attachment://")


def bare_media(given: Any, stored: Any, path: tuple[str | int, ...] = ()) -> Iterator[list[str | int]]:
    """Yield the path to each attachment in a stored value that replaces base64 outside of a data URI."""
    if isinstance(stored, dict) and isinstance(given, Mapping):
        for key, value in stored.items():
            yield from bare_media(given.get(key), value, (*path, key))
    elif isinstance(stored, list) and isinstance(given, list):
        for index, pair in enumerate(zip(given, stored, strict=False)):
            yield from bare_media(*pair, (*path, index))
    elif is_attachment(stored) and isinstance(given, str) and not given.startswith("data:"):
        yield list(path)
