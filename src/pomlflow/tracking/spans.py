"""Store a render record as an MLflow span.

The span's shape is the same under every framework; an adapter only chooses its parent.

======================  ==============================================================================================
name                    ``poml <prompt name>``; only ``poml`` for a prompt without a name, and for every root span
type                    ``PROMPT``
inputs                  ``prompt`` (the markup), ``context`` (the variables), ``stylesheet`` (null where none was given)
outputs                 ``messages`` in OpenAI's shape with POML's ``speaker``; ``tools``, ``schema``, ``runtime`` where
                        the prompt has them
``poml.digest``         SHA-256 of the markup and of the files that it names
``poml.path``           the file, relative to the prompt root; absent for inline markup
``poml.version``        of the ``poml`` package
``poml.prompt.name``    the prompt's name in the registry; absent for a prompt without one
``poml.prompt``         ``prompts:/name/version``, if the version was known when the span ended
``poml.error``          the message of a failed render; ``poml.error.file``, ``.line`` and ``.column`` are its position
``poml.replay``         what `pomlflow.replay` needs in addition: about fifty bytes, and eighty for each file
======================  ==============================================================================================
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, Final, cast

import mlflow
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
from mlflow.environment_variables import MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE, MLFLOW_TRACE_BUFFER_MAX_SIZE
from mlflow.tracing import provider
from opentelemetry.trace import INVALID_SPAN, Span

from pomlflow._log import warn_once
from pomlflow._version import __version__
from pomlflow.dispatch import Mask
from pomlflow.frame.media import base64_to_data_uris
from pomlflow.frame.openai import trace_messages
from pomlflow.record import RenderRecord
from pomlflow.tracking.experiment import start_span
from pomlflow.tracking.links import trace_manager
from pomlflow.tracking.publish import publisher
from pomlflow.tracking.redaction import GuardedSpan, bare_media, warn_incomplete
from pomlflow.tracking.shutdown import enlarge_span_queue, handle_sigterm

SPAN_TYPE: Final = "PROMPT"
_DIGEST_LENGTH: Final = 32  # hexadecimal digits: enough to see that a file has changed

# upstream: mlflow 3.13-3.18: the trace page hides spans of unknown types below this log level.
_INFO: Final = 20
_BUFFER: Final = 100_000  # running traces, and export tasks, that MLflow's buffers hold; its default is 1,000


def log_render(
    record: RenderRecord,
    *,
    parent: LiveSpan | None,
    register: bool = True,
    mask: Mask | None = None,
    root: bool = False,
) -> None:
    """Store one render as a span below `parent`, else below the active span; with `root`, as a trace of its own.

    `register` applies if the template does not set it; `mask` returns those inputs and outputs that may be stored. A
    failure is logged, once per kind.
    """
    try:
        _enlarge_buffers()
        span = _start(record, None if root else parent or mlflow.get_current_active_span(), root=root)
        if span.trace_id == NO_OP_SPAN_TRACE_ID:  # tracing is off here, or this trace was not sampled
            return
        status = SpanStatus(SpanStatusCode.ERROR if record.error else SpanStatusCode.OK)
        try:
            span.set_attributes(dict(_attributes(record)))
            status = _fill(GuardedSpan(span, mask, base64_to_data_uris), record)
            register = register if record.register is None else record.register
            version = publisher.link(record, span.trace_id, register=register)
            if version is not None:
                span.set_attribute("poml.prompt", version.uri)
        except Exception as error:  # noqa: BLE001 - the rest of the span is still worth storing
            warn_incomplete(error)
        finally:
            span.end(status=status, end_time_ns=record.end_ns)
    except Exception as error:  # noqa: BLE001 - telemetry never raises into the user's call
        warn_once("span", "A render could not be traced: %r", error)


@contextmanager
def active(span: Span) -> Iterator[None]:
    """Make an OpenTelemetry span the active one, the default parent; with ``INVALID_SPAN``, no span is active."""
    token = provider.set_span_in_context(cast("LiveSpan", SimpleNamespace(_span=span)))
    try:
        yield
    finally:
        provider.detach_span_from_context(token)


def nearest(span: LiveSpan) -> LiveSpan:
    """Return the active span if it is a descendant of this one (as by ``@mlflow.trace``), else this one."""
    inner = found = mlflow.get_current_active_span()
    while found is not None and found.trace_id == span.trace_id and found.span_id != span.span_id:
        if found.parent_id == span.span_id:
            return cast("LiveSpan", inner)
        found = trace_manager().get_span_from_id(found.trace_id, found.parent_id) if found.parent_id else None
    return span


def _start(record: RenderRecord, parent: LiveSpan | None, *, root: bool) -> LiveSpan:
    with active(INVALID_SPAN) if root else nullcontext():
        return start_span(
            parent,
            name="poml" if parent is None or record.name is None else f"poml {record.name}",
            span_type=SPAN_TYPE,
            start_time_ns=record.start_ns,
        )


def _attributes(record: RenderRecord) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that hold no content, to which no mask applies."""
    yield "poml.digest", record.digest
    if record.path is not None:
        yield "poml.path", record.path
    if record.poml_version:
        yield "poml.version", record.poml_version
    if record.name is not None:
        yield "poml.prompt.name", record.name
    if record.name is not None and record.version is not None:
        yield "poml.prompt", f"prompts:/{record.name}/{record.version}"
    yield "mlflow.spanLogLevel", _INFO
    for field in ("file", "line", "column"):
        if (value := getattr(record.error, field, None)) is not None:
            yield f"poml.error.{field}", value


