"""Render the prompts of a stored trace again, and compare the results with those in the trace."""

from __future__ import annotations

import base64
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Span, Trace, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracing.attachments import Attachment
from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri
from typing_extensions import override

from pomlflow._version import __version__
from pomlflow.content import REQUEST, RESPONSE
from pomlflow.display import replay_html, short
from pomlflow.engine.file_access import trusted_roots
from pomlflow.exceptions import ConfigurationError, PomlError, TraceNotFoundError
from pomlflow.record import RenderRecord
from pomlflow.settings import settings
from pomlflow.template import Template
from pomlflow.template.history import History
from pomlflow.tracking.compare import Difference, Fetch, compare
from pomlflow.tracking.follow import open_prompt
from pomlflow.tracking.redaction import is_attachment
from pomlflow.tracking.shutdown import flush
from pomlflow.tracking.spans import folder_of, span_content
from pomlflow.tracking.stores import redacted

_NOT_FOUND: Final = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "BAD_REQUEST", "INVALID_PARAMETER_VALUE"}
_FLUSH: Final = 30.0  # seconds to store this process's own traces first
_TOO_LARGE: Final = "[Attachment too large: "  # mlflow 3.12 to 3.18, under MLFLOW_TRACE_MAX_ATTACHMENT_SIZE
_UNCHANGED: Final = "none of the files and versions that the trace names has changed"
_REMEDY: Final = "run the replay in the prompt root or working folder of that time, or set POMLFLOW_PROMPT_ROOT to it"

_Path = tuple[str | int, ...]  # the keys and indices that lead to a value


class _LostContentError(Exception):
    """A part of a render is not in the trace; the message says which, and why."""


@dataclass(frozen=True)
class ReplayedRender:
    """One render of a trace, rendered again.

    Attributes:
        span_id: Its span in the trace.
        title: The span's name, ``poml support.answer``.
        path: The prompt's file, relative to the prompt root; None for inline markup.
        outcome: ``"identical"``; ``"different"``; or ``"incomplete"``, if the trace does not contain enough to render
            it or to compare it.
        differences: The places where the outputs differ.
        reasons: The files and versions that have changed; for an incomplete one, what the trace lacks.
        record: The new render; None if it could not be rendered.
    """

    span_id: str
    title: str
    path: str | None
    outcome: Literal["identical", "different", "incomplete"]
    differences: tuple[Difference, ...] = ()
    reasons: tuple[str, ...] = ()
    record: RenderRecord | None = None

    def __str__(self) -> str:
        path = f" ({self.path})" if self.path else ""
        lines = [f"{self.title}{path}: {self.outcome}"]
        for part in (*map(str, self.differences), *self.reasons):
            lines += [f"  {line}" for line in part.split("\n")]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return short(f"ReplayedRender({self.title!r}, path={self.path!r}, outcome={self.outcome!r})")

    def _repr_html_(self) -> str:
        return replay_html("Replay", [str(self)])


@dataclass(frozen=True)
class Replay:
    """The result of replaying a trace.

    Attributes:
        trace_id: The trace.
        renders: The renders, in the order in which they started.
    """

    trace_id: str
    renders: tuple[ReplayedRender, ...]

    @property
    def identical(self) -> bool:
        """Whether all renders came out the same; False for a trace without any."""
        return bool(self.renders) and all(render.outcome == "identical" for render in self.renders)

    @property
    def _summary(self) -> str:
        outcomes = [render.outcome for render in self.renders]
        counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes)]
        return f"{self.trace_id}: {', '.join(counts) or 'no POML render'}"

    def __str__(self) -> str:
        return "\n".join([self._summary, *map(str, self.renders)])

    def __repr__(self) -> str:
        return short(f"Replay({self._summary!r})")

    def _repr_html_(self) -> str:
        return replay_html(self._summary, map(str, self.renders))


def replay(trace_id: str, template: str | os.PathLike[str] | None = None) -> Replay:
    """Render again what was rendered in a trace, from the trace alone, and compare message by message.

    The markup, the variables and the stylesheet come from the trace. Files that the markup names are read from their
    paths relative to the prompt root (`pomlflow.configure`). They come from the registry if the prompt did, or if one
    of them is missing. The trace has the files' digests, so the result names files that have changed. Histories of a
    framework's messages, bytes, NaN, kept whitespace and media are restored. Content that the handler's mask, a span
    processor or a limit removed from the trace is lost, and such a render is incomplete.

    A template contains code (JavaScript expressions), and the template of a trace is not trusted. It is rendered in the
    processes that also render prompts of registries, and may read files only in the prompt root, the working folder
    and ``allow_read``.

    Args:
        trace_id: The trace, in the store that MLflow is set to.
        template: An edited file, to render in place of the trace's prompt of its path or name, or of the only one. It
            may read what any file of your own may.

    Returns:
        The result; ``print`` shows it.

    Raises:
        TraceNotFoundError: There is no such trace.
        TemplateNotFoundError: There is no such file.
        ConfigurationError: The trace has several prompts, and none has the file's name or path.
        MlflowException: The store failed or is unreachable.

    Example:
        >>> print(replay("tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0"))
        tr-5d2f8b1c9a6e4f70b3d4c5e6f7a8b9c0: 1 different
        poml support.answer (support/answer.poml): different
          messages[0].content
          - Be kind.
          + Be brief.
          support/tone.poml has changed: it was written at 2026-03-02 11:04:31
    """
    edited = None if template is None else Template(path=template)
    trace = _fetch_trace(trace_id)
    fetch = _attachment_reader(trace.info)
    spans = sorted(trace.data.spans, key=lambda span: span.start_time_ns)
    renders = [_StoredRender(span, fetch) for span in spans if "poml.digest" in span.attributes]
    if edited is not None:
        names = {edited.trace_path, edited.name}
        replaced = [render for render in renders if names & render.names or len(renders) == 1]
        if renders and not replaced:
            titles = ", ".join(dict.fromkeys(render.title for render in renders))
            raise ConfigurationError(f"{template} is none of the prompts of the trace {trace_id}: {titles}")
        for render in replaced:
            render.edited = edited
    return Replay(trace_id, tuple(render.replay() for render in renders))


