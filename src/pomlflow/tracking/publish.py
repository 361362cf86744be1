"""The way from a render to its prompt version: at once where the version is known, else in the background.

`PromptRegistry.link` touches memory only. What needs the store is an errand: to find or make a version, to link a trace
that has left MLflow's memory, to list a prompt in an experiment.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptVersion
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
from mlflow.tracking._model_registry import utils as _mlflow_registry
from mlflow.utils.workspace_context import get_request_workspace

from pomlflow.record import RenderRecord
from pomlflow.tracking.background import Errand, Errands
from pomlflow.tracking.links import TraceLink, link_live, list_in_experiment
from pomlflow.tracking.shutdown import finish_at_the_end, finish_with_mlflow
from pomlflow.tracking.versions import Draft, draft_of, ensure, name_of

__all__ = ["Place", "PromptRegistry", "client_of", "finish_at_exit", "flush"]

_log = logging.getLogger("pomlflow")

_MOST_VERSIONS: Final = 1_000  # kept in memory; the oldest is looked up again by its digest
_MOST_PENDING: Final = 1_000  # contents that wait to be registered
_MOST_TRACES: Final = 1_000  # per content, that wait to be linked
_MOST_LISTED: Final = 10_000  # pairs of prompt and experiment
_MOST_RECENT: Final = 200  # traces whose link is looked after at exit
_RECENT: Final = 10.0  # seconds before the exit; MLflow exports what is older (every 5 s, mlflow 3.17)
_FORK: Final = 2.0  # seconds that a fork waits for what is being written; a server that is away may take minutes

_OnVersion = Callable[[PromptVersion], None]


class Place(NamedTuple):
    """Where a prompt is registered, and where its traces are.

    Attributes:
        tracking: The URI of the tracking store.
        registry: The URI of the registry.
        workspace: The MLflow workspace, or None.
    """

    tracking: str
    registry: str
    workspace: str | None

    @classmethod
    def now(cls) -> Place:
        """What is set at this moment, in this context."""
        tracking = mlflow.get_tracking_uri()
        return cls(tracking, _registry_uri(tracking), get_request_workspace())


def _registry_uri(tracking: str) -> str:
    # `mlflow.get_registry_uri` looks for a Spark session by a failing import: 50 µs in each call where pyspark is not
    # installed (mlflow 3.12 to 3.17). Without Spark it depends on these three alone.
    if "pyspark" in sys.modules:
        return str(mlflow.get_registry_uri())
    environment = os.environ.get("MLFLOW_REGISTRY_URI")
    return _registry_uri_of(tracking, getattr(_mlflow_registry, "_registry_uri", None), environment)


@functools.lru_cache(maxsize=64)
def _registry_uri_of(_tracking: str, _set: str | None, _environment: str | None) -> str:
    return str(mlflow.get_registry_uri())


class _Key(NamedTuple):
    """One content under one name in one registry."""

    place: Place
    name: str
    path: str | None
    digest: str


class PromptRegistry:
    """Finds or makes the prompt version of each render, and links it to the render's trace.

    Safe for many threads and event loops; a forked child starts with what its parent knew and nothing pending. One
    object is enough for a process: `shared` gives it.

    Attributes:
        loads: What is to be read from stores, apart from what is to be written: a moved alias must not queue behind a
            hundred registrations, nor be waited for in a flush.

    Example:
        >>> import mlflow
        >>> with mlflow.start_span("poml") as span:  # doctest: +SKIP
        ...     version = PromptRegistry.shared().link(record, span.trace_id, wait=0.005)
        >>> version and version.uri  # doctest: +SKIP
        'prompts:/support.answer/1'
    """

    def __init__(self) -> None:
        self._known: dict[_Key, PromptVersion | None] = {}  # None: the registry refused it
        self._absent: dict[_Key, None] = {}  # looked for, for failed renders, and not found
        self._listed: set[tuple[Place, str, str]] = set()
        self._said: set[str] = set()
        self._start_afresh()
        _registries.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[tuple[_Key, bool], _Registration] = {}
        self._errands = Errands()
        self.loads = Errands(beside=self._errands)
        self._recent: deque[tuple[float, Place, str, PromptVersion]] = deque(maxlen=_MOST_RECENT)

    @staticmethod
    def shared() -> PromptRegistry:
        """The process's own."""
        return _shared

    def link(
        self, record: RenderRecord, trace_id: str, *, wait: float = 0.0, on_version: _OnVersion | None = None
    ) -> PromptVersion | None:
        """Link a trace to the prompt version of a render in it. Never raises.

        A known content is linked at once. An unknown one is registered in the background, in the registry that is set
        in the caller's context now, and the trace is linked then, whether it is in MLflow's memory, on its way to the
        store, or there. A failed render links to a version that exists, and never makes one.

        Args:
            record: The render.
            trace_id: The trace of its span; nothing happens for the trace of a no-op span.
            wait: Seconds to wait at most for an unknown version; 0 on an event loop.
            on_version: Called once with the version as soon as it is known: in this call, or later on another thread;
                not for a render while the registry is away.

        Returns:
            The version; None where it is not known yet, or the prompt is none for the registry.
        """
        try:
            return self._link(record, trace_id, wait, on_version)
        except Exception as error:  # noqa: BLE001 - telemetry never raises into the user's call
            self._say_once("A render could not be linked to its prompt version: %r", error)
            return None

    def flush(self, timeout: float | None = None) -> bool:
        """Finish what is pending: versions to register and traces to link.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes. What is for another store than those
                that are set now is not waited for while that store is away.

        Returns:
            True if all is done.
        """
        self._recent.clear()  # whoever flushes lets MLflow finish its links, too
        place = Place.now()
        return self._errands.flush(timeout, insist={place.tracking, place.registry})

    def _finish_at_exit(self, timeout: float, *, linked: bool) -> None:
        now = time.monotonic()
        while self._recent:
            since, place, trace_id, version = self._recent.popleft()
            if not linked and now - since < _RECENT:
                self._send_link(place, trace_id, version)
        self._errands.flush(timeout, insist=())

    def _say_once(self, message: str, error: Exception) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning(message, error, exc_info=error)

    def _link(
        self, record: RenderRecord, trace_id: str, wait: float, on_version: _OnVersion | None
    ) -> PromptVersion | None:
        name = name_of(record)
        if name is None or trace_id == NO_OP_SPAN_TRACE_ID:
            return None
        key = self._key(record, name)
        create = record.error is None
        if key in self._known:
            version = self._known.get(key)
        elif not create and key in self._absent:
            return None
        else:
            registration = self._register(key, record, create=create)
            if registration is None:
                return None
            if wait > 0 and not self._errands.away(key.place.registry):
                registration.done.wait(wait)
            with self._lock:
                if not registration.done.is_set():
                    if len(registration.traces) == _MOST_TRACES:
                        _log.debug("Too many traces wait for %s: the oldest is not linked", name)
                    # A listener may hold its span with all of its content: too much to keep through an outage.
                    patient = None if self._errands.away(key.place.registry) else on_version
                    registration.traces.append((trace_id, patient))
                    return None
            version = registration.version
        if version is not None:
            self._link_trace(key.place, trace_id, version, on_version)
        return version

    def _key(self, record: RenderRecord, name: str) -> _Key:
        if record.version is None:
            return _Key(Place.now(), name, record.path, record.digest)
        # It comes from a registry, and so there is nothing to find or make.
        key = _Key(Place.now(), name, None, f"version {record.version}")
        if key not in self._known:
            version = PromptVersion(name, record.version, record.source)  # type: ignore[abstract] # in MLflow
            with self._lock:
                self._known[key] = version
                _shrink(self._known)
        return key

    def _register(self, key: _Key, record: RenderRecord, *, create: bool) -> _Registration | None:
        with self._lock:
            registration = self._pending.get((key, True)) or self._pending.get((key, create))
            if registration is None:
                if len(self._pending) >= _MOST_PENDING:
                    _log.debug("Too many prompts wait to be registered: %s is left out this time", key.name)
                    return None
                registration = _Registration(
                    uri=key.place.registry,
                    workspace=key.place.workspace,
                    registry=self,
                    key=key,
                    draft=draft_of(record, key.name),
                    create=create,
                )
                if not self._send(registration):
                    return None
                self._pending[key, create] = registration
            return registration

    def _finish(self, registration: _Registration, version: PromptVersion | None, *, refused: bool = False) -> None:
        """Note what came of a registration, and link the traces that wait for it. On the errands' thread."""
        key = registration.key
        with self._lock:
            self._pending.pop((key, registration.create), None)
            if version is not None or refused:
                self._known[key] = version
                _shrink(self._known)
            else:
                self._absent[key] = None
                _shrink(self._absent)
            registration.version = version
            registration.done.set()
        if version is None:
            return
        for trace_id, on_version in registration.traces:
            self._link_trace(key.place, trace_id, version, on_version)

    def _send_link(self, place: Place, trace_id: str, version: PromptVersion) -> None:
        self._send(TraceLink(uri=place.tracking, workspace=place.workspace, trace_id=trace_id, version=version))

    def _send(self, errand: Errand) -> bool:
        finish_with_mlflow()
        return self._errands.send(errand)

    def _link_trace(self, place: Place, trace_id: str, version: PromptVersion, on_version: _OnVersion | None) -> None:
        live = link_live(trace_id, version)
        if live is None:
            self._send_link(place, trace_id, version)
        else:
            self._recent.append((time.monotonic(), place, trace_id, version))
        experiment = "" if live is None else live.experiment_id or ""
        listed = (place, version.name, experiment)
        if on_version is not None:
            try:
                on_version(version)
            except Exception as error:  # noqa: BLE001 - the next trace is linked all the same
                self._say_once("A listener for prompt versions failed: %r", error)
        if experiment and listed not in self._listed:
            if len(self._listed) >= _MOST_LISTED:
                self._listed.clear()
            self._listed.add(listed)
            self._send(
                _Listing(
                    uri=place.registry, workspace=place.workspace, place=place, name=version.name, experiment=experiment
                )
            )


