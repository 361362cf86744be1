"""``poml.poml()`` replaced by our own, and put back.

A program that calls ``poml.poml(...)`` gets it warm and traced without a change. What poml's own tracing does beside
MLflow (`poml.set_trace`: its log, its local files, Weave and AgentOps) goes on; what it does in MLflow is ours.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pomlflow.api import poml_record
from pomlflow.frame.formats import converted, raw
from pomlflow.record import RenderRecord

__all__ = ["install", "remove"]

_log = logging.getLogger("pomlflow")
_installed: Callable[..., Any] | None = None  # ours, while it stands in poml's place
_told: set[str] = set()


def install() -> None:
    """Put ours in the place of ``poml.poml``, and say which modules took poml's own before."""
    global _installed
    from poml import api

    if _installed is not None and api.poml is _installed:
        return
    original = api.poml
    _installed = _replacement(original)
    holders = list(_holders(original))
    for module, name in holders:
        if _is_polms(module):
            setattr(module, name, _installed)
    _tell({module.__name__ for module, _ in holders if not _is_polms(module)} - _told)


def remove() -> None:
    """Put poml's own back. Who has taken ours by name calls poml's own through it."""
    global _installed
    ours, _installed = _installed, None
    if ours is not None:
        for module, name in _holders(ours):
            if _is_polms(module):
                setattr(module, name, ours.__wrapped__)  # type: ignore[attr-defined]
    _told.clear()


def _holders(function: Callable[..., Any]) -> Iterator[tuple[ModuleType, str]]:
    """The modules that have a function, and the names that they have it under."""
    for module in list(sys.modules.values()):
        # Not by getattr, which makes a lazy module import what it stands for.
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function:
                yield module, name


def _is_polms(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] == "poml"


def _tell(modules: set[str]) -> None:
    if modules:
        _told.update(modules)
        _log.warning(
            "poml's own poml() was taken by name in %s before pomlflow.autolog() was called: calls there are neither "
            "warm nor traced. Call pomlflow.autolog() before that import, or write poml.poml(...) there.",
            ", ".join(sorted(modules)),
        )


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
        if _installed is not poml or extra_args:  # options of a command line, which runs none here
            return original(markup, context, stylesheet, chat, output_file, format, extra_args)
        record = poml_record(markup, context, stylesheet, chat, format)
        _trace_as_poml(record, markup, context, stylesheet, format)
        if output_file is not None:
            Path(output_file).write_text(raw(record.result()), encoding="utf-8", newline="")
        return converted(record, format, exact=True)

    return poml


def _trace_as_poml(record: RenderRecord, markup: Any, context: Any, stylesheet: Any, format: str) -> None:  # noqa: A002
    """Do what `poml.set_trace` has asked for beside MLflow, as poml 0.0.8 does it."""
    from poml import api

    if not getattr(api, "_trace_enabled", False):
        return
    entry: dict[str, Any] = {"markup": record.source}
    if os.path.exists(str(markup)):  # noqa: PTH110 - of markup, Path.exists raises that the name is too long
        entry["markup_path"] = str(markup)
    for key, given, value in (
        ("context", context, dict(record.variables)),
        ("stylesheet", stylesheet, record.stylesheet),
    ):
        if isinstance(given, Mapping):
            entry[key] = json.dumps(value)
        elif given:
            entry[f"{key}_path"], entry[key] = str(given), json.dumps(value)
    if record.output is not None:
        entry["result"] = raw(record.output) if format == "raw" else dict(record.output)
    api._trace_log.append(entry)
    folder = getattr(api, "_trace_dir", None)
    if folder is not None:
        _trace_elsewhere(record, Path(folder), Path(markup) if "markup_path" in entry else None, entry)


def _trace_elsewhere(record: RenderRecord, folder: Path, file: Path | None, entry: dict[str, Any]) -> None:
    from poml import api

    from pomlflow.tracking.trace_files import TraceFiles

    prefix = TraceFiles(folder).write(record, file and file.absolute())
    for backend in ("weave", "agentops"):
        if getattr(api, f"_{backend}_enabled", False) and "result" in entry:
            module = __import__(f"poml.integration.{backend}", fromlist=["log_poml_call"])
            variables = dict(record.variables) or None
            module.log_poml_call(prefix.name, record.source, variables, record.stylesheet, entry["result"])
