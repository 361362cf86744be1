"""Links of prompt versions: to traces, runs, LoggedModels and experiments, as MLflow's pages and searches show them.

A trace that is in MLflow's memory gets the tag that its page shows; the association that searches use is written in the
background, when MLflow has exported the trace. MLflow would start a thread for each, if it knew the trace's prompts.
That an export is over is known without a request: MLflow's exporter has released the trace, and has left the trace's
size in its metadata if it tried to store it.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from mlflow import MlflowClient
from mlflow.entities import TraceState
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils.prompt import update_linked_prompts_tag
from mlflow.utils.rest_utils import verify_rest_response

from pomlflow.tracking.background import State, Task
from pomlflow.tracking.stores import Place, check_reachable, is_server, send

__all__ = ["TraceLink", "link_model", "link_run", "list_in_experiment"]

_TAG: Final = TraceTagKey.LINKED_PROMPTS
_EXPERIMENTS: Final = "_mlflow_experiment_ids"  # the prompt's tag that an experiment's page of prompts looks at
_EXPORTED: Final = TraceMetadataKey.SIZE_STATS  # written by MLflow's exporter as it stores a trace
_LINK: Final = "/api/2.0/mlflow/traces/link-prompts"
_PATIENCE: Final = 10.0  # seconds for a trace that has ended to leave memory, and for one in the store to be complete
_MAX_EXPORT: Final = 600.0  # seconds in which MLflow stores a trace, retries included


@dataclass(kw_only=True, eq=False, repr=False)
class TraceLink(Task):
    """Link one trace to the prompt versions that were rendered in it, and notice if the trace was lost.

    Attributes:
        trace_id: The trace.
        experiment: Its experiment; None where it is not in memory, or goes to no experiment.
        is_local: Whether it is exported by MLflow's own exporter.
        run_id: The MLflow run that it is part of, or None.
        model_id: The LoggedModel, or None.
    """

    is_bounded: ClassVar[bool] = True

    trace_id: str
    experiment: str | None = None
    is_local: bool = True
    run_id: str | None = None
    model_id: str | None = None
    _versions: list[PromptVersion] = field(default_factory=list)
    _linked: int = 0  # of the versions, those whose association is stored
    _is_late: bool = False
    _info: weakref.ref[Any] | None = None
    _metadata: dict[str, str] = field(default_factory=dict)
    _since: float | None = None  # when it was first found not possible yet
    _is_over: bool = False

    @classmethod
    def of(cls, place: Place, trace_id: str, wake: Callable[[TraceLink], None] | None) -> TraceLink:
        """Return the link of a trace; `wake` is called when MLflow has exported it, in any thread and without locks."""
        link = cls(uri=place.tracking, workspace=place.workspace, trace_id=trace_id)
        with _manager().get_trace(trace_id) as trace:
            if trace is not None:
                info = trace.info
                link.experiment = info.experiment_id
                link.is_local = info.experiment_id is not None
                link.run_id = info.trace_metadata.get(TraceMetadataKey.SOURCE_RUN)
                link.model_id = info.trace_metadata.get(TraceMetadataKey.MODEL_ID)
                link._metadata = info.trace_metadata
                if link.is_local and wake is not None:
                    link._info = weakref.ref(info, lambda _: wake(link))
        return link

    @property
    def wanted(self) -> bool:
        """Whether the trace is not stored yet, or a version came after that."""
        return not self._is_over or self._linked < len(self._versions)

    @property
    def is_noticed(self) -> bool:
        """Whether it is known when MLflow has exported the trace, so that the task is woken then."""
        return self.is_local and self._info is not None

    def add(self, version: PromptVersion) -> bool:
        """Link a version; return whether that is new, and the task must be submitted."""
        if any((one.name, one.version) == (version.name, version.version) for one in self._versions):
            return False
        with _manager().get_trace(self.trace_id) as trace:  # under MLflow's lock: the trace cannot leave in between
            if trace is None:
                self._is_late = True
            else:
                trace.info.tags[_TAG] = update_linked_prompts_tag(trace.info.tags.get(_TAG), [version])
        self._versions.append(version)
        return True

    def run(self) -> State:
        """Write the associations, if the trace is stored."""
        self.has_reached = False
        state = self._run()
        self._is_over = state in {State.DONE, State.LOST}
        if state is State.LOST:
            self._linked = len(self._versions)
        return state

    def _run(self) -> State:
        with _manager().get_trace(self.trace_id) as trace:
            is_open = trace is not None and not _is_complete(trace)
        if trace is not None:
            return State.PARKED if is_open else self._not_yet(_PATIENCE)
        if _EXPORTED not in self._metadata and self._info is not None:
            return State.LOST if self._is_released else self._not_yet(_MAX_EXPORT)
        versions = self._versions[self._linked :]
        return self._link(versions) if versions else State.DONE

    def _link(self, versions: list[PromptVersion]) -> State:
        try:
            if self._is_late and not self._tag_stored(versions):
                return self._not_yet(_MAX_EXPORT)
            self._associate(versions)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return State.LOST if self._is_released else self._not_yet(_MAX_EXPORT if self._info else _PATIENCE)
        self.has_reached = True
        self._linked += len(versions)
        return State.DONE

    @property
    def _is_released(self) -> bool:
        """Whether MLflow's exporter is known to be done with the trace."""
        return self._info is not None and self._info() is None

    @property
    def _waited(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since

    def _not_yet(self, limit: float) -> State:
        if self._since is None:
            self._since = time.monotonic()
        return State.NOT_YET if self._waited < limit else State.LOST

    def _tag_stored(self, versions: list[PromptVersion]) -> bool:
        """Tag a trace that has left memory; return False where it is not complete in the store yet.

        MLflow stores spans as they end and the trace with its tags afterwards, which overwrite what was tagged before.
        """
        check_reachable(self.uri)
        client = TracingClient(self.uri)
        info = client.get_trace_info(self.trace_id)
        is_final = self._is_released or TraceMetadataKey.TRACE_INFO_FINALIZED in info.trace_metadata
        if not is_final and self._waited < _PATIENCE:  # some stores do not mark it as final
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


def _manager() -> InMemoryTraceManager:
    manager: InMemoryTraceManager = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call] # in MLflow
    return manager