def _shrink(memory: dict[_Key, Any]) -> None:
    """Forget the oldest."""
    if len(memory) > _MOST_VERSIONS:
        del memory[next(iter(memory))]


def client_of(place: Place) -> MlflowClient:
    """MLflow's client for a place's registry, whatever is set now."""
    # It opens the tracking store as well, which may be a database that is being set up for half a minute, or is broken
    # (mlflow 3.12 to 3.17): a registry that is a server must not wait for that.
    is_server = place.registry.startswith(("http://", "https://"))
    return MlflowClient(tracking_uri=place.registry if is_server else place.tracking, registry_uri=place.registry)


@dataclass(kw_only=True, eq=False, repr=False)
class _Registration(Errand):
    """Find or make one version; then link the traces that wait for it."""

    registry: PromptRegistry
    key: _Key
    draft: Draft
    create: bool
    traces: deque[tuple[str, _OnVersion | None]] = field(default_factory=lambda: deque(maxlen=_MOST_TRACES))
    done: threading.Event = field(default_factory=threading.Event)
    version: PromptVersion | None = None

    def run(self) -> bool:
        version = ensure(client_of(self.key.place), self.draft, create=self.create, store=self.uri)
        self.registry._finish(self, version)
        return True

    def given_up(self) -> None:
        self.registry._finish(self, None, refused=True)