def _fetch_trace(trace_id: str) -> Trace:
    flush(_FLUSH)  # this process may have made it a moment ago
    try:
        trace: Trace = MlflowClient().get_trace(trace_id, display=False)
    except MlflowException as error:
        if error.error_code not in _NOT_FOUND:
            raise
        raise TraceNotFoundError(
            f"no trace {trace_id} in {redacted(mlflow.get_tracking_uri())} ({error.message}): choose its store with "
            "MLFLOW_TRACKING_URI or mlflow.set_tracking_uri()"
        ) from error
    return trace


def _attachment_reader(info: TraceInfo) -> Fetch:
    @cache
    def repository() -> Any:
        uri, store = get_artifact_uri_for_trace(info), mlflow.get_tracking_uri()
        return get_artifact_repository(add_databricks_profile_info_to_artifact_uri(uri, store))  # type: ignore[no-untyped-call] # in MLflow

    def fetch(reference: str) -> bytes:
        parsed = Attachment.parse_ref(reference) or {}
        try:
            content: bytes = repository().download_trace_attachment(parsed.get("attachment_id"))
        except Exception as error:
            kind = parsed.get("content_type", "unknown")
            raise _LostContentError(f"an attachment ({kind}) is not in the artifact store: {error}") from error
        return content

    return fetch