def _fill(span: GuardedSpan, record: RenderRecord) -> SpanStatus:
    """Store inputs, outputs and the facts for a replay; return the status, with its text masked and cut."""
    error, content = record.error, span_content(record)
    status = SpanStatus(SpanStatusCode.OK)
    span.set_inputs(content["inputs"])
    if error is None:
        span.set_outputs(content["outputs"])
    else:
        span.add_event(SpanEvent.from_exception(error))
        status = SpanStatus(SpanStatusCode.ERROR, str(error))
    status = span.store_held(status)
    if error is not None:
        span.span.set_attribute("poml.error", status.description)  # masked and cut as the status is
    masked = [key for key, value in content.items() if span.mask and span.kept.get(key) != base64_to_data_uris(value)]
    facts = {
        "pomlflow": __version__,
        # The folder of relative sources, from the prompt root; absent if it is the folder of `poml.path`.
        "folder": None if record.folder == folder_of(record.path) else record.folder,
        "files": {file.path: file.sha256[:_DIGEST_LENGTH] for file in record.files},
        "version": record.version,  # the rendered version, if the prompt came from the registry
        "runtime": dict(record.added_runtime),  # the settings from the model config of that version
        "chat": None if record.chat else False,
        "natives": list(record.message_variables),  # variables with messages of the framework
        "spaced": record.kept_whitespace or None,  # whether whitespace was kept
        # The paths in the inputs where an attachment replaces base64 that was not in a data URI.
        "bare": list(bare_media(content["inputs"], span.inputs)) if span.has_media else [],
        "cut": sorted({*span.cut, *masked}),  # what the mask or `max_content` changed
    }
    span.set_attribute("poml.replay", {key: fact for key, fact in facts.items() if fact not in (None, {}, [])})
    return status


def folder_of(path: str | None) -> str:
    """Return the folder of a prompt's path; the prompt root (``.``) for inline markup."""
    return posixpath.dirname(path or "") or "."


def prepare() -> None:
    """Prepare MLflow for traces, before the first one."""
    _enlarge_buffers()
    handle_sigterm()


@cache
def _enlarge_buffers() -> None:
    """Enlarge the buffers that MLflow makes from now on, in which a large `batch` would not find room.

    This changes their defaults and not the environment, which subprocesses would inherit.
    """
    # upstream: mlflow 3.12-3.18: a trace that is evicted from its buffer is dropped without a warning.
    enlarge_span_queue(_BUFFER)
    for limit in (MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE, MLFLOW_TRACE_BUFFER_MAX_SIZE):
        limit.default = max(limit.default, _BUFFER)


def span_content(record: RenderRecord) -> dict[str, Any]:
    """Return the content of a render's span: ``inputs`` and ``outputs``, which are ``{"error": …}`` if it failed."""
    stylesheet = None if record.stylesheet is None else dict(record.stylesheet)
    return {
        "inputs": {"prompt": record.source, "context": dict(record.variables), "stylesheet": stylesheet},
        "outputs": {"error": str(record.error)} if record.error else _outputs(record),
    }


def _outputs(record: RenderRecord) -> dict[str, Any] | None:
    if record.output is None:
        return None
    extras = {key: record.output[key] for key in ("tools", "schema", "runtime") if record.output.get(key) is not None}
    return {"messages": trace_messages(record.output["messages"]), **extras}
