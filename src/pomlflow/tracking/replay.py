"""A trace's POML renders, done once more and compared."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Trace, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.attachments import Attachment
from mlflow.tracing.client import TracingClient
from typing_extensions import override

from pomlflow.exceptions import PomlError, TraceNotFoundError
from pomlflow.record import RenderRecord
from pomlflow.settings import settings
from pomlflow.template import Template
from pomlflow.template.history import REQUEST, RESPONSE, History
from pomlflow.template.whitespace import protect, restore
from pomlflow.tracking.background import shown
from pomlflow.tracking.compare import Difference, differences
from pomlflow.tracking.follow import open_prompt
from pomlflow.tracking.spans import span_content
from pomlflow.tracking.stored import LostContentError, StoredRender, facts_of

__all__ = ["Replay", "ReplayedRender", "replay"]

_MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "BAD_REQUEST", "INVALID_PARAMETER_VALUE"}
# What makes the same markup and variables come out otherwise another time, or elsewhere.
_OUTSIDE = re.compile(
    r"\b(Date|Math\.random|performance|crypto|process|fetch|globalThis|toLocale\w+|Intl|localeCompare)\b"
)


@dataclass(frozen=True)
class ReplayedRender:
    """One render of a trace, done once more.

    Attributes:
        span_id: Its span in the trace.
        title: The span's name, ``poml support.answer``.
        path: The prompt's file, relative to the prompt root; None for inline markup.
        outcome: ``"identical"``; ``"different"``; or ``"incomplete"`` where the trace does not hold enough of it to be
            rendered or compared.
        differences: Where it differs.
        reasons: Why, as far as that is known.
        record: The render of now; None where there was none.
    """

    span_id: str
    title: str
    path: str | None
    outcome: Literal["identical", "different", "incomplete"]
    differences: tuple[Difference, ...] = ()
    reasons: tuple[str, ...] = ()
    record: RenderRecord | None = None

    def __str__(self) -> str:
        place = f" ({self.path})" if self.path else ""
        lines = [f"{self.title}{place}: {self.outcome}"]
        for told in (*map(str, self.differences), *(f"because {reason}" for reason in self.reasons)):
            lines += [f"  {line}" for line in told.split("\n")]
        return "\n".join(lines)


@dataclass(frozen=True)
class Replay:
    """What became of a trace's renders.

    Attributes:
        trace_id: The trace.
        renders: Each render, in the order of their starts.
    """

    trace_id: str
    renders: tuple[ReplayedRender, ...]

    @property
    def identical(self) -> bool:
        """Whether all of them came out as they did; False for a trace without any."""
        return bool(self.renders) and all(render.outcome == "identical" for render in self.renders)

    def __str__(self) -> str:
        if not self.renders:
            return f"{self.trace_id}: no POML render"
        outcomes = [render.outcome for render in self.renders]
        counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes)]
        return "\n".join([f"{self.trace_id}: {', '.join(counts)}", *map(str, self.renders)])


def replay(trace_id: str) -> Replay:
    """Render once more what was rendered in a trace, from the trace alone, and compare message by message.

    It takes the markup, the variables and the stylesheet from the trace, and files that the markup reads from where
    they lay, relative to the prompt root (`pomlflow.configure`), or out of the registry where they came from there or
    are gone; the trace knows their digests, and those that have changed are named. Histories of a framework's
    messages, bytes, NaN, kept whitespace and media are as they were. What the handler's mask, a span processor or a
    limit took out of the trace is lost: such a render is incomplete.

    A template is code (JavaScript in its expressions): replay traces of people whose templates you would run.

    Args:
        trace_id: The trace, in the store that MLflow is set to.

    Returns:
        The result; ``print`` shows it.

    Raises:
        TraceNotFoundError: There is no such trace.
        MlflowException: The store failed, or is away.

    Example:
        >>> print(replay("tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0"))
        tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0: 1 different
        poml support.answer (support/answer.poml): different
          messages[0].content
          - Be kind.
          + Be brief.
          because support/tone.poml has changed
    """
    trace = _fetch(trace_id)
    attachments = _Attachments(trace.info)
    stored = [render for span in trace.data.spans if (render := StoredRender.of(span)) is not None]
    return Replay(trace_id, tuple(_replayed(one, attachments) for one in sorted(stored, key=lambda one: one.start_ns)))


def _fetch(trace_id: str) -> Trace:
    client = MlflowClient()
    for last in (False, True):
        try:
            trace: Trace = client.get_trace(trace_id, display=False)
            if trace.info.state.value != "IN_PROGRESS" or last:
                return trace
        except MlflowException as error:
            half_stored = "artifact location" in error.message and not last  # mlflow 3.12: its spans are there already
            if error.error_code not in _MISSING and not half_stored:
                raise
            if last:
                store = shown(mlflow.get_tracking_uri())
                raise TraceNotFoundError(
                    f"no trace {trace_id} in {store} ({error.message}): choose its store with MLFLOW_TRACKING_URI or "
                    "mlflow.set_tracking_uri()"
                ) from error
        mlflow.flush_trace_async_logging()  # this process may have made it a moment ago
    raise AssertionError  # pragma: no cover


class _Attachments:
    """Reads what MLflow took out of a trace's spans."""

    def __init__(self, info: TraceInfo) -> None:
        self._info = info

    @cached_property
    def _store(self) -> Any:
        # MLflow (3.12 to 3.17) has no public way to an attachment; this is what its own judges use.
        return TracingClient()._get_artifact_repo_for_trace(self._info)

    def __call__(self, reference: str) -> bytes:
        known = Attachment.parse_ref(reference) or {}
        try:
            content: bytes = self._store.download_trace_attachment(known.get("attachment_id"))
        except Exception as error:
            kind = known.get("content_type", "unknown")
            raise LostContentError(f"an attachment ({kind}) is not in the artifact store: {error}") from error
        return content


