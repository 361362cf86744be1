"""Apply the user's mask and then the size limit to a span's content, before MLflow receives it.

A span processor is too late for a mask. MLflow runs processors after it has made attachments of media, and the span's
event keeps the exception's message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.utils import dump_span_attribute_value

from pomlflow._log import warn_once
from pomlflow.dispatch import Mask
from pomlflow.frame.media import kind_of_media, replace_values
from pomlflow.record import well_formed
from pomlflow.settings import settings

_INPUTS, _OUTPUTS = SpanAttributeKey.INPUTS, SpanAttributeKey.OUTPUTS
_OK: Final = SpanStatus(SpanStatusCode.OK)
# Texts in JSON that MLflow may store as attachments: data URIs, base64, the repr of bytes, its own `Attachment`.
_MEDIA: Final = re.compile(r""""(?:data:|[A-Za-z0-9+/=_-]{64}|b['\\]|<mlflow\.)""")


class GuardedSpan:
    """A live span that applies the mask and the size limit to content before MLflow receives it.

    Without a mask, content is stored as soon as it is set. With one, inputs and outputs are held until the end and
    masked once. An exception is stored with the message that the mask returns and without its traceback; other events
    are not stored. Of the attributes, those in `safe` and MLflow's own are stored, or all if `safe` is None.

    `media` converts the media in JSON data to the form that MLflow stores as attachments.
    """

    def __init__(
        self,
        span: LiveSpan,
        mask: Mask | None,
        media: Callable[[Any], Any],
        *,
        safe: Container[str] | None = None,
    ) -> None:
        self.span = span
        self.mask = mask
        self.kept: dict[str, Any] = {}  # "inputs" and "outputs" as the mask returned them
        self.cut: list[str] = []  # "inputs" or "outputs", if it was too long
        self.has_media = False
        self._media = media
        self._safe = safe
        self._held: dict[str, Any] = {}
        self._error_type: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.span, name)

    def set_inputs(self, inputs: Any) -> None:
        """Store the inputs, or hold them for the mask."""
        self._set("inputs", inputs)

    def set_outputs(self, outputs: Any) -> None:
        """Store the outputs, or hold them for the mask."""
        self._set("outputs", outputs)

    def set_attribute(self, key: str, value: Any) -> None:
        """Store an attribute, if it may be stored; a value that cannot be read costs this attribute alone."""
        try:
            if key in (_INPUTS, _OUTPUTS):
                self._set("inputs" if key == _INPUTS else "outputs", value)
            elif self.mask is None or self._safe is None or key.startswith("mlflow.") or key in self._safe:
                self.span.set_attribute(key, _well_formed(within_limit(value)))
        except Exception as error:  # noqa: BLE001 - the rest of the span is still worth storing
            warn_incomplete(error)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Store the attributes that may be stored."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, event: SpanEvent) -> None:
        """Store an event. With a mask, store none, but keep the type of an exception for the end of the span."""
        if self.mask is None:
            self._store_event(event)
        elif event.name == "exception":
            self._error_type = str(event.attributes["exception.type"])

    def record_exception(self, error: str | Exception) -> None:
        """Store an exception, as `add_event` does."""
        self.add_event(SpanEvent.from_exception(Exception(error) if isinstance(error, str) else error))

    def end(self, status: SpanStatus = _OK, end_time_ns: int | None = None) -> None:
        """Store what was held for the mask, and end the span. An error of the mask or the content is only logged."""
        self.span.end(status=self.store_held(status), end_time_ns=end_time_ns)

    def store_held(self, status: SpanStatus) -> SpanStatus:
        """Store what was held for the mask; return the status, with its text masked and cut."""
        try:
            if self.span.trace_id == NO_OP_SPAN_TRACE_ID:
                return status
            if self.mask is None:
                return SpanStatus(status.status_code, self._limited(status.description or ""))
            return self._apply(self.mask, status)
        except Exception as error:  # noqa: BLE001 - the rest of the span is still worth storing
            warn_incomplete(error)
            return SpanStatus(status.status_code, self._error_type or "")

    def _apply(self, mask: Mask, status: SpanStatus) -> SpanStatus:
        failed = status.status_code == SpanStatusCode.ERROR
        outputs = {"error": status.description} if failed else self._held.get("outputs")
        self.kept = kept = masked(mask, self._held.get("inputs"), outputs)
        if "inputs" in kept:
            self._store("inputs", kept["inputs"])
        if not failed:
            if "outputs" in kept:
                self._store("outputs", kept["outputs"])
            return status
        kind, error = self._error_type or "Error", kept.get("outputs")
        kept_message = error.get("error") if isinstance(error, Mapping) else None
        message = kept_message if isinstance(kept_message, str) else kind
        attributes: dict[str, Any] = {"exception.message": message, "exception.type": kind}
        self._store_event(SpanEvent(name="exception", attributes=attributes))  # type: ignore[abstract] # as MLflow does
        return SpanStatus(status.status_code, self._limited(message))

    def _store_event(self, event: SpanEvent) -> None:
        self.span.add_event(replace(event, attributes=_well_formed(within_limit(event.attributes))))

    def _limited(self, text: str) -> str:
        message = within_limit(text)
        if message is not text:
            self.cut.append("outputs")
        return well_formed(message)

    def _set(self, name: str, content: Any) -> None:
        try:
            if content is None or self.span.trace_id == NO_OP_SPAN_TRACE_ID:
                return
            if self.mask is None:
                self._store(name, self._json_data(content) if settings().max_content else content)
            else:
                self._held[name] = self._json_data(content)
        except Exception as error:  # noqa: BLE001 - the rest of the span is still worth storing
            warn_incomplete(error)

    def _json_data(self, value: Any) -> Any:
        """Return a value as the JSON data that MLflow would store, for the mask and the limit."""
        return self._media(json.loads(dump_span_attribute_value(value)))

    def _store(self, name: str, whole: Any) -> None:
        content = within_limit(whole)
        if content is not whole:
            self.cut.append(name)
        self.has_media |= _write(self.span, _INPUTS if name == "inputs" else _OUTPUTS, content, self._media)