def _is_complete(trace: Any) -> bool:
    """Whether a trace in memory has ended, with all of its spans: MLflow is about to export it."""
    ended = all(span.end_time_ns is not None for span in trace.span_dict.values())
    return ended and trace.info.state != TraceState.IN_PROGRESS


def list_in_experiment(client: MlflowClient, name: str, experiment: str) -> State:
    """Have an experiment's page show the prompt, as `mlflow.genai.register_prompt` does."""
    prompt = client.get_prompt(name)
    if prompt is None:  # MLflow returns None for every failure
        return State.NOT_YET
    listed = [one for one in prompt.tags.get(_EXPERIMENTS, "").split(",") if one]
    if experiment not in listed:
        # Commas at both ends: MLflow searches by LIKE '%,1,%'.
        client.set_prompt_tag(name, _EXPERIMENTS, f",{','.join([*listed, experiment])},")
    return State.DONE


def link_run(client: MlflowClient, run: str, version: PromptVersion) -> State:
    """Link an MLflow run, as `mlflow.genai.load_prompt` does for the active one."""
    before = client.get_run(run).data.tags.get(_TAG)
    after = update_linked_prompts_tag(before, [version])
    if after != before:
        client.set_tag(run, _TAG, after)
    return State.DONE


def link_model(client: MlflowClient, model: str, version: PromptVersion) -> State:
    """Link a LoggedModel, as `mlflow.genai.load_prompt` does for the active one."""
    before = client.get_logged_model(model).tags.get(_TAG)
    after = update_linked_prompts_tag(before, [version])
    if after != before:
        client.set_logged_model_tags(model, {_TAG: after})
    return State.DONE
