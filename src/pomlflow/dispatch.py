"""Who is told of renders that no framework's own event tells of.

Whoever traces adds itself here, and what renders knows nobody:

- An *observer* hears of every render, wherever it was made: POML's local trace files are written by one.
- A *framework* takes a render that was made in a call of its own (`pomlflow.poml` in a chain's function, in an agent's
  tool) to its place in the trace, or says that the call is no part of it.
- The *rest* takes what is part of nothing: it is set by `pomlflow.autolog`, for each kind of prompt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from pomlflow.exceptions import ConfigurationError
from pomlflow.record import RenderRecord

__all__ = [
    "PATIENCE",
    "Carrier",
    "Kind",
    "Mask",
    "Observer",
    "checked_mask",
    "deliver",
    "join",
    "observe",
    "observed",
    "patience_here",
    "take_rest",
]

Mask = Callable[[dict[str, Any]], "dict[str, Any] | None"]
"""From a span's ``{"inputs": …, "outputs": …}`` to what of it may be stored.

It gets plain data (what JSON can hold) that is its own to change. What it leaves out is not stored. A failed span's
outputs are ``{"error": …}``.
"""
Observer = Callable[[RenderRecord, "Path | None"], object]
"""Takes a render, and the absolute path of its file."""
Carrier = Callable[[RenderRecord, float], bool]
"""Takes a render, and the seconds that it may wait for the prompt's version; gives whether the render is its own."""
Kind = Literal["plain", "langchain"]
"""Whose prompt was rendered. LlamaIndex's own events tell of LlamaIndex's, outside of all engines and agents too."""

_log = logging.getLogger("pomlflow")
PATIENCE: Final = 0.005
"""Seconds that a render waits for its prompt's version, so that a first trace is linked when it is exported."""
# LangChain first: its carrier finds LlamaIndex's span where one is open inside a run.
_ORDER: Final = ("langchain", "llama_index")

_observer: Observer | None = None
_failed = False
_frameworks: dict[str, Carrier] = {}
_rest: dict[Kind, Carrier] = {}


def patience_here() -> float:
    """Tell how long finding a prompt's version may take here: an event loop never waits."""
    return PATIENCE if asyncio._get_running_loop() is None else 0.0


def checked_mask(mask: Mask | None) -> Mask | None:
    """Give a mask back that can be asked.

    Raises:
        ConfigurationError: It is no function.
    """
    if mask is not None and not callable(mask):
        raise ConfigurationError(f"mask takes a function, not a {type(mask).__name__}")
    return mask


def observe(observer: Observer | None) -> None:
    """Set who hears of every render; None for nobody."""
    global _observer
    _observer = observer


def observed(record: RenderRecord, file: Path | None) -> RenderRecord:
    """Tell the observer of a render, and give it back. Never raises.

    Args:
        record: The render.
        file: The absolute path of its file; None for inline markup.
    """
    global _failed
    if _observer is not None:
        try:
            _observer(record, file)
        except Exception as error:  # noqa: BLE001 - telemetry never hurts
            if not _failed:
                _failed = True
                _log.warning("A render could not be written down: %r (said once)", error)
    return record


def join(framework: str, carrier: Carrier) -> None:
    """Have a framework take renders that are made in its calls.

    Args:
        framework: ``langchain`` or ``llama_index``.
        carrier: What takes them.
    """
    _frameworks[framework] = carrier


def take_rest(kind: Kind, carrier: Carrier | None) -> None:
    """Set who takes renders of a kind that are part of nothing; None for nobody."""
    if carrier is None:
        _rest.pop(kind, None)
    else:
        _rest[kind] = carrier


def deliver(record: RenderRecord, kind: Kind = "plain") -> None:
    """Take a render to its place in a trace, where anybody traces here.

    Args:
        record: The render.
        kind: Whose prompt was rendered.

    Example:
        >>> from pomlflow.template import Template
        >>> deliver(Template("<p>Hello</p>").render({}))
    """
    if not _frameworks and not _rest:
        return
    wait = patience_here()
    for name in _ORDER:
        if (carrier := _frameworks.get(name)) is not None and carrier(record, wait):
            return
    if (carrier := _rest.get(kind)) is not None:
        carrier(record, wait)
