"""Dispatch render records to the sinks that trace them.

An adapter calls `dispatch` once for each render, including failed ones, and does not know the sinks. A sink is
registered with `set_sink` when its handler or `autolog` is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pomlflow._log import warn_once
from pomlflow.exceptions import ConfigurationError
from pomlflow.record import RenderRecord

Mask = Callable[[dict[str, Any]], "dict[str, Any] | None"]
"""A function that takes a span's ``{"inputs": …, "outputs": …}`` and returns what may be stored of it.

The argument is plain data (JSON types), and the function may change it. Keys that are missing in the result are not
stored. The outputs of a failed span are ``{"error": …}``.
"""
Framework = Literal["plain", "langchain", "llama_index"]
SinkName = Literal["trace_files", "langchain", "llama_index", "autolog"]


@dataclass(frozen=True)
class RenderContext:
    """Where a render took place."""

    framework: Framework = "plain"
    file: Path | None = None  # the absolute path of the prompt's file


Sink = Callable[[RenderRecord, RenderContext], bool]
"""A function that stores a render, and returns True to keep it from the sinks after it."""

_PLAIN: Final = RenderContext()
# LangChain before LlamaIndex: the LangChain sink also finds a LlamaIndex span that is open inside a run.
_ORDER: Final[tuple[SinkName, ...]] = ("trace_files", "langchain", "llama_index", "autolog")
_sinks: dict[SinkName, Sink] = {}


def set_sink(name: SinkName, sink: Sink | None) -> None:
    """Set, replace or (with None) remove a sink."""
    if sink is None:
        _sinks.pop(name, None)
    else:
        _sinks[name] = sink


def dispatch(record: RenderRecord, context: RenderContext = _PLAIN) -> None:
    """Pass a render to the sinks, in a fixed order, until one of them returns True. Never raises."""
    if not _sinks:
        return
    for name in _ORDER:
        sink = _sinks.get(name)
        if sink is None:
            continue
        try:
            if sink(record, context):
                return
        except Exception as error:  # noqa: BLE001 - telemetry never raises into the user's call
            warn_once(("dispatch", name), "A render could not be traced (%s): %r", name, error)


def check_mask(mask: Mask | None) -> Mask | None:
    """Return the mask, or raise a `ConfigurationError` if it is not a function."""
    if mask is not None and not callable(mask):
        raise ConfigurationError(f"mask must be a function, not a {type(mask).__name__}")
    return mask
