"""Latency, tokens, errors and assessments of prompt versions, from the traces that are linked to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from statistics import fmean
from typing import Final

import mlflow
import pandas as pd
from mlflow.entities import Feedback, TraceInfo, TraceState

from pomlflow.exceptions import NotPomlError
from pomlflow.tracking.load import load

_TOKENS: Final = ["input_tokens", "output_tokens", "total_tokens"]
_RATINGS: Final[Mapping[str, float]] = {"yes": 1.0, "no": 0.0}  # the answers of MLflow's judges


def compare_versions(
    name: str,
    versions: Iterable[int | str],
    *,
    experiment_ids: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pd.DataFrame:
    """Compare versions of a prompt by the traces that are linked to them.

    A trace that is linked to several versions counts for each of them. Traces in progress are not counted.

    Args:
        name: The prompt's name in MLflow's registry.
        versions: Numbers or aliases. An alias is resolved to its current version.
        experiment_ids: The experiments with the traces, by default MLflow's current one.
        since: Only traces that started at this time or later. A time without a time zone is local.
        until: Only traces that started before this time.

    Returns:
        A pandas DataFrame with one row for each version, in the order given, and the version's number as its index.
        `traces` and `errors` are counts, and `error_rate` is between 0 and 1. `latency_p50` and `latency_p95` are
        milliseconds of whole traces. `input_tokens`, `output_tokens` and `total_tokens` are means over the traces that
        have token counts. Each assessment has a column with its mean, such as ``correctness/mean``, as in the metrics
        of `mlflow.genai.evaluate`. True and "yes" count as 1, False and "no" as 0, and values that are neither numbers
        nor one of these are left out. A value that no trace has is NaN.

    Raises:
        RegistryError: A version cannot be loaded, or does not exist (`PromptNotFoundError`).
        MlflowException: The store failed or is unreachable.

    Example:
        >>> pomlflow.compare_versions("support", [3, 4])[["traces", "error_rate", "latency_p50", "correctness/mean"]]
                 traces  error_rate  latency_p50  correctness/mean
        version
        3           940        0.01        812.0              0.81
        4           102        0.00        655.0              0.92
    """
    locations = None if experiment_ids is None else list(experiment_ids)
    rows = {}
    for version in versions:
        number = int(version) if str(version).isdecimal() else int(load(name, alias=str(version)).version.version)
        query = " AND ".join([f"prompt = '{name}/{number}'", *_window(since, until)])
        found = mlflow.search_traces(locations=locations, filter_string=query, include_spans=False, return_type="list")
        if not found:
            with suppress(NotPomlError):  # versions of any kind are compared
                load(name, version=number)  # raises an error if there is no such version
        rows[number] = _metrics([trace.info for trace in found if trace.info.state != TraceState.IN_PROGRESS])
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="version"))


def _window(since: datetime | None, until: datetime | None) -> list[str]:
    """Return the conditions of a search for traces that started in a period."""
    bounds = (">=", since), ("<", until)
    return [f"timestamp_ms {sign} {round(at.timestamp() * 1000)}" for sign, at in bounds if at is not None]


def _metrics(traces: Sequence[TraceInfo]) -> dict[str, float]:
    """Return a version's row, by column."""
    errors = pd.Series([trace.state == TraceState.ERROR for trace in traces], dtype="float")
    latency = pd.Series([trace.execution_duration for trace in traces], dtype="float")
    tokens = pd.DataFrame([trace.token_usage or {} for trace in traces], columns=_TOKENS, dtype="float")
    assessments = pd.DataFrame([_assessments(trace) for trace in traces], dtype="float")
    return {
        "traces": len(traces),
        "errors": int(errors.sum()),
        "error_rate": errors.mean(),
        "latency_p50": latency.quantile(0.5),
        "latency_p95": latency.quantile(0.95),
        **tokens.mean(),
        **assessments.mean().sort_index().add_suffix("/mean"),
    }


def _assessments(trace: TraceInfo) -> dict[str, float]:
    """Return the mean value of each assessment of a trace, by name; several people may have made the same one."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for assessment in trace.assessments:
        if isinstance(assessment, Feedback) and assessment.valid is not False:  # False: replaced by a later one
            value = assessment.value
            rating = _RATINGS.get(value.lower()) if isinstance(value, str) else value
            if isinstance(rating, int | float):
                values[assessment.name].append(float(rating))
    return {name: fmean(ratings) for name, ratings in values.items()}
