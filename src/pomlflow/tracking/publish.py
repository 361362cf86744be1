"""Link each render to its prompt version: at once if the version is known, else in the background.

`Publisher.link` uses only memory. Background tasks do what needs a store: find or make a version, link a trace, a run
or a model, and list a prompt in an experiment.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptVersion
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
from mlflow.utils.uri import is_databricks_uri

from pomlflow._log import warn_once
from pomlflow.record import RenderRecord
from pomlflow.tracking.background import FIRST, Task, TaskState, call_in_child, worker
from pomlflow.tracking.links import TraceLink, link_resource, list_in_experiment, trace_manager
from pomlflow.tracking.shutdown import register_hooks
from pomlflow.tracking.stores import Stores
from pomlflow.tracking.versions import Registry, draft_of, name_of

_FRESH: Final = 10.0  # seconds for which a found version is used unchecked: it may be deleted, and its number reused
_LINK_DELAY: Final = 10.0  # seconds until a link runs, unless the end of the trace's export wakes it before
_MAX_CONTENTS: Final = 1_000  # contents whose versions are kept in memory; others are looked up again by their digests
_MAX_TRACES: Final = 10_000  # traces that wait for the lookup of one content
_MAX_ASSOCIATED: Final = 10_000  # pairs of a prompt and an experiment, or of a version and a run or LoggedModel

OnVersion = Callable[[PromptVersion], None]


class _Key(NamedTuple):
    """One content under one name in one registry."""

    stores: Stores
    name: str
    digest: str
    number: int | None  # of the version that was rendered, if it came from the registry
    create: bool  # whether a missing version is made, which a failed render never does


@dataclass
class _Content:
    """The state of one content: the version that was found at the time `checked`, and the lookup that is pending."""

    version: PromptVersion | None = None
    checked: float = -math.inf
    is_rejected: bool = False
    lookup: _Lookup | None = None


class Publisher:
    """Finds or makes the prompt version of each render, and links it to the render's trace, run and LoggedModel.

    A forked child keeps the known versions of its parent, but none of the pending lookups.
    """

    def __init__(self) -> None:
        self._contents: dict[_Key, _Content] = {}
        self._associated: dict[tuple[str | None, ...], None] = {}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._links: weakref.WeakValueDictionary[str, TraceLink] = weakref.WeakValueDictionary()
        for content in self._contents.values():
            content.lookup = None

    def link(
        self, record: RenderRecord, trace_id: str, *, register: bool = True, on_version: OnVersion | None = None
    ) -> PromptVersion | None:
        """Link a trace to the prompt version of a render in it, at once or in the background; return it if it is known.

        Without `register`, only a loss of the trace is detected. `on_version` gets the version as soon as it is known,
        in this call or on another thread. Never raises.
        """
        try:
            return self._link(record, trace_id, register, on_version)
        except Exception as error:  # noqa: BLE001 - telemetry never raises into the user's call
            _count_failure(error)
            return None

    def _link(
        self, record: RenderRecord, trace_id: str, register: bool, on_version: OnVersion | None
    ) -> PromptVersion | None:
        if trace_id == NO_OP_SPAN_TRACE_ID:
            return None
        stores = Stores.current()
        trace = self._trace(stores, trace_id)
        name = name_of(record) if register else None
        if name is None:
            return None
        key = _Key(stores, name, record.digest, record.version, record.error is None)
        with self._lock:
            content = self._content(key)
            if content.is_rejected:
                return None
            age = time.monotonic() - content.checked
            if content.lookup is None and age > _FRESH / 2:  # so that frequent renders always have a version
                self._look_up(key, content, draft_of(record, name))
            if age >= _FRESH:
                if content.lookup is not None:
                    # No `on_version` during an outage: it would keep the span in memory until the server is back.
                    self._wait_for(
                        content.lookup, trace, None if worker.is_unreachable(stores.registry) else on_version
                    )
                return None
            version = content.version
        if version is not None:
            self._attach(stores, trace, version, on_version)
        return version

    def _trace(self, stores: Stores, trace_id: str) -> TraceLink:
        """Return the link of a trace, which detects from now on if the trace is lost."""
        register_hooks()
        call_in_child(self._reset)
        with self._lock:
            link = self._links.get(trace_id)
            if link is None:
                wake = None if _is_databricks(stores) else worker.wake
                link = self._links[trace_id] = TraceLink.of(stores, trace_id, wake)
                worker.lost += link.is_evicted
                if link.is_noticed:
                    worker.submit(link, after=_LINK_DELAY)
            return link

    def _content(self, key: _Key) -> _Content:
        content = self._contents.get(key)
        if content is None:
            content = self._contents[key] = _Content()
            if len(self._contents) > _MAX_CONTENTS:
                del self._contents[next(iter(self._contents))]
        return content

    def _look_up(self, key: _Key, content: _Content, draft: RenderRecord) -> None:
        stores = key.stores
        lookup = _Lookup(
            uri=stores.registry, workspace=stores.workspace, publisher=self, key=key, content=content, draft=draft
        )
        # A trace that ends before its version is known takes two more requests, so links wait for lookups.
        if worker.submit(lookup, after=FIRST):
            content.lookup = lookup

    def _wait_for(self, lookup: _Lookup, trace: TraceLink, on_version: OnVersion | None) -> None:
        """Link a trace when the lookup has found its version."""
        if len(lookup.traces) < _MAX_TRACES:
            lookup.traces.append((trace, on_version))
        else:
            worker.lost += 1

    def complete(self, lookup: _Lookup, version: PromptVersion | None, *, is_rejected: bool = False) -> None:
        """Store the result of a lookup, and link the traces that wait for it. It is called once and never raises."""
        with self._lock:
            content = lookup.content
            content.version, content.checked, content.lookup = version, time.monotonic(), None
            content.is_rejected = is_rejected
        if version is not None:
            for trace, on_version in lookup.traces:
                try:
                    self._attach(lookup.key.stores, trace, version, on_version)
                except Exception as error:  # noqa: BLE001 - the next trace is linked all the same
                    _count_failure(error)

    def _attach(self, stores: Stores, trace: TraceLink, version: PromptVersion, on_version: OnVersion | None) -> None:
        if on_version is not None:
            try:
                on_version(version)
            except Exception as error:  # noqa: BLE001 - the next trace is linked all the same
                warn_once("on_version", "A listener for prompt versions failed: %r", error, exc_info=error)
        if _is_databricks(stores):  # its exporters link by themselves, each in its own way
            with trace_manager().get_trace(trace.trace_id) as live:
                if live is not None:
                    trace_manager().register_prompt(trace.trace_id, version)
        elif trace.add(version):
            worker.submit(trace, after=0.0 if trace.is_late else _LINK_DELAY)
        self.associate(stores, version, experiment=trace.experiment, run=trace.run_id, model=trace.model_id)

    def associate(
        self,
        stores: Stores,
        version: PromptVersion,
        *,
        experiment: str | None = None,
        run: str | None = None,
        model: str | None = None,
    ) -> None:
        """Link a version to the active run and LoggedModel, else the given ones, and list it in an experiment, once."""
        active, name = mlflow.active_run(), str(version.name)
        for resource, identity, number, uri in (
            ("experiment", experiment, None, stores.registry),
            ("run", run if active is None else active.info.run_id, version.version, stores.tracking),
            ("model", mlflow.get_active_model_id() or model, version.version, stores.tracking),
        ):
            once = (*stores, resource, identity, name, str(number))
            if identity is None or once in self._associated:
                continue
            if len(self._associated) >= _MAX_ASSOCIATED:
                del self._associated[next(iter(self._associated))]
            self._associated[once] = None
            task = _Association(
                uri=uri,
                workspace=stores.workspace,
                stores=stores,
                resource=resource,
                identity=identity,
                version=version,
            )
            register_hooks()
            if not worker.submit(task):
                self._associated.pop(once, None)


def _count_failure(error: Exception) -> None:
    worker.lost += 1
    warn_once("link", "A render could not be linked to its prompt version: %r", error, exc_info=error)


def _is_databricks(stores: Stores) -> bool:
    return bool(is_databricks_uri(stores.tracking))  # type: ignore[no-untyped-call] # in MLflow


@dataclass(kw_only=True, eq=False, repr=False)
class _Lookup(Task):
    """Find or make one version; then link the traces that wait for it."""

    publisher: Publisher
    key: _Key
    content: _Content
    draft: RenderRecord
    traces: list[tuple[TraceLink, OnVersion | None]] = field(default_factory=list)

    def run(self) -> TaskState:
        """Find or make the version."""
        registry = Registry(self.key.stores.client(), self.uri)
        self.publisher.complete(self, registry.find(self.draft, create=self.key.create))
        return TaskState.DONE

    def on_dropped(self) -> None:
        """Do not look it up again."""
        self.publisher.complete(self, None, is_rejected=True)


@dataclass(kw_only=True, eq=False, repr=False)
class _Association(Task):
    """List one prompt in an experiment, or link one version to a run or LoggedModel."""

    stores: Stores
    resource: str  # "experiment", "run" or "model"
    identity: str
    version: PromptVersion

    def run(self) -> TaskState:
        """Write the tag."""
        if self.resource == "experiment":
            return list_in_experiment(self.stores.client(), str(self.version.name), self.identity)
        client = MlflowClient(tracking_uri=self.stores.tracking, registry_uri=self.stores.registry)
        link_resource(client, self.resource, self.identity, self.version)
        return TaskState.DONE


publisher: Final = Publisher()
"""The one publisher of this process."""
