"""Links of prompt versions: to traces, runs, LoggedModels and experiments, as MLflow's pages and searches show them.

MLflow has two records of a link to a trace: a tag, which the trace's page shows, and an association, which searches
use. The tag is set while the trace is in MLflow's memory, and is exported with it. The association is stored in the
background, after the export has begun.

An export that has begun is visible in memory: MLflow's exporter writes the trace's size into the trace's metadata. A
trace that MLflow drops is released without that entry.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import TraceInfo
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils.prompt import update_linked_prompts_tag
from mlflow.utils.rest_utils import verify_rest_response
from mlflow.utils.uri import is_databricks_uri

from pomlflow.tracking.background import Task, worker
from pomlflow.tracking.stores import Stores, check_reachable, is_server, send

_TAG: Final = TraceTagKey.LINKED_PROMPTS
_EXPERIMENTS: Final = "_mlflow_experiment_ids"  # a prompt's tag, by which an experiment's page finds its prompts
_EXPORTED: Final = TraceMetadataKey.SIZE_STATS  # written by MLflow's exporter as it stores a trace
_LINK: Final = "/api/2.0/mlflow/traces/link-prompts"

# By trace, for as long as a task or a pending lookup of a version holds it.
_links: Final[weakref.WeakValueDictionary[str, TraceLink]] = weakref.WeakValueDictionary()


class TraceLink:
    """Links one trace to the prompt versions that were rendered in it, after MLflow has begun to store it."""

    def __init__(self, stores: Stores, info: TraceInfo) -> None:
        self.experiment: str | None = info.experiment_id  # None if the trace is not stored, as with OTLP alone
        self.run_id: str | None = info.trace_metadata.get(TraceMetadataKey.SOURCE_RUN)
        self.model_id: str | None = info.trace_metadata.get(TraceMetadataKey.MODEL_ID)
        self._stores = stores
        self._trace_id = info.trace_id
        self._info = weakref.ref(info)
        self._metadata: dict[str, str] = info.trace_metadata
        self._is_late = False  # whether a version was added after the trace had left MLflow's memory
        self._versions: list[PromptVersion] = []

    @classmethod
    def of(cls, stores: Stores, trace_id: str) -> TraceLink | None:
        """Return the link of a trace that is in MLflow's memory."""
        with trace_manager().get_trace(trace_id) as trace:
            link = _links.get(trace_id)
            if link is None and trace is not None:
                link = _links[trace_id] = cls(stores, trace.info)
                if link.experiment is not None:
                    worker.submit(Task(uri="", workspace=None, run=link._watch))
            return link

    def add(self, version: PromptVersion) -> None:
        """Link the trace to a version, once, if the trace is stored in MLflow."""
        with trace_manager().get_trace(self._trace_id) as trace:  # MLflow's lock keeps it in memory meanwhile
            if self.experiment is None or version.uri in {one.uri for one in self._versions}:
                return
            if trace is None:
                self._is_late = True
            else:
                trace.info.tags[_TAG] = update_linked_prompts_tag(trace.info.tags.get(_TAG), [version])
            self._versions.append(version)
        if self._is_late and self._is_exported:  # else `_watch` submits it
            self._submit([version])

    def _watch(self) -> bool | None:
        """Schedule the links after an export has begun; return False if it may still begin."""
        is_released = self._is_released  # first, since the trace may be exported and released in between
        if not self._is_exported:
            worker.lost += is_released
            return is_released
        if self._versions:
            self._submit(self._versions.copy())
        return None

    @property
    def _is_exported(self) -> bool:
        """Whether MLflow has tried to store the trace, or does so now."""
        return _EXPORTED in self._metadata

    @property
    def _is_released(self) -> bool:
        """Whether nothing refers to the trace any more. After an export it may still be referred to by an exception."""
        return self._info() is None

    def _submit(self, versions: list[PromptVersion]) -> None:
        run = partial(self._store, versions)
        worker.submit(Task(uri=self._stores.tracking, workspace=self._stores.workspace, run=run))

    def _store(self, versions: list[PromptVersion]) -> bool | None:
        """Store the associations, and a tag that MLflow did not export; return False if the export has not ended."""
        try:
            if self._is_late and not self._tag_stored(versions):
                return False
            _associate(self._stores, self._trace_id, versions)
        except MlflowException as error:
            if self._is_released or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return None

    def _tag_stored(self, versions: list[PromptVersion]) -> bool:
        """Tag a trace that has left MLflow's memory; return False if its export has not ended."""
        check_reachable(self._stores.tracking)
        client = TracingClient(self._stores.tracking)
        # MLflow stores a trace's tags after its spans, and would overwrite a tag that was set before.
        info = client.get_trace_info(self._trace_id)
        if not self._is_released and TraceMetadataKey.TRACE_INFO_FINALIZED not in info.trace_metadata:
            return False
        client.set_trace_tag(self._trace_id, _TAG, update_linked_prompts_tag(info.tags.get(_TAG), versions))
        return True


