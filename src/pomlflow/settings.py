"""Settings of the whole process, and overrides for a block of code."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Never, TypedDict, Unpack

from pomlflow._arguments import refuse_arguments
from pomlflow.exceptions import ConfigurationError

_MOST_WORKERS: Final = 8  # the maximum by default: each Node process takes 130 MB


@dataclass(frozen=True)
class Settings:
    """The settings in force; `configure` describes them."""

    timeout: float = 30.0
    prompt_root: Path | None = None
    max_workers: int = 0
    max_queue: int = 1_000
    max_memory: int = 512
    max_content: int = 0
    allow_read: tuple[Path, ...] = ()
    sandbox: bool = True

    @property
    def workers(self) -> int:
        """The maximum number of Node processes."""
        return self.max_workers or _usable_cores()


def _usable_cores() -> int:
    """Return the number of cores for this process.

    In a process of ``multiprocessing`` it is one, since its siblings use the other cores. Ray, Spark, Dask and torchrun
    set OMP_NUM_THREADS to that number in the processes that they start.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")  # every multiprocessing process has imported it
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, _MOST_WORKERS, int(share) if share.isdecimal() and int(share) else cores)


class SettingsOptions(TypedDict, total=False):
    """The keyword arguments of `configure`; see there for their meaning. None changes nothing."""

    timeout: float | None
    prompt_root: str | os.PathLike[str] | None
    max_workers: int | None
    max_queue: int | None
    max_memory: int | None
    max_content: int | None
    allow_read: Iterable[str | os.PathLike[str]] | None
    sandbox: bool | None


_current: Settings | None = None
_timeout: ContextVar[float | None] = ContextVar("pomlflow_timeout", default=None)  # set by `configured`


def settings() -> Settings:
    """Return the settings in force, by precedence: `configured`, `configure`, the environment, the defaults."""
    timeout = _timeout.get()
    return _process_wide() if timeout is None else replace(_process_wide(), timeout=timeout)


def _process_wide() -> Settings:
    global _current
    if _current is None:
        removed = [name for name in ("cached_results", "exact_openai_chat") if os.environ.get(_variable(name))]
        refuse_arguments(removed, spell=_variable)
        given = {name: os.environ.get(_variable(name)) or None for name in _CONVERTERS}
        _current = Settings(**_convert(given, _variable))
    return _current


def _variable(name: str) -> str:
    return f"POMLFLOW_{name.upper()}"


def configure(**changes: Unpack[SettingsOptions]) -> Settings:
    """Change settings of the whole process; settings that are not given keep their values.

    The environment may set each of them, ``POMLFLOW_TIMEOUT`` for example; folders are separated as in ``PATH``.

    Args:
        timeout: Seconds that a render may take, above 0, including the wait for a free Node process but not the start
            of one.
        prompt_root: The folder that prompt names and stored paths are relative to; an empty string resets it.
        max_workers: The maximum number of Node processes; 0 for one per core, at most 8. With 0, a process of
            ``multiprocessing`` has one, and any other at most ``OMP_NUM_THREADS``, which Ray and Spark set. Node
            processes are started on demand. If the number is lowered, surplus processes end after their
            next render.
        max_queue: The maximum number of renders that wait for a process; one more raises `EngineBusyError`.
        max_memory: Megabytes after which a Node process is replaced.
        max_content: The maximum length of a text in a trace's inputs and outputs, in characters. A longer text is cut,
            with a note of how much is missing; longer images, sounds and files are left out. A render with cut inputs
            cannot be replayed. 0, the default, for no limit. It does not apply to spans of MLflow's autolog, nor to
            prompt versions.
        allow_read: Folders that templates may read in addition to their own, the prompt root and the working folder;
            replaces the earlier value. Prompts from a registry never read them.
        sandbox: False disables the sandbox: templates then run with all rights of this process's user.
        **changes: The settings above.

    Returns:
        The settings now in force.

    Raises:
        ConfigurationError: A value is invalid, or a setting was removed.

    Example:
        >>> import pomlflow
        >>> pomlflow.configure(timeout=30).timeout
        30.0
    """
    global _current
    refuse_arguments(changes.keys() - _CONVERTERS.keys(), known=_CONVERTERS)
    _current = replace(_process_wide(), **_convert(changes))
    return _current


@contextmanager
def configured(*, timeout: float | None = None, **removed: Never) -> Iterator[Settings]:
    """Change settings for a block of code, in this thread or task and in those that inherit its context.

    Args:
        timeout: Seconds that a render may take, above 0.
        **removed: Settings of earlier versions, which raise an error that names the replacement.

    Yields:
        The settings in force in the block.

    Raises:
        ConfigurationError: A value is invalid, or a setting was removed.

    Example:
        >>> import pomlflow
        >>> with pomlflow.configured(timeout=5):
        ...     pomlflow.render("<p>Hello</p>").messages[0].content
        'Hello'
    """
    refuse_arguments(removed)
    token = _timeout.set(_convert({"timeout": timeout}).get("timeout", _timeout.get()))
    try:
        yield settings()
    finally:
        _timeout.reset(token)


def _convert(given: Mapping[str, Any], spell: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the given values, checked and converted; `spell` returns a setting's name as errors show it."""
    found = {}
    for name, value in given.items():
        if value is not None:
            what, convert = _CONVERTERS[name]
            try:
                found[name] = convert(value)
            except (TypeError, ValueError, LookupError, OverflowError, RuntimeError) as error:
                raise ConfigurationError(f"{spell(name)} must be {what}, got {value!r}") from error
    return found


def check_timeout(timeout: float) -> float:
    """Return a time limit; raise a `ConfigurationError` unless it is a number of seconds above 0."""
    checked: float = _convert({"timeout": timeout})["timeout"]
    return checked


def _integer(least: int) -> tuple[str, Callable[[Any], int]]:
    """Return the row of `_CONVERTERS` for a setting that is a whole number."""

    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) else operator.index(value)
        if number < least:
            raise ValueError
        return number

    return f"an integer >= {least}", read


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _folder(value: Any) -> Path:
    return Path(value).expanduser().absolute()  # independent of a later chdir


def _folders(value: Any) -> tuple[Path, ...]:
    folders = filter(None, value.split(os.pathsep)) if isinstance(value, str) else value
    return tuple(map(_folder, folders))


_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _switch(value: Any) -> bool:
    return _SWITCHES[str(value).strip().lower()]


# The allowed values of each setting in words, and a function that converts a value or raises an error for `_convert`.
_CONVERTERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "timeout": ("a number of seconds above 0", _seconds),
    "prompt_root": ("a folder", lambda value: _folder(value) if value != "" else None),
    "max_workers": _integer(0),
    "max_queue": _integer(0),
    "max_memory": _integer(1),
    "max_content": _integer(0),
    "allow_read": ("a list of folders", _folders),
    "sandbox": ("True or False (1 or 0 in the environment)", _switch),
}
