"""Link each render to its prompt version: at once if the version is known, else in the background.

`Publisher.link` uses only memory. Background tasks do what needs a store: find or make a version, link a trace, a run
or a model, and list a prompt in an experiment.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import mlflow
from mlflow.entities.model_registry import PromptVersion
from mlflow.entities.span import NO_OP_SPAN_TRACE_ID

from pomlflow._log import warn_once
from pomlflow.record import RenderRecord
from pomlflow.tracking.background import FIRST, Task, call_in_child, worker
from pomlflow.tracking.links import TraceLink, link_model, link_run, list_in_experiment
from pomlflow.tracking.shutdown import register_hooks
from pomlflow.tracking.stores import Stores
from pomlflow.tracking.versions import Registry, draft_of, name_of

_FRESH: Final = 10.0  # seconds until a version is checked again: it may be deleted, and its number reused
_MAX_CONTENTS: Final = 1_000  # contents whose versions are kept in memory; others are looked up again
_MAX_TRACES: Final = 10_000  # traces that wait for the lookup of one content
_MAX_ASSOCIATED: Final = 10_000  # pairs of a prompt and an experiment, or of a version and a run or LoggedModel

_T = TypeVar("_T")


@dataclass
class _Content:
    """One content under one name in one registry."""

    version: PromptVersion | None = None  # what was found at the time `checked`
    checked: float = -math.inf  # infinity if the registry does not accept it, so that it is not looked up again
    waiting: list[TraceLink] | None = None  # for the pending lookup, if there is one


class Publisher:
    """Finds or makes the prompt version of each render, and links it to the render's trace, run and LoggedModel.

    A forked child keeps the known versions of its parent, but none of the pending lookups.
    """

    def __init__(self) -> None:
        self._contents: dict[object, _Content] = {}
        self._associated: dict[object, None] = {}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        for content in self._contents.values():
            content.waiting = None

    def link(self, record: RenderRecord, trace_id: str, *, register: bool = True) -> PromptVersion | None:
        """Link a trace to the prompt version of a render in it, at once or in the background; return a known version.

        Without `register`, nothing is linked; a trace that MLflow drops is counted all the same. Never raises.
        """
        try:
            return self._link(record, trace_id, register)
        except Exception as error:  # noqa: BLE001 - telemetry never raises into the user's call
            _count_failure(error)
            return None

    def _link(self, record: RenderRecord, trace_id: str, register: bool) -> PromptVersion | None:
        if trace_id == NO_OP_SPAN_TRACE_ID:
            return None
        register_hooks()
        call_in_child(self._reset)
        stores = Stores.current()
        trace = TraceLink.of(stores, trace_id)
        if trace is None:
            worker.lost += 1
            warn_once(
                "buffer",
                "MLflow has dropped a trace, since too many are open. Create the handler before the first trace, or "
                "set MLFLOW_TRACE_BUFFER_MAX_SIZE",
            )
            return None
        name = name_of(record) if register else None
        if name is None:
            return None
        # A failed render finds a version but makes none, so its lookup is separate.
        key = stores, name, record.digest, record.version, record.error is None
        with self._lock:
            content = self._contents.get(key)
            if content is None:
                content = _keep(self._contents, key, _Content(), _MAX_CONTENTS)
            age = time.monotonic() - content.checked
            # Early, so that a prompt in frequent use always has a fresh version.
            if content.waiting is None and age > _FRESH / 2:
                self._look_up(stores, content, draft_of(record, name), create=record.error is None)
            if age >= _FRESH:
                if content.waiting is not None and len(content.waiting) < _MAX_TRACES:
                    content.waiting.append(trace)
                elif content.waiting is not None:
                    worker.lost += 1
                return None
            version = content.version
        if version is not None:
            self._attach(stores, trace, version)
        return version

    def _look_up(self, stores: Stores, content: _Content, draft: RenderRecord, *, create: bool) -> None:
        """Find or make one version in the background; then link the traces that wait for it."""

        def complete(version: PromptVersion | None, checked: float) -> None:
            with self._lock:
                waiting, content.waiting = content.waiting or [], None
                content.version, content.checked = version, checked
            if version is None:
                return
            for trace in waiting:
                try:
                    self._attach(stores, trace, version)
                except Exception as error:  # noqa: BLE001 - the next trace is linked all the same
                    _count_failure(error)

        def look_up() -> None:
            complete(Registry(stores.client(), stores.registry).find(draft, create=create), time.monotonic())

        task = Task(
            uri=stores.registry,
            workspace=stores.workspace,
            run=look_up,
            on_dropped=partial(complete, None, math.inf),
        )
        # Lookups run before links, since a trace that ends before its version is known takes two more requests.
        if worker.submit(task, after=FIRST):
            content.waiting = []

    def _attach(self, stores: Stores, trace: TraceLink, version: PromptVersion) -> None:
        trace.add(version)
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
        active = mlflow.active_run()
        run = run if active is None else active.info.run_id
        model = mlflow.get_active_model_id() or model
        for identity, associate_with, uri in (
            (experiment, list_in_experiment, stores.registry),
            (run, link_run, stores.tracking),
            (model, link_model, stores.tracking),
        ):
            key = stores, identity, associate_with, version.uri
            if identity is not None and key not in self._associated:
                register_hooks()
                task = Task(uri=uri, workspace=stores.workspace, run=partial(associate_with, stores, version, identity))
                if worker.submit(task):
                    _keep(self._associated, key, None, _MAX_ASSOCIATED)


def _keep(kept: dict[object, _T], key: object, value: _T, limit: int) -> _T:
    """Add to a dictionary, and remove its oldest entry if it is full; return the value."""
    if len(kept) >= limit:
        del kept[next(iter(kept))]
    kept[key] = value
    return value


def _count_failure(error: Exception) -> None:
    worker.lost += 1
    warn_once("link", "A render could not be linked to its prompt version: %r", error, exc_info=error)


publisher: Final = Publisher()
"""The one publisher of this process."""
