"""A render record as an MLflow span.

The span's shape is the same under every framework; an adapter only says which span it belongs under.

What a reader of traces can rely on:

======================  ==============================================================================================
name                    ``poml <prompt name>``; ``poml`` for a prompt without a name and for a trace of its own
type                    ``PROMPT``
inputs                  ``prompt`` (the markup), ``context`` (the variables), ``stylesheet`` where one was given
outputs                 ``messages`` in OpenAI's shape with POML's ``speaker``; ``tools``, ``schema``, ``runtime`` where
                        the prompt has them
``poml.digest``         SHA-256 of the markup and of the files that it names
``poml.path``           the file, relative to the prompt root; not there for inline markup
``poml.version``        of the ``poml`` package
``poml.engine``         ``warm`` or ``poml``
``poml.prompt``         ``prompts:/name/version``, where the version was known before the span ended
``poml.error``          what POML says of a failed render, and ``poml.error.file``, ``.line``, ``.column``
``poml.replay``         what `pomlflow.replay` needs beside all that (`pomlflow.tracking.facts`)
======================  ==============================================================================================
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import mlflow
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
from mlflow.tracing import provider
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils import dump_span_attribute_value
from opentelemetry.trace import INVALID_SPAN, Span

from pomlflow.dispatch import Mask
from pomlflow.frame.openai import shown_messages
from pomlflow.record import RenderRecord, well_formed
from pomlflow.tracking.facts import ATTRIBUTE, bare_media, facts_of
from pomlflow.tracking.redaction import event_within_limit, within_limit
from pomlflow.tracking.shutdown import finish_at_the_end

__all__ = [
    "SPAN_TYPE",
    "Mask",
    "active",
    "log_render",
    "masked",
    "masked_exception",
    "span_content",
    "store_content",
    "version_wait",
    "warn_once",
    "within",
]

SPAN_TYPE = "PROMPT"

_log = logging.getLogger("pomlflow")
_said: set[str] = set()
# The first characters of such a file in base64; RIFF is WebP or WAVE, which its ninth byte tells.
_MAGIC = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "JVBERi0": "application/pdf",
    "UklGR": "riff",
}
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# In JSON, what MLflow may make an attachment of: a data URI, base64, bytes as Python writes them, its own `Attachment`.
_MEDIA = re.compile(r""""(?:data:|[A-Za-z0-9+/=_-]{64}|b['\\]|<mlflow\.)""")
# MLflow's page hides what is below: from 3.13 on spans of types that it does not know are for debugging.
_INFO = 20
_VERSION_WAIT = 0.005  # seconds
_LONG = 256  # characters: below, an attachment of its own costs more than the text


def log_render(
    record: RenderRecord,
    *,
    parent: LiveSpan | None,
    register: bool = True,
    mask: Mask | None = None,
    root: bool = False,
) -> None:
    """Store one render as a span. Never raises: a failure is logged, once per kind.

    Args:
        record: The render.
        parent: The span that it belongs under; None for the active one, and a trace of its own where none is active.
        register: Whether to register the prompt and link its version, where the template does not say.
        mask: What may be stored of inputs and outputs.
        root: Whether to make a trace of its own, whatever is active.

    Example:
        >>> log_render(Template("<p>Hello {{name}}</p>").render({"name": "Ada"}), parent=None)
    """
    try:
        finish_at_the_end()
        span = _start(record, None if root else parent or mlflow.get_current_active_span(), root=root)
        if span.trace_id == NO_OP_SPAN_TRACE_ID:  # tracing is off here, or this trace was not sampled
            return
        status = SpanStatus(SpanStatusCode.ERROR if record.error else SpanStatusCode.OK)
        try:
            # At once, as MLflow writes each: it makes a JSON encoder for every one (3.12 to 3.17), 15 µs.
            cast("Span", span._span).set_attributes({key: json.dumps(value) for key, value in _attributes(record)})
            status.description = _fill(span, record, mask)
            _link(span, record, register)
        except Exception as error:  # noqa: BLE001 - what is there of the span is still worth storing
            warn_once("content", "a poml span is stored without all of its content: %r", error)
        finally:
            span.end(status=status, end_time_ns=record.end_ns)
    except Exception as error:  # noqa: BLE001 - telemetry never hurts
        warn_once("span", "a render could not be traced: %r", error)