class _StoredHistory(History[Mapping[str, Any]]):
    """A framework's messages as a trace has them: the descriptions that expressions saw."""

    native = type(None)  # what is a message is told by the trace

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    @override
    def take(self, variables: Mapping[str, Any], named: Sequence[str], passed: Sequence[str] = ()) -> Mapping[str, Any]:
        for name in self._names:
            self._marked(name, variables[name])
        return variables

    @override
    def convert(self, value: Any) -> list[Mapping[str, Any]]:
        """Take them as they are."""
        return list(value)

    @override
    def to_poml(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Put a description's calls, which stand beside its text, among its parts."""
        content = message.get("content", "")
        if isinstance(content, str):
            name = message.get("name") or ""
            if (call := message.get("tool_call_id")) is not None:
                content = [{"type": RESPONSE, "id": call, "name": name, "content": content}]
            elif calls := message.get("tool_calls"):
                requests = [{"type": REQUEST, **_call(one)} for one in calls]
                content = [content, *requests] if content else requests
        return {"speaker": message["speaker"], "content": content}

    @override
    def describe(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Give a description as it was."""
        return dict(message)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": call["id"] or "", "name": call["name"], "content": call["args"]}


def _replayed(stored: StoredRender, attachments: _Attachments) -> ReplayedRender:
    head = stored.span_id, stored.title, stored.path
    try:
        template, record = _rendered(stored, stored.read_inputs(attachments))
    except LostContentError as lost:
        return ReplayedRender(*head, "incomplete", reasons=(str(lost),))
    try:
        found = tuple(_compared(stored, record, attachments))
    except LostContentError as lost:
        return ReplayedRender(*head, "incomplete", reasons=(str(lost),), record=record)
    if not found:
        return ReplayedRender(*head, "identical", record=record)
    reasons = tuple(_reasons(stored, template, record)) or (_UNKNOWN,)
    return ReplayedRender(*head, "different", found, reasons, record)


_UNKNOWN = (
    "of no reason that the trace tells: the markup, the files that it names and the versions are the same; a variable "
    "may have been redacted after the render (by a span processor), or name a file that has changed"
)


def _template(stored: StoredRender, inputs: Mapping[str, Any]) -> Template:
    """The trace's markup, with its files: those beside it, or the registry's where they were that or are gone."""
    folder = (settings().prompt_root or Path.cwd()) / (stored.folder or ".")
    options: dict[str, Any] = {"stylesheet": inputs.get("stylesheet"), "chat": stored.facts.get("chat", True)}
    uri, files = stored.attributes.get("poml.prompt"), stored.facts.get("files", {})
    if files and uri and ("version" in stored.facts or not all((folder / path).exists() for path in files)):
        with suppress(PomlError):
            registered = Template(origin=open_prompt(uri), **options)
            if registered.digest == stored.attributes["poml.digest"]:
                return registered
    return Template(inputs["prompt"], base_dir=folder, **options)


def _rendered(stored: StoredRender, inputs: Mapping[str, Any]) -> tuple[Template, RenderRecord]:
    template = _template(stored, inputs)
    variables: Mapping[str, Any] = inputs["context"]
    hidden: tuple[str, ...] = ()
    if stored.facts.get("spaced"):
        variables, hidden = protect(variables, template.current(), template.stylesheet)
    names = [name for name in stored.facts.get("natives", ()) if name in variables]
    record = template.render(variables, history=_StoredHistory(names))
    return template, restore(record, hidden)


def _compared(stored: StoredRender, record: RenderRecord, attachments: _Attachments) -> Iterator[Difference]:
    if stored.cut("outputs"):
        raise LostContentError(
            "it renders, but what it gave was cut when it was stored (pomlflow.configure(max_content=…))"
        )
    if stored.error is not None or record.error is not None:
        if stored.masked("outputs"):
            raise LostContentError("the handler's mask changed the error before it was stored")
        then, now = _problem_then(stored), _problem_now(record.error)
        if then != now:
            yield Difference("error", then, now)
        return
    if stored.masked("outputs"):
        raise LostContentError("it renders, but the handler's mask changed the messages before they were stored")
    if not isinstance(stored.outputs, dict):
        raise LostContentError("it renders, but the messages are not in the trace, or were cut short")
    yield from differences(stored.outputs, span_content(record)["outputs"], attachments)


def _problem_then(stored: StoredRender) -> str | None:
    line, column = (stored.attributes.get(f"poml.error.{place}") for place in ("line", "column"))
    return None if stored.error is None else _problem(stored.error, line, column)


def _problem_now(error: PomlError | None) -> str | None:
    line, column = (getattr(error, place, None) for place in ("line", "column"))
    return None if error is None else _problem(str(error), line, column)


def _problem(text: str, line: int | None, column: int | None) -> str:
    """An error without its file, which is another one on another machine."""
    first = text.split("\n", 1)[0]
    return ":".join([*(str(place) for place in (line, column) if place is not None), first.partition(": ")[2] or first])


def _reasons(stored: StoredRender, template: Template, record: RenderRecord) -> Iterator[str]:
    for what, then, now in (
        ("poml", stored.attributes.get("poml.version", ""), record.poml_version),
        ("pomlflow", stored.facts.get("pomlflow", "before 0.1.0"), facts_of(record)["pomlflow"]),
        ("the engine", stored.attributes.get("poml.engine"), record.engine),
    ):
        if then != now:
            yield f"{what} was {then}, and is {now} now"
    yield from _changed_files(stored, template, record)
    for expression in template.inference.expressions:
        if found := _OUTSIDE.search(expression):
            yield f"{{{{ {expression} }}}} depends on more than the trace ({found[0]})"
    for source in re.findall(r"""\bsrc\s*=\s*["']([^"']*\{\{[^"']*)["']""", record.source):
        yield f'src="{source}" names a file by a variable: the trace does not tell what it held'


def _changed_files(stored: StoredRender, template: Template, record: RenderRecord) -> Iterator[str]:
    if template.base_dir is None:  # out of the registry, as it was
        return
    folder = template.base_dir
    here = {file.path: file for file in record.files}
    then = stored.facts.get("files", {})
    if then and not folder.is_dir():
        yield f"there is no folder {folder}: run it in the prompt root, or set pomlflow.configure(prompt_root=…)"
        return
    for path, digest in then.items():
        file, shown = folder / path, posixpath.normpath(posixpath.join(stored.folder or "", path))
        if not file.exists():
            yield f"{shown} is not there any more ({file})"
        elif path not in here or not here[path].sha256.startswith(digest):
            changed = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
            yield f"{shown} has changed: it was written at {changed:%Y-%m-%d %H:%M:%S}"
