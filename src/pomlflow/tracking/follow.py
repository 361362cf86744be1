"""A prompt in MLflow's registry as the origin of templates: loaded once, refreshed in the background.

A render makes no request: it reads memory, and the files of a fallback. Every `refresh` seconds a background task looks
up the version that the reference names, whether the prompt is used or not. It ends when a version that is named by its
number is loaded, or when the last template of the origin is garbage-collected.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from pomlflow._log import logger, warn_once
from pomlflow.exceptions import CandidateError, ConfigurationError, RegistryError
from pomlflow.record import content_digest
from pomlflow.template import Template
from pomlflow.template.inference import infer
from pomlflow.template.markup import TOOLS, is_poml, parse
from pomlflow.template.names import absolute
from pomlflow.template.source import Inference, Snapshot
from pomlflow.tracking.background import Task, worker
from pomlflow.tracking.bundle import ExtractedFiles
from pomlflow.tracking.load import PromptContent, Reference, fetch_within, load
from pomlflow.tracking.publish import publisher
from pomlflow.tracking.stores import Stores, is_outage, redacted
from pomlflow.tracking.versions import runtime_of

_REFRESH_TIMEOUT: Final = 20.0  # seconds for one lookup in the background
_PARTS: Final = {"schema": "<output-schema>", "runtime": "<runtime>"}


def open_prompt(
    name_or_uri: str,
    *,
    version: int | str | None = None,
    alias: str | None = None,
    refresh: float = 60.0,
    timeout: float = 10.0,
    fallback: Template | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> RegistryOrigin:
    """Load a prompt from the registry that is set now, and follow it there; see `PromptConstructors.from_registry`."""
    for argument, value in (("refresh", refresh), ("timeout", timeout)):
        if not value > 0:
            raise ConfigurationError(f"{argument} must be a number of seconds above 0, got {value!r}")
    reference = Reference.of(name_or_uri, version, alias)
    content: PromptContent | None = None
    try:
        content = load(reference.uri, timeout=timeout)
        publisher.associate(Stores.current(), content.version)
    except RegistryError as error:
        if fallback is None:
            raise
        logger.info("%s. Until it can be loaded, %s is used", error, fallback.path or "the stored markup")
    return RegistryOrigin(reference, refresh, content, fallback, None if base_dir is None else absolute(base_dir))


@dataclass(frozen=True)
class _Loaded:
    """The state of an origin. An update replaces the whole object, so that each thread has a consistent one."""

    snapshot: Snapshot
    content: PromptContent | None = None  # None for the fallback
    text: str = ""  # the markup of the snapshot
    files: ExtractedFiles | None = None


class RegistryOrigin:
    """The prompt that a reference currently names. Copying returns the same object.

    A pickle contains the loaded version, but not the store's URI, which may hold a password.
    """

    def __init__(
        self,
        reference: Reference,
        refresh: float,
        content: PromptContent | None,
        fallback: Template | None,
        base_dir: Path | None,
    ) -> None:
        self.name = reference.name
        self.uri = reference.uri
        self.refresh = refresh
        self._reference = reference
        self._stores = Stores.current()
        self._fallback = fallback
        self._base_dir = base_dir
        self._identity = reference, self._stores, refresh, base_dir
        if content is not None:
            self._loaded = self._load(content, content.source)
        else:
            self._loaded = _Loaded(self._fallback_snapshot())
        self._schedule_update(0.0 if content is None else refresh)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegistryOrigin) and self._identity == other._identity

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, _memo: dict[int, Any]) -> RegistryOrigin:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return RegistryOrigin, (self._reference, self.refresh, self._loaded.content, self._fallback, self._base_dir)

    def current(self) -> Snapshot:
        """Return the template as it is now, without a request."""
        if self._process != os.getpid():  # a forked child has no background tasks
            self._schedule_update(0.0)
        now = self._loaded
        if now.content is None:
            return self._fallback_snapshot()  # its files may have changed
        # MLflow's optimisers replace this property during their trials (see `text_of`): read it for each render.
        text = str(now.content.version.template)
        # The system may clean up temporary folders while the process runs.
        files = None if now.snapshot.files and not now.snapshot.folder.is_dir() else now.files
        if text != now.text or files is None:
            self._loaded = now = self._load(now.content, text, files)
        return now.snapshot

    def _fallback_snapshot(self) -> Snapshot:
        """Return the fallback as it is now."""
        assert self._fallback is not None  # noqa: S101 - an origin has a content or a fallback
        # A fallback without a file is the prompt's last text from the registry, which is not trusted.
        roots = None if self._fallback.path is not None else ()
        return replace(self._fallback.current(), register=False, roots=roots)

    def update(self) -> None:
        """Look up the version, use it if it has changed, and schedule the next update."""
        before = self._loaded.content
        try:
            content = fetch_within(_REFRESH_TIMEOUT, self._reference, self._stores)
            if before is None or content.identity != before.identity:
                self._loaded = self._load(content, content.source)
                logger.info("%s now refers to %s", self.uri, content.uri)
        except Exception as error:
            if is_outage(self._stores.registry, error):
                raise  # the worker warns, and runs the task again
            in_use = "the fallback" if before is None else before.uri
            why = redacted(self._stores.registry, str(error))
            warn_once((self.uri, in_use, type(error)), "%s: %s stays in use", why, in_use)
        self._schedule_update(self.refresh)

    def _load(self, content: PromptContent, text: str, files: ExtractedFiles | None = None) -> _Loaded:
        """Return the state of a version with this text, and extract its files unless they are given."""
        try:
            files = files or ExtractedFiles(content.bundle, self._base_dir)
            return _Loaded(_snapshot(content, text, files), content, text, files)
        except OSError as error:
            raise RegistryError(f"the files of {content.uri} cannot be written: {error}", content.uri) from error

    def _schedule_update(self, seconds: float) -> None:
        """Look up the version after some seconds, unless it can never change."""
        self._process = os.getpid()
        if self._reference.number is None or self._loaded.content is None:
            run = partial(_update, weakref.ref(self))
            task = Task(uri=self._stores.registry, workspace=self._stores.workspace, run=run, is_periodic=True)
            worker.submit(task, after=seconds)


def _snapshot(content: PromptContent, text: str, files: ExtractedFiles) -> Snapshot:
    """Return the template of a version; `text` is its source, or an optimiser's candidate for it."""
    found = infer(text, files.folder, read=files.read)
    as_registered = text == content.source
    if not as_registered:
        _check_candidate(text, found, content, files)
    problems = {file: files.provide(file) for file in (*found.includes, *found.assets)}
    # The prompt may be from another machine, and name files of this one that are not part of it.
    includes = tuple(file for file in found.includes if not problems[file])
    assets = tuple(file for file in found.assets if not problems[file])
    parts = tuple(files.files[file] for file in (*includes, *assets))
    hint = f"{{}} was not stored with {content.uri}: {{}}. Give base_dir=, a folder that has it"
    return Snapshot(
        text,
        content.digest if as_registered else content_digest(text, parts),
        replace(found, includes=includes, assets=assets),
        files.folder,
        files=parts,
        version=int(content.version.version) if as_registered else None,
        uri=content.uri,
        roots=(str(files.root),),
        missing=tuple(
            (str(file), hint.format(Path(os.path.relpath(file, files.folder)).as_posix(), why))
            for file, why in problems.items()
            if why
        ),
        runtime=runtime_of(content.version),
        register=None if as_registered else False,
    )


