"""POML's own local trace files, as ``poml.set_trace(trace_dir=…)`` has them (poml 0.0.8).

One render is one number: ``0001.support.poml`` (the markup), ``.env`` and ``.source.poml`` (where it came from),
``.context.json``, ``.stylesheet.json``, ``.result.json`` and ``.result.txt``. POML's extension for editors and
``poml.trace_artifact()`` read them.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pomlflow.dispatch import Mask
from pomlflow.exceptions import ConfigurationError
from pomlflow.frame.formats import indented, pretty
from pomlflow.record import RenderRecord

__all__ = ["TraceFiles"]


class TraceFiles:
    """A folder of trace files. Threads and processes may write to it at once, POML's Node ones too.

    Args:
        folder: The folder, which is there.

    Example:
        >>> files = TraceFiles.of_this_run("pomlruns")
        >>> files.write(Template("<p>Hello</p>").render({}), None).name
        '0001'
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    @classmethod
    def of_this_run(cls, trace_dir: str | os.PathLike[str]) -> TraceFiles:
        """Make a folder in a folder, named by the moment as poml names it.

        Args:
            trace_dir: The outer folder; it is made where it is not there.

        Returns:
            The inner one, which is no other process's.

        Raises:
            ConfigurationError: It cannot be made.
        """
        try:
            Path(trace_dir).mkdir(parents=True, exist_ok=True)
            while True:
                folder = Path(trace_dir, f"{dt.datetime.now():%Y%m%d%H%M%S%f}")  # noqa: DTZ005 - local, as poml's
                with contextlib.suppress(FileExistsError):  # of a process that started in the same microsecond
                    folder.mkdir()
                    return cls(folder)
        except OSError as error:
            raise ConfigurationError(f"trace_dir: no folder can be made in {trace_dir}: {error}") from error

    def write(self, record: RenderRecord, file: Path | None, mask: Mask | None = None) -> Path:
        """Write a render down, also a failed one, which has no result.

        Args:
            record: The render.
            file: The absolute path of its file; None for inline markup.
            mask: What may be written, of what a span would hold.

        Returns:
            The path that all its files begin with.
        """
        content = _content(record) if mask is None else _masked_content(record, mask)
        name = file.name.removesuffix(".poml") if file is not None else record.name or ""
        with self._lock:
            prefix = self._begin(name, str(content.pop(".poml", "")))
        if file is not None:
            _write(prefix, ".env", f"SOURCE_PATH={file}\n")
            with contextlib.suppress(OSError, NotImplementedError):  # Windows lets few users make links
                Path(f"{prefix}.source.poml").symlink_to(file)
        for suffix, text in content.items():
            _write(prefix, suffix, text)
        return prefix

    def _begin(self, name: str, markup: str) -> Path:
        """Take the first number that no file has, and write the markup."""
        taken = {entry.name[:4] for entry in os.scandir(self.folder) if entry.name[:4].isdigit()}
        number = 1
        while True:
            if f"{number:04}" not in taken:
                with self._claim(number) as ours:
                    # Once more: another process may have had the number claimed, used, and let go since.
                    if ours and not any(self.folder.glob(f"{number:04}*")):
                        prefix = self.folder / f"{number:04}{f'.{name}' if name else ''}"
                        _write(prefix, ".poml", markup, new=True)
                        return prefix
            number += 1

    @contextlib.contextmanager
    def _claim(self, number: int) -> Iterator[bool]:
        """Have a number for oneself: of all that make a folder, one succeeds, on every system."""
        claim = self.folder / f".{number:04}"
        try:
            claim.mkdir()
        except FileExistsError:
            yield False
            return
        try:
            yield True
        finally:
            claim.rmdir()


def _content(record: RenderRecord) -> dict[str, str]:
    """What of a render goes where, by suffix."""
    found = {".poml": record.source}
    if record.variables:
        found[".context.json"] = indented(dict(record.variables))
    if record.stylesheet:
        found[".stylesheet.json"] = indented(dict(record.stylesheet))
    if record.output is not None:
        found[".result.json"] = indented(dict(record.output))
        found[".result.txt"] = pretty(record.output)
    return found


def _masked_content(record: RenderRecord, mask: Mask) -> dict[str, Any]:
    """The same as far as the mask lets it: it is asked what it is asked for a span, so the result is in that shape."""
    from pomlflow.tracking.spans import masked, span_content

    kept = masked(mask, **copy.deepcopy(span_content(record)))
    inputs = kept.get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    found: dict[str, Any] = {".poml": inputs.get("prompt") or ""}
    for key in ("context", "stylesheet"):
        if inputs.get(key):
            found[f".{key}.json"] = indented(inputs[key])
    if record.error is None and kept.get("outputs") is not None:
        found[".result.json"] = indented(kept["outputs"])
    return found


def _write(prefix: Path, suffix: str, text: str, *, new: bool = False) -> None:
    with Path(f"{prefix}{suffix}").open("x" if new else "w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(text)
