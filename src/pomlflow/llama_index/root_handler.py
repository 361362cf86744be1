"""The handler that is attached to all of LlamaIndex while `pomlflow.autolog` is on."""

from __future__ import annotations

from typing import Final

from pomlflow.dispatch import Mask
from pomlflow.llama_index.handler import PomlCallbackHandler

__all__ = ["attach", "detach"]

_attached: Final[list[PomlCallbackHandler]] = []  # at most one, except for a moment in `attach`


def attach(register: bool, mask: Mask | None) -> None:
    """Attach a new handler, and detach the previous one afterwards, so that there is a handler for every span."""
    _attached.append(PomlCallbackHandler(register, mask).attach())
    while len(_attached) > 1:
        _attached.pop(0).detach()


def detach() -> None:
    """Detach the handler."""
    while _attached:
        _attached.pop().detach()
