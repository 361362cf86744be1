"""Start spans without MLflow's request, for each trace, for the experiment that the environment names."""

from __future__ import annotations

import os
import time
from threading import Lock
from typing import Any, Final, cast

import mlflow
from mlflow.entities import LiveSpan, NoOpSpan
from mlflow.environment_variables import (
    MLFLOW_EXPERIMENT_ID,
    MLFLOW_EXPERIMENT_NAME,
    MLFLOW_TRACE_ENABLE_OTLP_DUAL_EXPORT,
)
from mlflow.tracing import provider
from mlflow.tracing.utils.otlp import should_use_otlp_exporter
from mlflow.tracking import fluent

from pomlflow._log import warn_once
from pomlflow.tracking.stores import Stores, check_reachable, is_server, redacted_error, store_errors

_TIMEOUT: Final = 2.0  # seconds for the server to respond
_PAUSE: Final = 15.0  # seconds after a failed lookup until the next one

_locks: Final[dict[int, Lock]] = {}  # by process, since a fork leaves a lock locked that another thread holds
_ids: Final[dict[object, str]] = {}
_pauses: Final[dict[object, float]] = {}  # when to look up again after a failure


def start_span(parent: LiveSpan | None, **arguments: Any) -> LiveSpan:
    """Start a span; without a parent, start a trace, or return a no-op span if its experiment cannot be looked up."""
    try:
        experiment = _experiment_of_environment() if parent is None else None
    except store_errors() as error:
        warn_once(
            "experiment",
            "Nothing is traced until the experiment of MLFLOW_EXPERIMENT_NAME can be looked up: %s",
            redacted_error(mlflow.get_tracking_uri(), error),
        )
        return cast("LiveSpan", NoOpSpan())  # type: ignore[no-untyped-call] # in MLflow
    except AttributeError as error:
        warn_once("experiment", "This MLflow has unknown parts (%s): it requests the experiment for each trace", error)
        experiment = None
    return mlflow.start_span_no_context(parent_span=parent, experiment_id=experiment, **arguments)


def _experiment_of_environment() -> str | None:
    """Return the id of the experiment that the environment names; None if MLflow uses another, or needs no request."""
    # upstream: mlflow 3.12-3.18: it requests that experiment in the user's call, at the start of each trace, and waits
    # for minutes while the server is unreachable.
    name, experiment_id = MLFLOW_EXPERIMENT_NAME.get(), MLFLOW_EXPERIMENT_ID.get()  # type: ignore[no-untyped-call]
    if (name or experiment_id) is None:
        return None
    stores = Stores.current()
    if not is_server(stores.tracking):
        return None
    chosen = fluent._active_experiment_id or provider._MLFLOW_TRACE_USER_DESTINATION.get()
    if chosen or fluent._get_latest_active_run():  # type: ignore[no-untyped-call]
        return None
    if name is None:
        return str(experiment_id)
    key = name, experiment_id, stores
    if key in _ids:
        return _ids[key]
    by_otlp_alone = should_use_otlp_exporter() and not MLFLOW_TRACE_ENABLE_OTLP_DUAL_EXPORT.get()  # type: ignore[no-untyped-call]
    return None if by_otlp_alone or not provider.is_tracing_enabled() else _look_up(stores, key)


def _look_up(stores: Stores, key: object) -> str:
    """Return the id that MLflow finds for the environment's experiment, from memory after the first lookup."""
    with _locks.setdefault(os.getpid(), Lock()):
        if key not in _ids:
            if time.monotonic() < _pauses.get(key, 0.0):
                raise TimeoutError("the last lookup failed")
            try:
                check_reachable(stores.tracking, _TIMEOUT)
                _ids[key] = fluent._get_experiment_id()  # type: ignore[assignment] # some experiment is always found
            except store_errors():
                _pauses[key] = time.monotonic() + _PAUSE
                raise
        return _ids[key]