def _associate(stores: Stores, trace_id: str, versions: list[PromptVersion]) -> None:
    """Store the associations, in one request."""
    # upstream: mlflow 3.12-3.18: it starts a thread for each linked trace, which no flush waits for. Its client's
    # `link_prompt_versions_to_trace` reads the trace before, from the store that is set now, and hides failures.
    if is_server(stores.tracking):
        references = [{"name": one.name, "version": str(one.version)} for one in versions]
        body = {"trace_id": trace_id, "prompt_versions": references}
        verify_rest_response(send(stores.tracking, _LINK, "POST", json=body), _LINK)
    elif is_databricks_uri(stores.tracking):  # type: ignore[no-untyped-call] # Unity Catalog has requests of its own
        TracingClient(stores.tracking).store.get_trace_info(trace_id)  # raises if it is missing, unlike the next line
        _tracking_client(stores).link_prompt_versions_to_trace(versions, trace_id)
    else:
        TracingClient(stores.tracking).store.link_prompts_to_trace(trace_id, versions)


def trace_manager() -> InMemoryTraceManager:
    """Return MLflow's manager of the traces in memory."""
    manager: InMemoryTraceManager = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call] # in MLflow
    return manager


def list_in_experiment(stores: Stores, version: PromptVersion, experiment: str) -> None:
    """List a prompt on an experiment's page, as `mlflow.genai.register_prompt` does."""
    client, name = stores.client(), str(version.name)
    prompt = client.get_prompt(name)
    if prompt is None:  # MLflow returns None for each failure
        raise MlflowException(f"the prompt {name!r} cannot be read", error_code=RESOURCE_DOES_NOT_EXIST)
    listed = [one for one in prompt.tags.get(_EXPERIMENTS, "").split(",") if one]
    if experiment not in listed:
        # Commas at both ends: MLflow searches by LIKE '%,1,%'.
        client.set_prompt_tag(name, _EXPERIMENTS, f",{','.join([*listed, experiment])},")


def link_run(stores: Stores, version: PromptVersion, run: str) -> None:
    """Link a version to an MLflow run, as `mlflow.genai.load_prompt` does for the active one."""
    client = _tracking_client(stores)
    if (tag := _extended(client.get_run(run).data.tags, version)) is not None:
        client.set_tag(run, _TAG, tag)


def link_model(stores: Stores, version: PromptVersion, model: str) -> None:
    """Link a version to a LoggedModel, as `mlflow.genai.load_prompt` does for the active one."""
    client = _tracking_client(stores)
    if (tag := _extended(client.get_logged_model(model).tags, version)) is not None:
        client.set_logged_model_tags(model, {_TAG: tag})


def _tracking_client(stores: Stores) -> MlflowClient:
    check_reachable(stores.tracking)
    return MlflowClient(tracking_uri=stores.tracking, registry_uri=stores.registry)


def _extended(tags: dict[str, str], version: PromptVersion) -> str | None:
    """Return the tag of linked prompts, extended by a version, or None if it has it already."""
    # MLflow's `link_prompt_version_to_run` would use the store that is set now.
    before = tags.get(_TAG)
    after = str(update_linked_prompts_tag(before, [version]))
    return after if after != before else None
