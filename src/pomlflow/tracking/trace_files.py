"""Write POML's own local trace files, like ``poml.set_trace(trace_dir=…)`` (poml 0.0.8)."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import itertools
import os
import threading
from pathlib import Path
from typing import Any

from pomlflow.dispatch import Mask
from pomlflow.exceptions import ConfigurationError
from pomlflow.frame.openai import indented_json, readable_text
from pomlflow.record import RenderRecord


class TraceFiles:
    """An existing folder of trace files. Several threads and processes may write to it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    @classmethod
    def of_this_run(cls, trace_dir: str | os.PathLike[str]) -> TraceFiles:
        """Make a new folder in `trace_dir` for this process, named after the current time as poml does."""
        try:
            Path(trace_dir).mkdir(parents=True, exist_ok=True)
            while True:
                folder = Path(trace_dir, f"{dt.datetime.now():%Y%m%d%H%M%S%f}")  # noqa: DTZ005 - local, as poml's
                with contextlib.suppress(FileExistsError):  # another process started in the same microsecond
                    folder.mkdir()
                    return cls(folder)
        except OSError as error:
            raise ConfigurationError(f"trace_dir: cannot make a folder in {trace_dir}: {error}") from error

    def write(self, record: RenderRecord, file: Path | None, mask: Mask | None = None) -> Path:
        """Write the files of a render, whose template's file is `file`, and return the prefix of their paths."""
        content = _content(record, mask)
        name = file.name.removesuffix(".poml") if file is not None else record.name or ""
        with self._lock:
            prefix = self._write_markup(name, content.pop(".poml"))
        if file is not None:
            _write(prefix, ".env", f"SOURCE_PATH={file}\n")
            with contextlib.suppress(OSError, NotImplementedError):  # Windows lets few users make links
                Path(f"{prefix}.source.poml").symlink_to(file)
        for suffix, text in content.items():
            _write(prefix, suffix, text)
        return prefix

    def _write_markup(self, name: str, markup: str) -> Path:
        """Write the markup under the first free number, as poml does."""
        taken = {entry.name.partition(".")[0] for entry in os.scandir(self.folder)}
        for number in itertools.count(1):
            prefix = self.folder / f"{number:04}{f'.{name}' if name else ''}"
            if f"{number:04}" not in taken:
                with contextlib.suppress(FileExistsError):  # another process has just taken the number
                    _write(prefix, ".poml", markup, new=True)
                    break
        return prefix


def _content(record: RenderRecord, mask: Mask | None) -> dict[str, str]:
    """Return the content of each file, by suffix; a masked result has the form of a span's outputs."""
    inputs: Any = {"prompt": record.source, "context": dict(record.variables), "stylesheet": record.stylesheet}
    result = None if record.output is None else dict(record.output)
    files: dict[str, str] = {} if result is None or mask is not None else {".result.txt": readable_text(result)}
    if mask is not None:
        from pomlflow.tracking.redaction import masked
        from pomlflow.tracking.spans import span_content

        kept = masked(mask, **copy.deepcopy(span_content(record)))
        inputs, result = kept.get("inputs"), None if record.error else kept.get("outputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    files[".poml"] = str(inputs.get("prompt") or "")
    for key in ("context", "stylesheet"):
        if inputs.get(key):
            files[f".{key}.json"] = indented_json(inputs[key])
    if result is not None:
        files[".result.json"] = indented_json(result)
    return files


def _write(prefix: Path, suffix: str, text: str, *, new: bool = False) -> None:
    with Path(f"{prefix}{suffix}").open("x" if new else "w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(text)