def _check_candidate(text: str, found: Inference, content: PromptContent, files: ExtractedFiles) -> None:
    """Raise a `CandidateError` if an optimiser's text is not POML, or has not the same parts as the version."""
    if not is_poml(text):
        raise CandidateError(
            f"the candidate for {content.uri} is not a POML document: it must be the whole markup, from <poml> to "
            "</poml>, with no other text before or after it, no Markdown fence and no explanation",
            content.uri,
        )
    before = _parts(content.source, infer(content.source, files.folder, read=files.read), files.folder)
    after = _parts(text, found, files.folder)
    lost = [part for part in before if part not in after]
    added = [part for part in after if part not in before]
    changes = [f"{verb} {', '.join(parts)}" for verb, parts in (("lost", lost), ("added", added)) if parts]
    if changes:
        raise CandidateError(
            f"the candidate for {content.uri} has {' and '.join(changes)}: change the wording, and keep each variable, "
            "tool, file and part as it is in the original",
            content.uri,
        )


def _parts(text: str, found: Inference, folder: Path) -> list[str]:
    """Return the parts that a candidate must not lose or add, as errors name them."""
    tools = {one.find("name").text for one in parse(text).elements if one.kind in TOOLS}
    paths = {os.path.relpath(file, folder).replace(os.sep, "/") for file in (*found.includes, *found.assets)}
    return [
        *(f"the variable {{{{{name}}}}}" for name in sorted({use.name for use in found.uses})),
        *(f"the tool {name}" for name in sorted(tools)),
        *(f"the file {path}" for path in sorted(paths)),
        *(part for field, part in _PARTS.items() if field in found.fields),
    ]


def _update(reference: weakref.ref[RegistryOrigin]) -> None:
    """Update an origin, if it is still used, which schedules its next update."""
    if (origin := reference()) is not None:
        origin.update()
