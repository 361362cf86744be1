"""The patch of ``poml.poml()``, which makes it warm and traced wherever it is called by that name.

Its results stay exactly poml's own, faults included. What ``poml.set_trace()`` writes besides MLflow (its log, local
files, Weave and AgentOps) is still written; MLflow's part is ours.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pomlflow._log import warn_once
from pomlflow.api import poml_record
from pomlflow.frame.openai import Format, converted, raw
from pomlflow.record import RenderRecord

__all__ = ["install", "remove"]

_ours: list[Callable[..., Any]] = []  # the function that is installed now, or nothing


def install() -> None:
    """Replace ``poml.poml``; warn about modules that imported poml's own function by name before."""
    from poml import api

    if api.poml in _ours:
        return
    original = api.poml
    _ours[:] = [_replacement(original)]
    early = set()
    for module, name in list(_holders(original)):
        if _is_in_poml(module):
            setattr(module, name, _ours[0])
        else:
            early.add(module.__name__)
    if early:
        warn_once(
            ("poml by name", frozenset(early)),
            "%s imported poml's poml() by name before pomlflow.autolog(): calls there are neither warm nor traced. "
            "Call pomlflow.autolog() before that import, or call poml.poml(...) there.",
            ", ".join(sorted(early)),
        )


def remove() -> None:
    """Restore poml's own function; modules that imported ours by name call poml's own through it."""
    for ours in _ours:
        for module, name in list(_holders(ours)):
            if _is_in_poml(module):
                setattr(module, name, ours.__wrapped__)  # type: ignore[attr-defined]
    _ours.clear()


def _holders(function: Callable[..., Any]) -> Iterator[tuple[ModuleType, str]]:
    """Yield the modules that have a function, and its names there."""
    for module in list(sys.modules.values()):
        # Not by getattr, which makes a lazy module import what it holds.
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function:
                yield module, name


def _is_in_poml(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] == "poml"


def _replacement(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def poml(
        markup: str | Path,
        context: Mapping[str, Any] | str | Path | None = None,
        stylesheet: Mapping[str, Any] | str | Path | None = None,
        chat: bool = True,
        output_file: str | Path | None = None,
        format: Any = "message_dict",  # noqa: A002
        extra_args: list[str] | None = None,
    ) -> Any:
        if poml not in _ours or extra_args:  # options of a command line, which we do not run
            return original(markup, context, stylesheet, chat, output_file, format, extra_args)
        record = poml_record(markup, context, stylesheet, chat, format)
        _trace_as_poml(record, markup, context, stylesheet, format)
        if output_file is not None:
            Path(output_file).write_text(raw(record.result()), encoding="utf-8", newline="")
        return _exactly(record, format)

    return poml


def _exactly(record: RenderRecord, format: Format) -> Any:  # noqa: A002
    """Return what poml 0.0.8 makes of a frame, by its own functions where ours correct its faults."""
    from poml import api

    if format not in ("openai_chat", "langchain"):
        return converted(record, format)
    output, frame = record.result(), record.frame
    if format == "langchain":
        return {**output, "messages": api._poml_response_to_langchain(frame.messages)}
    made: dict[str, Any] = {"messages": api._poml_response_to_openai_chat(frame.messages)}
    if frame.tools:
        made["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.get("name", ""),
                    "description": tool.get("description", ""),
                    "parameters": tool.get("parameters", {}),
                },
            }
            for tool in frame.tools
        ]
    if frame.output_schema:
        described = {"name": "schema", "schema": frame.output_schema, "strict": True}
        made["response_format"] = {"type": "json_schema", "json_schema": described}
    return made | {api._camel_case_to_snake_case(key): value for key, value in (frame.runtime or {}).items()}


def _trace_as_poml(record: RenderRecord, markup: Any, context: Any, stylesheet: Any, format: str) -> None:  # noqa: A002
    """Write what ``poml.set_trace()`` enabled besides MLflow, as poml 0.0.8 writes it."""
    from poml import api

    if not api._trace_enabled:
        return
    entry: dict[str, Any] = {"markup": record.source}
    if record.path is not None:
        entry["markup_path"] = str(markup)
    for key, given, value in (
        ("context", context, dict(record.variables)),
        ("stylesheet", stylesheet, record.stylesheet),
    ):
        if given:
            entry[key] = json.dumps(value)
            if not isinstance(given, Mapping):
                entry[f"{key}_path"] = str(given)
    if record.output is not None:
        entry["result"] = raw(record.output) if format == "raw" else dict(record.output)
    api._trace_log.append(entry)
    if api._trace_dir is None:
        return
    from pomlflow.tracking.trace_files import TraceFiles

    file = None if record.path is None else Path(markup).absolute()
    prefix = TraceFiles(Path(api._trace_dir)).write(record, file)
    for backend in ("weave", "agentops"):
        if getattr(api, f"_{backend}_enabled") and "result" in entry:
            module = __import__(f"poml.integration.{backend}", fromlist=["log_poml_call"])
            variables = dict(record.variables) or None
            module.log_poml_call(prefix.name, record.source, variables, record.stylesheet, entry["result"])
