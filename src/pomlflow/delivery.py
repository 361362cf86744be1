"""Who is told of renders that no framework's own event tells of.

Two kinds of listeners, neither of which may raise or take long:

- An *observer* hears of every render, wherever it was made: POML's local trace files are written by one.
- A *carrier* takes a plain render, made by `pomlflow.render` or `poml.poml()`, to its place in a trace, or leaves it to
  the next: that of LangChain knows the run around the call, that of LlamaIndex the step, and that of `autolog` takes
  what is part of neither.

Whoever traces adds itself here; what renders knows nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pomlflow.record import RenderRecord

__all__ = ["AUTOLOG", "LANGCHAIN", "LLAMA_INDEX", "Carrier", "Observer", "carry", "deliver", "observe", "observed"]

Observer = Callable[[RenderRecord, "Path | None"], None]
"""Takes a render, and the absolute path of its file."""
Carrier = Callable[[RenderRecord, float], bool]
"""Takes a render, and the seconds that it may wait for the prompt's version; gives whether it has stored it."""

LANGCHAIN: Final = 0
LLAMA_INDEX: Final = 1
AUTOLOG: Final = 2
_WAIT: Final = 0.005

_observer: Observer | None = None
_carriers: dict[int, Carrier] = {}


def observe(observer: Observer | None) -> None:
    """Set who hears of every render; None for nobody."""
    global _observer
    _observer = observer


def observed(record: RenderRecord, file: Path | None) -> RenderRecord:
    """Tell the observer of a render, and give it back."""
    if _observer is not None:
        _observer(record, file)
    return record


def carry(place: int, carrier: Carrier | None) -> None:
    """Set who takes plain renders to their place.

    Args:
        place: `LANGCHAIN`, `LLAMA_INDEX` or `AUTOLOG`, which are asked in this order: LangChain's carrier finds the
            span of LlamaIndex's that is open inside a run, and the last takes everything.
        carrier: None for nobody.
    """
    global _carriers
    others = {other: one for other, one in _carriers.items() if other != place}
    # A new dict: another thread may be going through the old one.
    _carriers = dict(sorted([*others.items(), *([] if carrier is None else [(place, carrier)])]))


def deliver(record: RenderRecord) -> None:
    """Take a plain render to its place in a trace, where anybody traces here.

    Example:
        >>> from pomlflow.template import Template
        >>> deliver(Template("<p>Hello</p>").render({}))
    """
    if _carriers:
        wait = _WAIT if asyncio._get_running_loop() is None else 0.0  # an event loop never waits
        any(carrier(record, wait) for carrier in _carriers.values())