def _write(span: LiveSpan, key: str, content: Any, media: Callable[[Any], Any]) -> bool:
    """Write inputs or outputs to MLflow's span; return whether they may contain media."""
    text = dump_span_attribute_value(content)
    if (kept := well_formed(text)) != text:  # upstream: mlflow 3.12-3.18: a lone surrogate loses the trace
        content = json.loads(kept)
    if _MEDIA.search(text) is None:
        # upstream: mlflow 3.12-3.18: set_inputs searches each value for media, which takes 50 ms for a megabyte.
        span.set_attribute(key, content)
        return False
    store = span.set_inputs if key == _INPUTS else span.set_outputs
    store(content)
    stored = span.get_attribute(key)
    if (changed := media(stored)) != stored:
        store(changed)
    return True


def is_attachment(value: object) -> bool:
    """Whether a stored value is MLflow's reference to an attachment."""
    return isinstance(value, str) and value.startswith("mlflow-attachment://")


def bare_media(given: Any, stored: Any, path: tuple[str | int, ...] = ()) -> Iterator[list[str | int]]:
    """Yield the paths to those attachments in a stored value that replace plain base64, not a data URI."""
    if isinstance(stored, dict) and isinstance(given, Mapping):
        for key, value in stored.items():
            yield from bare_media(given.get(key), value, (*path, key))
    elif isinstance(stored, list) and isinstance(given, list):
        for index, pair in enumerate(zip(given, stored, strict=False)):
            yield from bare_media(*pair, (*path, index))
    elif is_attachment(stored) and isinstance(given, str) and not given.startswith("data:"):
        yield list(path)


def warn_incomplete(error: Exception) -> None:
    """Warn once that a part of a span's content could not be stored."""
    warn_once("content", "A span is stored without all of its content: %r", error)


def masked(mask: Mask, inputs: object, outputs: object) -> dict[str, Any]:
    """Return the ``inputs`` and ``outputs`` that the mask returned, or nothing if it failed."""
    try:
        kept = mask({"inputs": inputs, "outputs": outputs})
    except Exception as error:  # noqa: BLE001 - the user's function; the error's message may hold what the mask should hide
        warn_once("mask", "The mask raised %s: spans are stored without inputs and outputs", type(error).__name__)
        return {}
    if not isinstance(kept, Mapping):
        warn_once("mask result", "The mask returned no dict: spans are stored without inputs and outputs")
        return {}
    return {key: kept[key] for key in ("inputs", "outputs") if kept.get(key) is not None}


def within_limit(value: Any) -> Any:
    """Cut texts, and leave out media, that are longer than ``max_content``; the same object if nothing is too long."""
    limit = settings().max_content
    return replace_values(value, partial(_shortened, limit)) if limit else value


def _shortened(limit: int, text: Any) -> Any:
    if not isinstance(text, str) or len(text) <= limit:
        return text
    if kind := kind_of_media(text):
        return f"[{kind} of {len(text)} characters left out: max_content]"
    return f"{text[:limit]}… [{len(text) - limit} more characters: max_content]"


def _well_formed(value: Any) -> Any:
    """Return a value, or JSON data without lone surrogates if it contains any, since no store can hold them."""
    text = dump_span_attribute_value(value)
    return value if (kept := well_formed(text)) == text else json.loads(kept)