def warn_once(kind: str, message: str, *arguments: object) -> None:
    """Log at WARNING, once in a process for each kind: a render may fail to be traced a thousand times a minute."""
    if kind not in _said:
        _said.add(kind)
        _log.warning(message + " (said once)", *arguments)


@contextmanager
def active(span: Span) -> Iterator[None]:
    """Make another span the active one: MLflow takes it for the parent of a new span that is given none.

    Args:
        span: OpenTelemetry's; ``INVALID_SPAN`` for none.
    """
    token = provider.set_span_in_context(cast("LiveSpan", SimpleNamespace(_span=span)))
    try:
        yield
    finally:
        provider.detach_span_from_context(token)


def within(span: LiveSpan, outer: LiveSpan) -> bool:
    """Whether a span is a descendant of another, as far as MLflow has them in memory."""
    traces = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call]
    found: LiveSpan | None = span
    while found is not None and found.trace_id == outer.trace_id and found.parent_id is not None:
        if found.parent_id == outer.span_id:
            return True
        found = traces.get_span_from_id(found.trace_id, found.parent_id)
    return False


def _start(record: RenderRecord, parent: LiveSpan | None, *, root: bool) -> LiveSpan:
    def start() -> LiveSpan:
        return mlflow.start_span_no_context(
            name="poml" if parent is None or record.name is None else f"poml {record.name}",
            span_type=SPAN_TYPE,
            parent_span=parent,
            start_time_ns=record.start_ns,
        )

    if root:
        with active(INVALID_SPAN):
            return start()
    return start()


def _attributes(record: RenderRecord) -> Iterator[tuple[str, Any]]:
    yield "poml.digest", record.digest
    if record.path is not None:
        yield "poml.path", record.path
    if record.poml_version:
        yield "poml.version", record.poml_version
    yield "poml.engine", record.engine
    yield "mlflow.spanLogLevel", _INFO
    for place in ("file", "line", "column"):
        if (value := getattr(record.error, place, None)) is not None:
            yield f"poml.error.{place}", value


def _fill(span: LiveSpan, record: RenderRecord, mask: Mask | None) -> str:
    """Write what the mask leaves of inputs and outputs (MLflow takes images out of them), and give the error's text."""
    error = record.error
    given = kept = span_content(record)
    facts = facts_of(record)
    if mask is not None:
        kept = masked(mask, **copy.deepcopy(given))
        facts["masked"] = [key for key, value in given.items() if kept.get(key) != value]
    whole, kept = kept, within_limit(kept)
    facts["cut"] = [key for key, value in whole.items() if kept[key] is not value]
    if (inputs := kept.get("inputs")) is not None and store_content(
        span, SpanAttributeKey.INPUTS, inputs, _offloadable
    ):
        facts["bare"] = list(bare_media(inputs, span.inputs))
    span.set_attribute(ATTRIBUTE, {key: fact for key, fact in facts.items() if fact != []})
    if error is None:
        if (outputs := kept.get("outputs")) is not None:
            store_content(span, SpanAttributeKey.OUTPUTS, outputs)
        return ""
    event = masked_exception(type(error).__name__, kept) if mask else SpanEvent.from_exception(error)
    event = event_within_limit(event)
    message = str(event.attributes["exception.message"])
    span.add_event(event)
    span.set_attribute("poml.error", message)
    return message


def version_wait() -> float:
    """Seconds that a render may wait for its prompt's version: then a first trace is linked when it is exported."""
    return _VERSION_WAIT if asyncio._get_running_loop() is None else 0.0


def masked(mask: Mask, inputs: object, outputs: object) -> dict[str, Any]:
    """Ask the mask what may be stored; nothing of it where the mask fails.

    Args:
        mask: The user's.
        inputs: Plain data, the mask's own to change; None where there are none.
        outputs: The same.

    Returns:
        ``inputs`` and ``outputs`` as far as the mask gave them.
    """
    try:
        kept = mask({"inputs": inputs, "outputs": outputs})
    except Exception as error:  # noqa: BLE001 - the user's function; its message may hold what it was to hide
        warn_once("mask", "the mask raised %s: spans are stored without inputs and outputs", type(error).__name__)
        return {}
    if not isinstance(kept, Mapping):
        warn_once("mask result", "the mask gave no dict: spans are stored without inputs and outputs")
        return {}
    return {key: kept[key] for key in ("inputs", "outputs") if kept.get(key) is not None}