class _StoredRender:
    """A render that is stored in a span."""

    def __init__(self, span: Span, fetch: Fetch) -> None:
        self._span = span
        self._fetch = fetch
        self._attributes = span.attributes
        facts = self._attributes.get("poml.replay")
        self._facts: Mapping[str, Any] = facts if isinstance(facts, dict) else {}
        self._cut = {*self._facts.get("cut", ()), *self._facts.get("masked", ())}  # stored as "masked" until 0.1
        self._path: str | None = self._attributes.get("poml.path")
        self._folder: str = self._facts.get("folder", folder_of(self._path)) or "."
        self.title: str = span.name
        self.edited: Template | None = None  # the user's file to render instead of the stored markup

    @property
    def names(self) -> set[str]:
        """The path and the name of the prompt."""
        return {name for key in ("path", "prompt.name") if (name := self._attributes.get(f"poml.{key}")) is not None}

    def replay(self) -> ReplayedRender:
        """Render again and compare."""
        head = self._span.span_id, self.title, self._path
        record = None
        try:
            template, record = self._render(self._inputs())
            differences = tuple(self._differences(record))
        except _LostContentError as error:
            return ReplayedRender(*head, "incomplete", reasons=(str(error),), record=record)
        if not differences:
            return ReplayedRender(*head, "identical", record=record)
        changes = (*self._changed_versions(record), *self._changed_files(template, record))
        return ReplayedRender(*head, "different", differences, changes or (_UNCHANGED,), record)

    def _inputs(self) -> dict[str, Any]:
        """Return ``prompt``, ``context`` and ``stylesheet`` as they were rendered, with the data of attachments."""
        if "inputs" in self._cut:
            raise _LostContentError("a mask or max_content changed the markup or the variables before they were stored")
        bare = {tuple(path) for path in self._facts.get("bare", ())}
        inputs: Any = _restored(self._span.inputs, self._fetch, bare)
        kinds = (("prompt", str), ("context", dict))
        if not (isinstance(inputs, dict) and all(isinstance(inputs.get(key), kind) for key, kind in kinds)):
            raise _LostContentError("the markup and the variables are not in the trace: something redacted or cut them")
        return inputs

    def _template(self, inputs: Mapping[str, Any]) -> Template:
        """Return the trace's markup with its files, from this machine or from the registry (see `replay`)."""
        folder = (settings().prompt_root or Path.cwd()) / self._folder
        options: dict[str, Any] = {"stylesheet": inputs.get("stylesheet"), "chat": self._facts.get("chat", True)}
        if self.edited is not None:
            return Template(path=self.edited.path, **options)
        uri, files = self._attributes.get("poml.prompt"), self._facts.get("files", {})
        if files and uri and ("version" in self._facts or not all((folder / path).exists() for path in files)):
            with suppress(PomlError):
                registered = Template(origin=open_prompt(uri), **options)
                if registered.digest == self._attributes["poml.digest"]:
                    return registered
        return Template(inputs["prompt"], base_dir=folder, **options)

    def _render(self, inputs: Mapping[str, Any]) -> tuple[Template, RenderRecord]:
        template = self._template(inputs)
        snapshot = template.current()
        if snapshot.roots is None:
            # A snapshot with roots is rendered as untrusted. The trace's folder is none of them: it may be any folder.
            own = None if self.edited is None else snapshot.folder
            snapshot = replace(snapshot, roots=tuple(map(str, trusted_roots(own))))
        snapshot = replace(snapshot, runtime=self._facts.get("runtime", {}))
        variables: Mapping[str, Any] = inputs["context"]
        history = _StoredHistory([name for name in self._facts.get("natives", ()) if name in variables])
        spaced = bool(self._facts.get("spaced"))
        return template, template.render(variables, history=history, snapshot=snapshot, keep_whitespace=spaced)

    def _differences(self, record: RenderRecord) -> Iterator[Difference]:
        if "outputs" in self._cut:
            raise _LostContentError("a mask or max_content changed the result before it was stored")
        failed = self._span.status.status_code.value == "ERROR"
        if failed or record.error is not None:
            stored = self._attributes.get("poml.error", self._span.status.description)
            then = _without_place(str(stored)) if failed else None
            now = None if record.error is None else _without_place(str(record.error))
            if then != now:
                yield Difference("error", then, now)
            return
        if not isinstance(self._span.outputs, dict):
            raise _LostContentError("it renders, but the messages are not in the trace, or were cut short")
        yield from compare(self._span.outputs, span_content(record)["outputs"], self._fetch)

    def _changed_versions(self, record: RenderRecord) -> Iterator[str]:
        for package, then, now in (
            ("poml", self._attributes.get("poml.version", ""), record.poml_version),
            ("pomlflow", self._facts.get("pomlflow", "before 0.1.0"), __version__),
        ):
            if then != now:
                yield f"{package} was {then}, and is {now} now"

    def _changed_files(self, template: Template, record: RenderRecord) -> Iterator[str]:
        folder, then = template.base_dir, self._facts.get("files", {})
        if self.edited is not None:
            yield f"rendered with {self.edited.trace_path}"
        if folder is None or not then:  # a template from the registry has no folder, and its files cannot change
            return
        if not folder.is_dir():
            yield f"there is no folder {folder}: {_REMEDY}"
            return
        now = {file.path: file.sha256 for file in record.files}
        for path, digest in then.items():
            file, name = folder / path, posixpath.normpath(posixpath.join(self._folder, path))
            if not file.exists():
                yield f"{name} is not there ({file}): unless it was removed, {_REMEDY}"
            elif not now.get(path, "").startswith(digest):
                changed = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
                yield f"{name} has changed: it was written at {changed:%Y-%m-%d %H:%M:%S}"


class _StoredHistory(History[Mapping[str, Any]]):
    """A framework's messages as a trace stores them: the dicts that `History.describe` has returned."""

    native = type(None)  # the trace says which variables are messages

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    @override
    def collect(
        self, variables: Mapping[str, Any], named: Sequence[str], sources: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        for name in self._names:
            self._marked(name, variables[name])
        return variables

    @override
    def convert(self, item: Any) -> list[Mapping[str, Any]]:
        return [item]

    @override
    def to_poml(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a description to POML, whose tool calls and tool results are parts of the content, not fields."""
        content = message.get("content", "")
        if isinstance(content, str):
            name = message.get("name") or ""
            if (call_id := message.get("tool_call_id")) is not None:
                content = [{"type": RESPONSE, "id": call_id, "name": name, "content": content}]
            elif calls := message.get("tool_calls"):
                requests = [
                    {"type": REQUEST, "id": call["id"] or "", "name": call["name"], "content": call["args"]}
                    for call in calls
                ]
                content = [content, *requests] if content else requests
        return {"speaker": message["speaker"], "content": content}

    @override
    def describe(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return dict(message)


def _restored(value: Any, fetch: Fetch, bare: set[_Path], path: _Path = ()) -> Any:
    """Replace the references to attachments in stored inputs by data URIs, and at the paths in `bare` by base64."""
    if isinstance(value, dict):
        return {key: _restored(item, fetch, bare, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, fetch, bare, (*path, index)) for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith(_TOO_LARGE):
        raise _LostContentError(f"{'.'.join(map(str, path))} is not in the trace: {value.strip('[]')}")
    if not is_attachment(value):
        return value
    data = base64.b64encode(fetch(value)).decode()
    parsed = Attachment.parse_ref(value) or {}
    return data if path in bare else f"data:{parsed.get('content_type', '')};base64,{data}"


def _without_place(error: str) -> str:
    """Return an error's first line without file and position, which differ between machines and replays."""
    first = error.split("\n", 1)[0]
    return first.partition(": ")[2] or first
