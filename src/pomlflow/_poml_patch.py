"""The patch of ``poml.poml()``: calls by that name use the engine and are traced.

The results stay exactly those of poml, including its faults. The outputs of ``poml.set_trace()`` other than MLflow (its
log, local files, Weave and AgentOps) are still written. The traces in MLflow are pomlflow's.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from pomlflow._log import warn_once
from pomlflow.api import poml_record
from pomlflow.frame.openai import Format, converted, raw
from pomlflow.record import RenderRecord

_ours: Final[list[Callable[..., Any]]] = []  # the installed replacement, if there is one


def attach(*_: object) -> None:
    """Replace ``poml.poml``, and warn about modules that have already imported poml's own function by name."""
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


def detach() -> None:
    """Restore poml's own function; a replacement that a module imported by name calls it from now on."""
    for ours in _ours:
        for module, name in list(_holders(ours)):
            if _is_in_poml(module):
                setattr(module, name, ours.__wrapped__)  # type: ignore[attr-defined]
    _ours.clear()


def _holders(function: Callable[..., Any]) -> Iterator[tuple[ModuleType, str]]:
    """Yield each module that has the function as an attribute, with the attribute's name."""
    for module in list(sys.modules.values()):
        # Read __dict__, not the attributes themselves: a lazy module would import its content.
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function:
                yield module, name


def _is_in_poml(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] == "poml"


def _replacement(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def poml(*args: Any, **options: Any) -> Any:
        call = signature.bind(*args, **options)
        call.apply_defaults()
        given = SimpleNamespace(**call.arguments)
        if poml not in _ours or given.extra_args:  # command-line options: only poml runs a command line
            return original(*args, **options)
        record = poml_record(given.markup, given.context, given.stylesheet, given.chat, given.format, exact=True)
        _trace_as_poml(record, given)
        if given.output_file is not None:
            Path(given.output_file).write_text(raw(record.result()), encoding="utf-8", newline="")
        return _exactly(record, given.format)

    return poml


def _exactly(record: RenderRecord, format: Format) -> Any:  # noqa: A002
    """Return exactly what poml 0.0.8 returns, by its own functions where ours would correct its faults."""
    from poml import api

    if format == "pydantic":
        return api.PomlFrame.model_validate(record.frame.model_dump())
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


def _trace_as_poml(record: RenderRecord, given: SimpleNamespace) -> None:
    """Write the outputs that ``poml.set_trace()`` enabled, other than MLflow, as poml 0.0.8 does."""
    from poml import api

    if not api._trace_enabled:
        return
    entry: dict[str, Any] = {"markup": record.source}
    if record.path is not None:
        entry["markup_path"] = str(given.markup)
    for key, argument, value in (
        ("context", given.context, dict(record.variables)),
        ("stylesheet", given.stylesheet, record.stylesheet),
    ):
        if argument:
            entry[key] = json.dumps(value)
            if not isinstance(argument, Mapping):
                entry[f"{key}_path"] = str(argument)
    if record.output is not None:
        entry["result"] = raw(record.output) if given.format == "raw" else dict(record.output)
    api._trace_log.append(entry)
    if api._trace_dir is None:
        return
    from pomlflow.tracking.trace_files import TraceFiles

    file = None if record.path is None else Path(given.markup).absolute()
    prefix = TraceFiles(Path(api._trace_dir)).write(record, file)
    for backend in ("weave", "agentops"):
        if getattr(api, f"_{backend}_enabled") and "result" in entry:
            module = import_module(f"poml.integration.{backend}")
            variables = dict(record.variables) or None
            module.log_poml_call(prefix.name, record.source, variables, record.stylesheet, entry["result"])
