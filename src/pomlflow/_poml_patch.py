"""The patch of ``poml.poml()``: the engine renders instead of poml's command line; the rest of the function is poml's.

So the results are those of poml, including its faults. ``poml.set_trace()`` works as in poml, except that traces in
MLflow are made by pomlflow.
"""

from __future__ import annotations

import itertools
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any, Final

from pomlflow.api import json_object, template_of
from pomlflow.dispatch import Mask, RenderContext, dispatch
from pomlflow.frame.openai import raw_json

_OPTIONS: Final = frozenset({"-f", "-o", "--context-file", "--stylesheet-file", "--chat", "--traceDir"})
_originals: Final[list[tuple[ModuleType, str, Any]]] = []  # the replaced attributes: module, name, value
_texts: Final[dict[str, str]] = {}  # by the file name that poml passes to its command line
_numbers: Final = itertools.count()


def attach(_register: bool = True, mask: Mask | None = None) -> None:
    """Replace poml's functions that run its command line and write the temporary files for it."""
    detach()
    api = import_module("poml.api")
    run, write_file = api.run, api.write_file

    def run_in_engine(*args: str) -> Any:
        options = dict(zip(args[::2], args[1::2], strict=False))
        if len(args) % 2 == 0 and options.keys() <= _OPTIONS:
            _render(options, mask)
            return CompletedProcess(args, 0)
        # extra_args were given, which only poml's command line can handle.
        files = {name: write_file(text) for name, text in _texts.items() if name in args}
        return run(*(files[arg].name if arg in files else arg for arg in args))

    _replace(api, "run", run_in_engine)
    _replace(api, "write_file", _Text)


def detach() -> None:
    """Restore poml's own functions."""
    while _originals:
        setattr(*_originals.pop())


def _replace(module: ModuleType, name: str, value: Any) -> None:
    _originals.append((module, name, getattr(module, name)))
    setattr(module, name, value)


class _Text:
    """A text in memory, in place of poml's temporary file."""

    def __init__(self, text: str) -> None:
        self.name = f"<pomlflow {next(_numbers)}>"
        _texts[self.name] = text

    def close(self) -> None:
        del _texts[self.name]


def _render(options: dict[str, str], mask: Mask | None) -> None:
    """Render what the options of poml's command line name, trace it, and write the output and local trace files."""
    markup = options["-f"]
    stylesheet, context = (_object(options, kind) for kind in ("stylesheet", "context"))
    template = template_of(
        _texts[markup] if markup in _texts else Path(markup),
        {"stylesheet": stylesheet, "chat": options["--chat"] == "true"},
    )
    record = template.render(context or {}, exact=True)
    _disable_mlflow_trace()
    dispatch(record, RenderContext(file=template.path))
    if "--traceDir" in options:
        from pomlflow.tracking.trace_files import TraceFiles

        TraceFiles(Path(options["--traceDir"])).write(record, template.path, mask=mask)
    Path(options["-o"]).write_text(raw_json(record.result()), encoding="utf-8", newline="")


def _object(options: dict[str, str], kind: str) -> Any:
    file = options.get(f"--{kind}-file")
    return None if file is None else json_object(_texts.get(file, Path(file)), kind)


def _disable_mlflow_trace() -> None:
    """Switch off the trace that ``poml.set_trace("mlflow")`` writes."""
    if import_module("poml.api")._mlflow_enabled:
        module = import_module("poml.integration.mlflow")
        if all(name != "log_poml_call" for _, name, _ in _originals):
            _replace(module, "log_poml_call", lambda *_: None)
