"""What a user can set, for the whole process or for a block."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pomlflow.exceptions import ConfigurationError

__all__ = ["Settings", "configure", "configured", "settings"]

_MOST = 8  # Node processes by default: each takes 250 MB


@dataclass(frozen=True)
class Settings:
    """The settings in force.

    Attributes:
        timeout: Seconds that a render may take before its Node process is ended (``POMLFLOW_TIMEOUT``).
        prompt_root: The folder that prompt names and stored paths are relative to (``POMLFLOW_PROMPT_ROOT``). None:
            the working folder where the file lies under it, else the file's own folder.
        exact_openai_chat: Whether the format ``openai_chat`` is byte for byte poml's, with what OpenAI's API refuses
            (``POMLFLOW_EXACT_OPENAI_CHAT``).
        max_workers: Node processes that there may be (``POMLFLOW_MAX_WORKERS``); 0 for as many as this process has
            cores, and 8 at the most.
        max_queue: Renders that may wait for one (``POMLFLOW_MAX_QUEUE``).
        max_memory: Megabytes that a Node process may grow to before another one takes its place
            (``POMLFLOW_MAX_MEMORY``).
        cached_results: Results that are kept and given again for equal markup and variables, as if no file and no clock
            had changed (``POMLFLOW_CACHED_RESULTS``).
        max_content: Characters of a text in a trace's inputs and outputs; what is longer is cut, and media that are
            longer are left out (``POMLFLOW_MAX_CONTENT``). 0 for no limit.
        allow_read: Folders that templates may read beside their own, the prompt root and the working folder
            (``POMLFLOW_ALLOW_READ``, separated as in ``PATH``).
        sandbox: Whether templates run without the right to read elsewhere, write, start processes and reach the
            network (``POMLFLOW_SANDBOX``, 0 or 1).
    """

    timeout: float = 30.0
    prompt_root: Path | None = None
    exact_openai_chat: bool = False
    max_workers: int = 0
    max_queue: int = 1_000
    max_memory: int = 512
    cached_results: int = 0
    max_content: int = 0
    allow_read: tuple[Path, ...] = ()
    sandbox: bool = True

    @property
    def workers(self) -> int:
        """Node processes that there may be."""
        return self.max_workers or _CORES


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


_CORES = _cores()
_current: Settings | None = None
_here: ContextVar[Mapping[str, Any] | None] = ContextVar("pomlflow_settings", default=None)  # what differs


def settings() -> Settings:
    """The settings in force: of `configured`, else of `configure`, else of the environment, else the defaults."""
    changes = _here.get()
    return _everywhere() if changes is None else replace(_everywhere(), **changes)


def _everywhere() -> Settings:
    global _current
    if _current is None:
        given: dict[str, Any] = {name: os.environ.get(_variable(name)) or None for name in _CHECKS}
        if given["allow_read"] is not None:
            given["allow_read"] = [folder for folder in given["allow_read"].split(os.pathsep) if folder]
        _current = Settings(**_checked(given, _variable))
    return _current


def _variable(name: str) -> str:
    return f"POMLFLOW_{name.upper()}"


def configure(
    *,
    timeout: float | None = None,
    prompt_root: str | os.PathLike[str] | None = None,
    exact_openai_chat: bool | None = None,
    max_workers: int | None = None,
    max_queue: int | None = None,
    max_memory: int | None = None,
    cached_results: int | None = None,
    max_content: int | None = None,
    allow_read: Iterable[str | os.PathLike[str]] | None = None,
    sandbox: bool | None = None,
) -> Settings:
    """Change what holds for the whole process; what is not given stays as it is.

    Args:
        timeout: Seconds that a render may take, above 0.
        prompt_root: The folder that prompt names and stored paths are relative to; an empty text for none again.
        exact_openai_chat: Whether the format ``openai_chat`` is byte for byte poml's, with what OpenAI's API refuses.
        max_workers: Node processes that there may be, 0 for as many as this process has cores, and 8 at the most. They
            are started as there is work; a smaller number ends none of those that are there.
        max_queue: Renders that may wait for one; a further one is an `EngineBusyError`.
        max_memory: Megabytes that a Node process may grow to before another one takes its place.
        cached_results: Results that are kept and given again for equal markup and variables; 0, the default, keeps
            none. Files that a template reads and the clock may change meanwhile, and are not looked at.
        max_content: Characters of a text in a trace's inputs and outputs: what is longer is cut there, and says how
            much is missing; images, sounds and files whose base64 is longer are left out. A render with cut inputs
            cannot be replayed. 0, the default, for no limit. It does not reach what MLflow's autolog traces beside
            POML's spans, nor prompt versions, which are whole.
        allow_read: Folders that templates may read beside their own, the prompt root and the working folder; it
            replaces what was given before. A prompt from the registry never reads them.
        sandbox: False lifts the sandbox: templates then run with all rights of this process's user.

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
    changes = {
        "timeout": timeout,
        "prompt_root": prompt_root,
        "exact_openai_chat": exact_openai_chat,
        "max_workers": max_workers,
        "max_queue": max_queue,
        "max_memory": max_memory,
        "cached_results": cached_results,
        "max_content": max_content,
        "allow_read": allow_read,
        "sandbox": sandbox,
    }
    _current = replace(_everywhere(), **_checked(changes))
    return _current


@contextmanager
def configured(*, timeout: float | None = None, cached_results: int | None = None) -> Iterator[Settings]:
    """Change settings for a block: in this thread or task, and in those that it starts with its context.

    Args:
        timeout: As `configure` takes it.
        cached_results: As `configure` takes it; 0 keeps the block from what is kept.

    Yields:
        The settings in force in the block.

    Raises:
        ConfigurationError: A value makes no sense.

    Example:
        >>> import pomlflow
        >>> with pomlflow.configured(timeout=5):
        ...     pomlflow.render("<p>Hello</p>").messages[0].content
        'Hello'
    """
    changes = {"timeout": timeout, "cached_results": cached_results}
    token = _here.set({**(_here.get() or {}), **_checked(changes)})
    try:
        yield settings()
    finally:
        _here.reset(token)


def _checked(given: Mapping[str, Any], shown: Callable[[str], str] = str) -> dict[str, Any]:
    """What is given, in the settings' own types; an error calls it as the user does."""
    return {name: _CHECKS[name](shown(name), value) for name, value in given.items() if value is not None}


def _number(least: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = least - 1
        if number < least:
            raise ConfigurationError(f"{name} is {value!r}: give a whole number, {least} or more")
        return number

    return check


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{name} is {value!r}: give a number of seconds above 0")
    return seconds


def _folders(name: str, value: Any) -> tuple[Path, ...]:
    if isinstance(value, str | os.PathLike):
        raise ConfigurationError(f"{name} is {value!r}: give a list of folders")
    return tuple(Path(folder).expanduser().absolute() for folder in value)  # a later chdir moves none of them


def _switch(name: str, value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _SWITCHES:
        raise ConfigurationError(f"{name} is {value!r}: give 1 or 0")
    return _SWITCHES[word]


_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "timeout": _seconds,
    "prompt_root": lambda _, folder: Path(folder).expanduser().absolute() if folder else None,
    "exact_openai_chat": _switch,
    "max_workers": _number(0),
    "max_queue": _number(0),
    "max_memory": _number(1),
    "cached_results": _number(0),
    "max_content": _number(0),
    "allow_read": _folders,
    "sandbox": _switch,
}
