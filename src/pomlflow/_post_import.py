"""What is to be done as soon as a module is there, without importing it."""

from __future__ import annotations

import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

__all__ = ["no_longer", "when_imported"]

_log = logging.getLogger("pomlflow")
_waiting: dict[str, Callable[[], None]] = {}


def when_imported(module: str, call: Callable[[], None]) -> None:
    """Call something when a module has been imported: now, where it has been, else right after its import.

    What it raises is logged: it is not to break the user's import.

    Args:
        module: Its full name.
        call: Takes nothing. For a module that is not there yet, the last call that was given for it is made.

    Example:
        >>> when_imported("json", lambda: print("there"))
        there
    """
    if module in sys.modules:
        call()
        return
    _waiting[module] = call
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def no_longer(module: str) -> None:
    """Forget what is to be called when a module has been imported."""
    _waiting.pop(module, None)
    if not _waiting and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder(MetaPathFinder):
    """Finds nothing itself: it has the other finders find the awaited modules, and adds to their loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec  # type: ignore[no-any-return]
        return None


class _Loader(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        # Before it runs: a module may ask its loader for its resources.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        call = _waiting.get(module.__name__)
        no_longer(module.__name__)
        if call is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the user only imports something
                _log.warning("What was to be done after the import of %s failed: %r", module.__name__, error)


_finder = _Finder()
