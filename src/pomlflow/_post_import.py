"""Callbacks that run right after a module has been imported by someone else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from pomlflow._log import logger

_waiting: Final[dict[str, Callable[[], None]]] = {}


def when_imported(module: str, call: Callable[[], None]) -> None:
    """Call a function once a module is imported: now if it already is, else right after its import.

    A later call for the same module replaces the earlier one.
    """
    if module in sys.modules:
        call()
        return
    _waiting[module] = call
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def cancel(module: str) -> None:
    """Cancel the call that `when_imported` has registered for a module."""
    _waiting.pop(module, None)
    if not _waiting and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder(MetaPathFinder):
    """Let the other finders find a module that has a callback, and hook its loader's ``exec_module``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _hook(spec.loader)
                return spec
        return None


def _hook(loader: Any) -> None:
    execute = getattr(loader, "exec_module", None)
    if execute is None:  # an old loader
        return

    def exec_module(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)  # restored before the module runs: it may read its loader
        execute(module)
        call = _waiting.get(module.__name__)
        cancel(module.__name__)
        if call is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - a callback must not break the user's import
                logger.warning("a call after the import of %s failed: %r", module.__name__, error)

    with suppress(AttributeError, TypeError):  # a loader of another kind has no attributes of its own
        loader.exec_module = exec_module


_finder: Final = _Finder()
