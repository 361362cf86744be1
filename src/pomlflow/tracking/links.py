"""Links of prompt versions: to traces, runs, LoggedModels and experiments, as MLflow's pages and searches show them.

MLflow keeps two records of a link. The tag that a trace's page shows is set while the trace is in MLflow's memory. The
association that searches use is written in the background, after MLflow has exported the trace.

No request is needed to find out that an export has ended. MLflow's exporter releases the trace then, and leaves the
trace's size in its metadata if it tried to store it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from mlflow import MlflowClient
from mlflow.entities import TraceInfo
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils.prompt import update_linked_prompts_tag
from mlflow.utils.rest_utils import verify_rest_response

from pomlflow.tracking.background import Task, TaskState
from pomlflow.tracking.stores import Stores, check_reachable, is_server, send

_TAG: Final = TraceTagKey.LINKED_PROMPTS
_EXPERIMENTS: Final = "_mlflow_experiment_ids"  # a prompt's tag, by which an experiment's page finds its prompts
_EXPORTED: Final = TraceMetadataKey.SIZE_STATS  # written by MLflow's exporter as it stores a trace
_LINK: Final = "/api/2.0/mlflow/traces/link-prompts"


@dataclass(kw_only=True, eq=False, repr=False)
class TraceLink(Task):
    """Link one trace to the prompt versions that were rendered in it, and report if the trace was lost."""

    is_bounded: ClassVar[bool] = True

    trace_id: str
    experiment: str | None = None  # None if the trace is not stored in MLflow, as with OTLP alone
    is_evicted: bool = False  # whether MLflow no longer had the trace in memory when the link was made
    run_id: str | None = None  # the MLflow run that the trace is part of
    model_id: str | None = None
    is_late: bool = False  # whether a version was added after the trace had left MLflow's memory
    _info: weakref.ref[TraceInfo] | None = None
    _metadata: dict[str, str] = field(default_factory=dict)
    _versions: list[PromptVersion] = field(default_factory=list)
    _linked: int = 0  # the first so many versions have a stored association

    @classmethod
    def of(cls, stores: Stores, trace_id: str, wake: Callable[[TraceLink], None] | None) -> TraceLink:
        """Return the link of a trace. `wake`, which takes no lock, is called in any thread after MLflow's export."""
        link = cls(uri=stores.tracking, workspace=stores.workspace, trace_id=trace_id)
        with trace_manager().get_trace(trace_id) as trace:
            if trace is None:
                link.is_evicted = True
            else:
                info = trace.info
                link.experiment = info.experiment_id
                link.run_id = info.trace_metadata.get(TraceMetadataKey.SOURCE_RUN)
                link.model_id = info.trace_metadata.get(TraceMetadataKey.MODEL_ID)
                link._metadata = info.trace_metadata
                if wake is not None and link.experiment is not None:
                    link._info = weakref.ref(info, lambda _: wake(link))
        return link

    @property
    def is_noticed(self) -> bool:
        """Whether the end of the trace's export is noticed, so that `wake` is called then."""
        return self._info is not None

    @property
    def wanted(self) -> bool:
        """Whether the trace is not stored yet, or a version was added afterwards; False once the trace is lost."""
        return self.state is not TaskState.LOST and (
            self.state is not TaskState.DONE or self._linked < len(self._versions)
        )

    def add(self, version: PromptVersion) -> bool:
        """Add a version; return False if it was added before, or the trace will not be stored in MLflow."""
        if self.experiment is None:
            return False
        if any((one.name, one.version) == (version.name, version.version) for one in self._versions):
            return False
        with trace_manager().get_trace(self.trace_id) as trace:  # under MLflow's lock: it cannot leave in between
            if trace is None:
                self.is_late = True
            else:
                trace.info.tags[_TAG] = update_linked_prompts_tag(trace.info.tags.get(_TAG), [version])
        self._versions.append(version)
        return True

    def run(self) -> TaskState:
        """Store the associations, if the trace is stored."""
        self.has_reached = False
        with trace_manager().get_trace(self.trace_id) as trace:
            if trace is not None:
                return TaskState.PARKED
        missing = TaskState.LOST if self._is_released else TaskState.NOT_YET
        if _EXPORTED not in self._metadata:
            return missing
        versions = self._versions[self._linked :]
        if not versions:
            return TaskState.DONE
        try:
            if self.is_late and not self._tag_stored(versions):
                return TaskState.NOT_YET
            self._associate(versions)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return missing
        self.has_reached = True
        self._linked += len(versions)
        return TaskState.DONE

    @property
    def _is_released(self) -> bool:
        """Whether nothing holds the trace in memory any more; a notebook's display may hold it after the export."""
        return self._info is None or self._info() is None

    def _tag_stored(self, versions: list[PromptVersion]) -> bool:
        """Tag a trace that has left memory; return False if it is not complete in the store yet."""
        check_reachable(self.uri)
        client = TracingClient(self.uri)
        # MLflow stores the trace with its tags after its spans. Those would overwrite an earlier tag.
        info = client.get_trace_info(self.trace_id)
        if not self._is_released and TraceMetadataKey.TRACE_INFO_FINALIZED not in info.trace_metadata:
            return False
        before = info.tags.get(_TAG)
        after = update_linked_prompts_tag(before, versions)
        if after != before:
            client.set_trace_tag(self.trace_id, _TAG, after)
        return True

    def _associate(self, versions: list[PromptVersion]) -> None:
        """Store the associations, in one request."""
        # upstream: mlflow 3.12-3.18: it starts a thread for each linked trace, which no flush waits for. Its client's
        # `link_prompt_versions_to_trace` reads the trace before, from the store that is set now, and hides failures.
        if is_server(self.uri):
            references = [{"name": one.name, "version": str(one.version)} for one in versions]
            body = {"trace_id": self.trace_id, "prompt_versions": references}
            verify_rest_response(send(self.uri, _LINK, "POST", json=body), _LINK)
        else:
            TracingClient(self.uri).store.link_prompts_to_trace(self.trace_id, versions)


def trace_manager() -> InMemoryTraceManager:
    """Return MLflow's manager of the traces in memory."""
    manager: InMemoryTraceManager = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call] # in MLflow
    return manager


def list_in_experiment(client: MlflowClient, name: str, experiment: str) -> TaskState:
    """List the prompt on an experiment's page, as `mlflow.genai.register_prompt` does."""
    prompt = client.get_prompt(name)
    if prompt is None:  # MLflow returns None for each failure
        return TaskState.NOT_YET
    listed = [one for one in prompt.tags.get(_EXPERIMENTS, "").split(",") if one]
    if experiment not in listed:
        # Commas at both ends: MLflow searches by LIKE '%,1,%'.
        client.set_prompt_tag(name, _EXPERIMENTS, f",{','.join([*listed, experiment])},")
    return TaskState.DONE


def link_resource(client: MlflowClient, kind: str, identity: str, version: PromptVersion) -> None:
    """Link a version to an MLflow run or a LoggedModel, as `mlflow.genai.load_prompt` does for the active one."""
    tags = client.get_run(identity).data.tags if kind == "run" else client.get_logged_model(identity).tags
    before = tags.get(_TAG)
    after = update_linked_prompts_tag(before, [version])
    if after != before and kind == "run":
        client.set_tag(identity, _TAG, after)
    elif after != before:
        client.set_logged_model_tags(identity, {_TAG: after})
