"""A trace to a prompt version, a prompt to an experiment: the links that MLflow's pages and searches go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import TraceInfo
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.tracing.utils.prompt import update_linked_prompts_tag

from pomlflow.tracking.background import Errand

__all__ = ["TraceLink", "link_live", "link_stored", "list_in_experiment"]

_COMPLETE: Final = 10.0  # seconds in which a trace that is in the store is completed, where its store tells
_EXPERIMENTS: Final = "_mlflow_experiment_ids"  # the prompt's tag that an experiment's page of prompts looks at


def link_live(trace_id: str, version: PromptVersion) -> TraceInfo | None:
    """Link a trace that MLflow still has in memory: its exporter stores the link. About 0.01 ms.

    Returns:
        The trace's; None where it is not in memory, because it is on its way to the store, or there already.
    """
    traces = InMemoryTraceManager.get_instance()  # type: ignore[no-untyped-call] # in MLflow
    with traces.get_trace(trace_id) as trace:  # under MLflow's lock: the trace cannot leave in between
        if trace is None:
            return None
        # MLflow compares a version with all others of the trace, field by field: 0.3 ms for the twentieth prompt.
        if not any(linked is version for linked in trace.prompts):
            traces.register_prompt(trace_id, version)
        return trace.info  # type: ignore[no-any-return]


def link_stored(tracking_uri: str, trace_id: str, version: PromptVersion, *, patient: bool) -> bool:
    """Link a trace that has left MLflow's memory.

    Not `MlflowClient.link_prompt_versions_to_trace`: it looks for the trace in whatever store is set at the moment
    (mlflow 3.12 to 3.17), and keeps silent where the association that searches use could not be stored.

    Args:
        tracking_uri: The trace's store.
        trace_id: The trace.
        version: What to link it to.
        patient: Whether to wait until the exporter is done with the trace. MLflow stores spans as they end and the
            trace with its tags afterwards, and these overwrite a link to a second prompt that came in between.

    Returns:
        False where the trace is not in the store, or not complete, yet.
    """
    client = TracingClient(tracking_uri)
    try:
        info = client.get_trace_info(trace_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if patient and TraceMetadataKey.TRACE_INFO_FINALIZED not in info.trace_metadata:
        return False
    before = info.tags.get(TraceTagKey.LINKED_PROMPTS)
    after = update_linked_prompts_tag(before, [version])
    if after != before:
        client.set_trace_tag(trace_id, TraceTagKey.LINKED_PROMPTS, after)
    client.store.link_prompts_to_trace(trace_id, [version])
    return True


def list_in_experiment(client: MlflowClient, name: str, experiment_id: str) -> bool:
    """Have an experiment's page show the prompt, as `mlflow.genai.register_prompt` does.

    Returns:
        False where the prompt could not be read.
    """
    prompt = client.get_prompt(name)
    if prompt is None:  # MLflow gives None for every failure
        return False
    listed = [one for one in prompt.tags.get(_EXPERIMENTS, "").split(",") if one]
    if experiment_id not in listed:
        # Commas at both ends: MLflow searches by LIKE '%,1,%'.
        client.set_prompt_tag(name, _EXPERIMENTS, f",{','.join([*listed, experiment_id])},")
    return True


@dataclass(kw_only=True, eq=False, repr=False)
class TraceLink(Errand):
    """Link one trace that was not in memory.

    Attributes:
        trace_id: The trace.
        version: What to link it to.
    """

    trace_id: str
    version: PromptVersion

    def run(self) -> bool:
        """Do it, as soon as the store has the trace."""
        return link_live(self.trace_id, self.version) is not None or link_stored(
            self.uri, self.trace_id, self.version, patient=self.waiting < _COMPLETE
        )
