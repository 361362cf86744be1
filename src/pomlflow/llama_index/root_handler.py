"""The handler that is attached to all of LlamaIndex while `pomlflow.autolog` is on."""

from __future__ import annotations

from typing import Final

from pomlflow.dispatch import Mask
from pomlflow.llama_index.handler import PomlCallbackHandler

__all__ = ["attach", "detach"]

_attached: Final[list[PomlCallbackHandler]] = []  # one, or none


def attach(register: bool, mask: Mask | None) -> None:
    """Attach a handler, and then detach the one before it, so that every span finds one."""
    _attached.append(PomlCallbackHandler(register, mask).attach())
    while len(_attached) > 1:
        _attached.pop(0).detach()


def detach() -> None:
    """Detach the handler."""
    while _attached:
        _attached.pop().detach()
