"""What a test leaves to the registry's thread."""

from __future__ import annotations

from typing import Any

__all__ = ["forget_pending", "stop_following"]


def forget_pending(registry: Any) -> list[Any]:
    """Drop what a registry can never do, because its server was never there; gives what that was."""
    with registry._errands._changed:
        left = [*registry._errands._waiting, registry._errands._running]
        registry._errands._waiting.clear()
    registry._start_afresh()
    return [entry for entry in left if entry is not None]


def stop_following(registry: Any) -> None:
    """Look no more for versions of prompts that the garbage collector has not come to yet."""
    with registry.loads._changed:
        registry.loads._waiting.clear()
