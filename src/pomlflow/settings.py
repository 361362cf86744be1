"""What a user can set, once, for the whole process."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pomlflow.exceptions import ConfigurationError

__all__ = ["Settings", "configure", "settings"]


@dataclass(frozen=True)
class Settings:
    """The settings in force.

    Attributes:
        timeout: Seconds that a render may take before its Node process is ended (``POMLFLOW_TIMEOUT``).
        prompt_root: The folder that prompt names and stored paths are relative to (``POMLFLOW_PROMPT_ROOT``). None:
            the working folder where the file lies under it, else the file's own folder.
        exact_openai_chat: Whether the format ``openai_chat`` is byte for byte poml's, with what OpenAI's API refuses
            (``POMLFLOW_EXACT_OPENAI_CHAT``).
    """

    timeout: float = 30.0
    prompt_root: Path | None = None
    exact_openai_chat: bool = False


_current: Settings | None = None


def settings() -> Settings:
    """The settings in force: those of `configure`, else of the environment, else the defaults."""
    global _current
    if _current is None:
        timeout = os.environ.get("POMLFLOW_TIMEOUT")
        root = os.environ.get("POMLFLOW_PROMPT_ROOT")
        _current = Settings(
            timeout=_seconds("POMLFLOW_TIMEOUT", timeout) if timeout else Settings.timeout,
            prompt_root=Path(root) if root else None,
            exact_openai_chat=os.environ.get("POMLFLOW_EXACT_OPENAI_CHAT", "").lower() in ("1", "true", "yes"),
        )
    return _current


def configure(
    *,
    timeout: float | None = None,
    prompt_root: str | os.PathLike[str] | None = None,
    exact_openai_chat: bool | None = None,
) -> Settings:
    """Change what holds for the whole process; what is not given stays as it is.

    Args:
        timeout: Seconds that a render may take, above 0.
        prompt_root: The folder that prompt names and stored paths are relative to.
        exact_openai_chat: Whether the format ``openai_chat`` is byte for byte poml's, with what OpenAI's API refuses.

    Returns:
        The settings now in force.

    Raises:
        ConfigurationError: A value makes no sense.

    Example:
        >>> import pomlflow
        >>> pomlflow.configure(timeout=30).timeout
        30.0
    """
    global _current
    changes: dict[str, Any] = {}
    if timeout is not None:
        changes["timeout"] = _seconds("timeout", timeout)
    if prompt_root is not None:
        changes["prompt_root"] = Path(prompt_root)
    if exact_openai_chat is not None:
        changes["exact_openai_chat"] = bool(exact_openai_chat)
    _current = replace(settings(), **changes)
    return _current


def _seconds(name: str, value: str | float) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{name} is {value!r}: give a number of seconds above 0")
    return seconds