def masked_exception(kind: str, kept: Mapping[str, Any]) -> SpanEvent:
    """Give an exception's event with the message that the mask left, and without a traceback, which shows values.

    Args:
        kind: The type of what was raised.
        kept: What `masked` gave for outputs of ``{"error": …}``.
    """
    outputs = kept.get("outputs")
    message = outputs.get("error") if isinstance(outputs, Mapping) else None
    text = message if isinstance(message, str) else kind
    return SpanEvent(  # type: ignore[abstract]  # MLflow makes them so itself
        name="exception", attributes={"exception.message": text, "exception.type": kind}
    )


def _link(span: LiveSpan, record: RenderRecord, register: bool) -> None:
    if not (register if record.register is None else record.register):
        return
    from pomlflow.tracking.publish import PromptRegistry

    def known(version: Any) -> None:
        if span.end_time_ns is None:  # it may come late
            span.set_attribute("poml.prompt", version.uri)

    PromptRegistry.shared().link(record, span.trace_id, wait=version_wait(), on_version=known)


def span_content(record: RenderRecord) -> dict[str, Any]:
    """What a render's span holds: ``inputs`` and ``outputs``, which are ``{"error": …}`` where it failed."""
    error = record.error
    return {"inputs": _inputs(record), "outputs": {"error": str(error)} if error else _outputs(record)}


def _inputs(record: RenderRecord) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt": record.source, "context": dict(record.variables)}
    if record.stylesheet is not None:
        inputs["stylesheet"] = dict(record.stylesheet)
    return inputs


def _outputs(record: RenderRecord) -> dict[str, Any] | None:
    if record.output is None:
        return None
    extras = {key: record.output[key] for key in ("tools", "schema", "runtime") if record.output.get(key) is not None}
    return {"messages": shown_messages(record.output["messages"]), **extras}


def store_content(span: LiveSpan, key: str, content: Any, prepare: Callable[[Any], Any] | None = None) -> bool:
    """Store a span's inputs or outputs, with their media as attachments.

    MLflow (3.12 to 3.17) looks for media in every value, and once more in what the value is as JSON, in Python: 50 ms
    for a megabyte of rows. One look at the JSON takes 1 ms, and where it finds nothing, MLflow need not look.

    Args:
        span: The span.
        key: `SpanAttributeKey.INPUTS` or `SpanAttributeKey.OUTPUTS`.
        content: The inputs or outputs.
        prepare: What is done to those that may hold media, before MLflow looks for them.

    Returns:
        Whether there may be media in them.
    """
    text = dump_span_attribute_value(content)
    if (sound := well_formed(text)) != text:  # MLflow (3.12 to 3.17) could not send the trace to its store
        text, content = sound, json.loads(sound)
    if _MEDIA.search(text) is None:
        cast("Span", span._span).set_attribute(key, text)
        return False
    store = span.set_inputs if key == SpanAttributeKey.INPUTS else span.set_outputs
    store(content if prepare is None else prepare(content))
    return True


def _offloadable(value: Any) -> Any:
    """Turn bare base64 of images, audio and PDF into data URIs: MLflow stores those, and only those, as attachments."""
    if isinstance(value, str):
        return _data_uri(value) if len(value) >= _LONG else value
    if isinstance(value, dict):
        return {key: _offloadable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_offloadable(item) for item in value]
    return value


def _data_uri(text: str) -> str:
    kind = next((kind for magic, kind in _MAGIC.items() if text.startswith(magic)), None)
    data = text if kind is None else text.replace("\r", "").replace("\n", "")  # as base64.encodebytes breaks it
    if kind is None or len(data) % 4 or not _BASE64.fullmatch(data):
        return text
    if kind == "riff":
        kind = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(base64.b64decode(data[:16])[8:])
    return f"data:{kind};base64,{data}" if kind else text
