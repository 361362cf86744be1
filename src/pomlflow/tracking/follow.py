"""A prompt in MLflow's registry as the origin of templates: loaded once, refreshed in the background.

A render reads only memory. Every `refresh` seconds a background thread looks up the version that the reference names,
whether the prompt is used or not. A reference to a version's number is not looked up again once it is loaded. The
lookups end when the last template of the origin is collected.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from mlflow.entities.model_registry import PromptVersion

from pomlflow._log import logger, warn_once
from pomlflow.exceptions import ConfigurationError, RegistryError
from pomlflow.record import content_digest
from pomlflow.template import Template
from pomlflow.template.inference import infer
from pomlflow.template.names import absolute
from pomlflow.template.source import Snapshot
from pomlflow.tracking.background import Task, TaskState, worker
from pomlflow.tracking.bundle import ExtractedFiles
from pomlflow.tracking.candidate import check_candidate
from pomlflow.tracking.load import PromptContent, Reference, load_reference, run_bounded
from pomlflow.tracking.publish import publisher
from pomlflow.tracking.stores import Stores
from pomlflow.tracking.versions import runtime_of

_REFRESH_TIMEOUT: Final = 20.0  # seconds for one lookup in the background


def open_prompt(
    name_or_uri: str,
    *,
    version: int | str | None = None,
    alias: str | None = None,
    refresh: float = 60.0,
    timeout: float = 10.0,
    fallback: str | os.PathLike[str] | None = None,
    markup: str | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> RegistryOrigin:
    """Load a prompt from the registry that is set now, and follow it there; see `PromptConstructors.from_registry`.

    `markup` is a text that was loaded from the registry before, as a fallback; it is trusted as little as a prompt in
    the registry.
    """
    for argument, value in (("refresh", refresh), ("timeout", timeout)):
        if not value > 0:
            raise ConfigurationError(f"{argument} must be a number of seconds above 0, got {value!r}")
    stores, reference = Stores.current(), Reference.of(name_or_uri, version, alias)
    template = None
    if fallback is not None or markup is not None:
        template = Template(None if fallback is not None else markup, path=fallback)
    content: PromptContent | None = None
    try:
        content = load_reference(reference, stores, timeout)
        publisher.associate(stores, content.version)
    except RegistryError as error:
        if template is None:
            raise
        logger.info("%s. %s is used until then", error, template.path or "The stored markup")
    return RegistryOrigin(
        reference,
        stores,
        refresh=refresh,
        content=content,
        fallback=template,
        base_dir=None if base_dir is None else absolute(base_dir),
        first_refresh=0.0 if content is None else refresh,
    )


@dataclass(frozen=True)
class _Loaded:
    """The content of an origin. An update replaces the whole object, so that other threads see no mixture."""

    content: PromptContent | None  # None for the fallback
    made_from: object  # of the snapshot: the version's text as MLflow returned it, or the fallback's own snapshot
    snapshot: Snapshot
    files: ExtractedFiles | None = None


class RegistryOrigin:
    """The prompt that a reference names at each moment. A copy is the same object.

    A pickle contains the loaded version, but not the store's URI, which may hold a password.
    """

    def __init__(
        self,
        reference: Reference,
        stores: Stores,
        *,
        refresh: float,
        content: PromptContent | None,
        fallback: Template | None = None,
        base_dir: Path | None = None,
        first_refresh: float = 0.0,
    ) -> None:
        self.name = reference.name
        self.uri = reference.uri
        self.refresh = refresh
        self._reference = reference
        self._stores = stores
        self._fallback = fallback
        self._base_dir = base_dir
        self._loaded = self._use_fallback(None) if content is None else self._use_version(content, content.source)
        self.schedule_update(first_refresh)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegistryOrigin) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self._reference, self._stores, self.refresh, self._base_dir

    def __copy__(self) -> RegistryOrigin:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> RegistryOrigin:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._reference, self.refresh, self._loaded.content, self._fallback, self._base_dir)

    @property
    def version(self) -> PromptVersion | None:
        """MLflow's current version; None while the fallback is used."""
        content = self._loaded.content
        return None if content is None else content.version

    def current(self) -> Snapshot:
        """Return the template as it is now, from memory."""
        if self._scheduled_in != os.getpid():  # this is a forked child, or too many tasks were waiting
            self.schedule_update(0)
        now = self._loaded
        if now.content is None:
            return self._use_fallback(now).snapshot
        # MLflow's optimisers replace this property during their trials (see `text_of`): it is read for each render.
        text = str(now.content.version.template)
        if text != now.made_from or now.files is None or not now.files.complete:
            made = self._use_version(now.content, text, now.files)
            if self._loaded is now:  # otherwise a refresh has replaced it meanwhile
                self._loaded = made
            now = made
        return now.snapshot

    def _use_fallback(self, now: _Loaded | None) -> _Loaded:
        """Return the state of the fallback as it is now, and make it the current one if the fallback has changed."""
        assert self._fallback is not None  # noqa: S101 - an origin has a content or a fallback
        snapshot = self._fallback.current()
        if now is None or now.made_from is not snapshot:
            roots = None if self._fallback.path is not None else ()
            self._loaded = now = _Loaded(None, snapshot, replace(snapshot, register=False, roots=roots))
        return now

    def _use_version(self, content: PromptContent, text: str, files: ExtractedFiles | None = None) -> _Loaded:
        """Return the state of a version with this text, and extract its files unless `files` are complete."""
        try:
            if files is None or not files.complete:
                files = ExtractedFiles(content.bundle, self._base_dir)
            return _Loaded(content, text, _snapshot(content, text, files), files)
        except OSError as error:
            raise RegistryError(f"the files of {content.uri} cannot be written: {error}", content.uri) from error

    def schedule_update(self, seconds: float) -> None:
        """Schedule a lookup of the version, unless it can never change; if too many tasks wait, at the next render."""
        self._scheduled_in: int | None = os.getpid()  # the process that has scheduled a lookup
        if self._reference.number is None or self._loaded.content is None:
            task = _Refresh(uri=self._stores.registry, workspace=self._stores.workspace, origin=weakref.ref(self))
            if not worker.submit(task, after=seconds):
                self._scheduled_in = None

    def update(self) -> None:
        """Look up the version, use it if it is another one, and schedule the next update."""
        before = self._loaded.content
        try:
            content = run_bounded(lambda: self._reference.fetch(self._stores), _REFRESH_TIMEOUT)
            if before is None or content.identity != before.identity:
                self._loaded = self._use_version(content, content.source)
                logger.info("%s is %s now", self.uri, content.uri)
        except RegistryError as error:
            in_use = "the fallback" if before is None else before.uri
            warn_once((self.uri, in_use, type(error)), "%s: %s stays in use", error, in_use)
        self.schedule_update(self.refresh)


