"""What a span holds for a replay beside its inputs and outputs; and a stored span, read back.

It is one attribute, ``poml.replay``, so that a span grows by some fifty bytes, and by eighty for each file that the
markup names. What is as most prompts have it is left out:

===============  =====================================================================================================
``pomlflow``     the version of this package
``folder``       the folder that relative sources were looked for in, relative to the prompt root, where it is not that
                 of ``poml.path``
``files``        of each file that the markup names, the first half of its SHA-256
``version``      the number of the registry's version that was rendered, where it came from there
``chat``         false where one text was rendered
``natives``      the variables that were lists of a framework's own messages
``spaced``       true where texts kept their whitespace (`pomlflow.template.whitespace`)
``bare``         where, in the inputs, an attachment stands for base64 alone, and not for a data URI
``masked``       of ``inputs`` and ``outputs``, what the handler's mask changed
``cut``          the same of what was longer than `pomlflow.configure`'s ``max_content``
===============  =====================================================================================================
"""

from __future__ import annotations

import base64
import importlib.metadata
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlflow.entities import Span
from mlflow.tracing.attachments import Attachment

from pomlflow.record import RenderRecord

__all__ = ["ATTRIBUTE", "LostContentError", "StoredRender", "bare_media", "facts_of", "is_attachment"]

ATTRIBUTE = "poml.replay"
_TOO_LARGE = "[Attachment too large: "  # mlflow 3.12 to 3.17, under MLFLOW_TRACE_MAX_ATTACHMENT_SIZE
_SHA = 32  # hexadecimal digits: enough to tell that a file has changed

Fetch = Callable[[str], bytes]
"""From a reference to an attachment (``mlflow-attachment://…``) to its bytes."""


class LostContentError(Exception):
    """A part of a render is not in the trace; the message says which, and why."""


def facts_of(record: RenderRecord) -> dict[str, Any]:
    """Give what a span is to hold of a render for a replay.

    Args:
        record: The render.

    Returns:
        The value of ``poml.replay``, but for ``bare``, ``masked`` and ``cut``.
    """
    facts: dict[str, Any] = {"pomlflow": _version()}
    if record.folder != _home(record.path):
        facts["folder"] = record.folder
    if record.files:
        facts["files"] = {file.path: file.sha256[:_SHA] for file in record.files}
    if record.version is not None:
        facts["version"] = record.version
    if not record.chat:
        facts["chat"] = False
    if record.natives:
        facts["natives"] = list(record.natives)
    if record.spaced:
        facts["spaced"] = True
    return facts


def _home(path: str | None) -> str:
    return posixpath.dirname(path or "") or "."


@lru_cache(maxsize=1)
def _version() -> str:
    return importlib.metadata.version("pomlflow")


def is_attachment(value: object) -> bool:
    """Whether MLflow has put a reference to an attachment here."""
    return isinstance(value, str) and value.startswith("mlflow-attachment://")


def bare_media(given: Any, stored: Any, place: tuple[str | int, ...] = ()) -> Iterator[list[str | int]]:
    """Find where MLflow has put an attachment for base64 without a data URI's head.

    Args:
        given: The inputs as they were.
        stored: The same as MLflow stored them.
        place: Where we are.

    Yields:
        The keys and indices that lead there.
    """
    if isinstance(stored, dict) and isinstance(given, Mapping):
        for key, value in stored.items():
            yield from bare_media(given.get(key), value, (*place, key))
    elif isinstance(stored, list) and isinstance(given, list):
        for index, pair in enumerate(zip(given, stored, strict=False)):
            yield from bare_media(*pair, (*place, index))
    elif is_attachment(stored) and isinstance(given, str) and not given.startswith("data:"):
        yield list(place)


@dataclass(frozen=True)
class StoredRender:
    """One render as its span tells it.

    Attributes:
        span_id: The span's.
        title: The span's name.
        path: The prompt's file, relative to the prompt root; None for inline markup.
        start_ns: When the render began, in nanoseconds since the epoch.
        inputs: As stored: ``prompt``, ``context``, ``stylesheet``; None where they are not there.
        outputs: As stored: ``messages``, ``tools``, ``schema``, ``runtime``; None where they are not there.
        error: What a failed render said; None for one that did not fail.
        attributes: All attributes of the span.
        facts: Those that are for a replay.
    """

    span_id: str
    title: str
    path: str | None
    start_ns: int
    inputs: Any
    outputs: Any
    error: str | None
    attributes: Mapping[str, Any]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, span: Span) -> StoredRender | None:
        """Read a span; None for one that is no render of ours."""
        attributes = span.attributes
        if "poml.digest" not in attributes:
            return None
        facts = attributes.get(ATTRIBUTE)
        failed = span.status.status_code.value == "ERROR"
        return cls(
            span_id=span.span_id,
            title=span.name,
            path=attributes.get("poml.path"),
            start_ns=span.start_time_ns,
            inputs=span.inputs,
            outputs=span.outputs,
            error=str(attributes.get("poml.error", span.status.description)) if failed else None,
            attributes=attributes,
            facts=facts if isinstance(facts, dict) else {},
        )

    @property
    def folder(self) -> str | None:
        """The folder that relative sources were looked for in, relative to the prompt root."""
        folder: str | None = self.facts.get("folder", _home(self.path))
        return folder

    def masked(self, what: str) -> bool:
        """Whether the handler's mask changed the ``inputs`` or the ``outputs``."""
        return what in self.facts.get("masked", ())

    def cut(self, what: str) -> bool:
        """Whether ``max_content`` left not all of the ``inputs`` or the ``outputs``."""
        return what in self.facts.get("cut", ())

    def read_inputs(self, fetch: Fetch) -> dict[str, Any]:
        """Give the inputs as they were, with attachments put back.

        Args:
            fetch: Reads an attachment.

        Returns:
            ``prompt``, ``context`` and, where one was given, ``stylesheet``.

        Raises:
            LostContentError: They are not in the trace as they were.
        """
        if self.masked("inputs"):
            raise LostContentError("the handler's mask changed the markup or the variables before they were stored")
        if self.cut("inputs"):
            raise LostContentError(
                "the markup or the variables were cut when they were stored (pomlflow.configure(max_content=…))"
            )
        if isinstance(self.inputs, str):
            raise LostContentError("the inputs were cut short (OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT?)")
        if not isinstance(self.inputs, dict):
            raise LostContentError("the inputs are not in the trace")
        bare = {tuple(place) for place in self.facts.get("bare", ())}
        inputs: dict[str, Any] = _put_back(self.inputs, fetch, bare, ())
        if not isinstance(inputs.get("prompt"), str) or not isinstance(inputs.get("context"), dict):
            raise LostContentError("the markup and the variables are not in the trace: something has redacted them")
        return inputs


def _put_back(value: Any, fetch: Fetch, bare: set[tuple[str | int, ...]], place: tuple[str | int, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _put_back(item, fetch, bare, (*place, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_back(item, fetch, bare, (*place, index)) for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith(_TOO_LARGE):
        raise LostContentError(f"{'.'.join(map(str, place))} is not in the trace: {value.strip('[]')}")
    if not is_attachment(value):
        return value
    data = base64.b64encode(fetch(value)).decode()
    if place in bare:
        return data
    known = Attachment.parse_ref(value)
    return f"data:{known['content_type'] if known else ''};base64,{data}"