@dataclass(kw_only=True, eq=False, repr=False)
class _Listing(Errand):
    """Show one prompt among those of an experiment."""

    place: Place
    name: str
    experiment: str

    def run(self) -> bool:
        return list_in_experiment(client_of(self.place), self.name, self.experiment)


def flush(timeout: float | None = None) -> bool:
    """Finish what is pending in this process, as `PromptRegistry.flush` does."""
    return PromptRegistry.shared().flush(timeout)


_registries: weakref.WeakSet[PromptRegistry] = weakref.WeakSet()
_shared = PromptRegistry()
finish_at_the_end()


def finish_at_exit(timeout: float, *, linked: bool) -> None:
    """Finish what is pending, as far as it can be now, at the end of the program.

    Args:
        timeout: Seconds to wait at most.
        linked: Whether MLflow has linked what it exported lately. In the last hooks of an interpreter it does not: it
            links in threads, which Python ends there, or from 3.12 on does not start (mlflow 3.12 to 3.17). The trace
            has its tag then, but no search for the prompt finds it.
    """
    for registry in list(_registries):
        registry._finish_at_exit(timeout, linked=linked)


def _before_fork() -> None:
    _forking.acquire()
    # A child that is forked while an errand writes never gets the locks that it holds, such as SQLite's.
    deadline = time.monotonic() + _FORK
    for registry in list(_registries):
        for errands in (registry._errands, registry.loads):
            errands.pause(max(0.0, deadline - time.monotonic()))
            _paused.append(errands)


def _after_fork() -> None:
    while _paused:
        _paused.pop().resume()
    _forking.release()


def _after_fork_in_child() -> None:
    # The thread stays with the parent, and a lock may be held for ever in the child's copy.
    _paused.clear()
    _forking.release()
    for registry in list(_registries):
        registry._start_afresh()


_forking = threading.Lock()  # two threads may fork at once
_paused: list[Errands] = []
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
