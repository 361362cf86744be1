"""Lazy package attributes: each is imported from its module on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str], requires: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package with lazy attributes.

    `modules` has the module of each attribute, relative to the package; `requires` has what to install for each
    top-level module that may be missing.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(f"{package}.{modules[name]}")
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in (requires or {}):
                raise
            raise ImportError(f"{name} needs {missing}: pip install {(requires or {})[missing]!r}") from error
        return getattr(module, name)

    return find, lambda: sorted({*vars(sys.modules[package]), *modules})