def _snapshot(content: PromptContent, text: str, files: ExtractedFiles) -> Snapshot:
    """Return the template of a version; `text` is its source, or a candidate of an optimiser in its stores."""
    found = infer(text, files.folder, read=files.read)
    if text != content.source:
        check_candidate(text, found, content.source, files, content.uri)
    problems = {file: files.problem(file) for file in (*found.includes, *found.assets)}
    # A prompt from another machine may name files of this one, which are not part of it.
    includes = tuple(file for file in found.includes if not problems[file])
    assets = tuple(file for file in found.assets if not problems[file])
    parts = tuple(files.files[file] for file in (*includes, *assets))
    as_registered = text == content.source
    hint = f"{{}} was not stored with {content.uri}: {{}}. Give base_dir=, a folder that has it"
    return Snapshot(
        text,
        content.digest if as_registered else content_digest(text, parts),
        replace(found, includes=includes, assets=assets),
        files.folder,
        files=parts,
        version=content.number if as_registered else None,
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


def _unpickled(
    reference: Reference,
    refresh: float,
    content: PromptContent | None,
    fallback: Template | None,
    base_dir: Path | None,
) -> RegistryOrigin:
    return RegistryOrigin(
        reference, Stores.current(), refresh=refresh, content=content, fallback=fallback, base_dir=base_dir
    )


@dataclass(kw_only=True, eq=False, repr=False)
class _Refresh(Task):
    """Refresh an origin once; `RegistryOrigin.update` schedules the next task."""

    is_periodic: ClassVar[bool] = True

    origin: weakref.ref[RegistryOrigin]

    @property
    def wanted(self) -> bool:
        return self.origin() is not None

    def run(self) -> TaskState:
        if (origin := self.origin()) is not None:
            origin.update()
        return TaskState.DONE

    def on_dropped(self) -> None:
        if (origin := self.origin()) is not None:
            origin.schedule_update(origin.refresh)
