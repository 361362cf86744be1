"""Prompt names that are the same on every machine, paths for traces, and ``[tool.pomlflow]`` of pyproject.toml."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pomlflow._log import warn_once
from pomlflow.exceptions import ConfigurationError, TemplateNotFoundError
from pomlflow.settings import settings

_SETTINGS: Final = frozenset({"prompt_root", "select", "ignore", "strict"})  # the keys of [tool.pomlflow]
_LONGEST: Final = 256  # the maximum length of a name that MLflow accepts in every kind of store


class _Names:
    """The files of this process's prompts, by name, so that no two share a name without a warning."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._outside: dict[str, Path] = {}

    def add(self, name: str, path: Path, *, outside: bool) -> None:
        """Add a prompt, and warn if another existing file has the same name."""
        if outside:
            self._outside[name] = path
        other = self._files.setdefault(name, path)
        try:
            is_conflict = other != path and not other.samefile(path)  # one may be a link to the other
        except OSError:
            is_conflict = False  # one of them was moved or deleted
        if not is_conflict:
            self._files[name] = path
            return
        warn_once(
            ("prompt name", other, path),
            "The files %s and %s both have the prompt name %r: their contents become versions of one prompt. Give each "
            "its own with name=, unless one of them replaces the other",
            *(other, path, name),
        )

    def warn_if_outside(self, name: str) -> None:
        """Warn once per process if a registered name consists of the names of the file and its folder alone."""
        if (path := self._outside.get(name)) is not None:
            warn_once(
                "prompt outside",
                "The prompt in %s is named %r by its folder and file, since it is in no prompt root, Python package or "
                "working folder: elsewhere it may have another name. Set pomlflow.configure(prompt_root=…), "
                "POMLFLOW_PROMPT_ROOT or prompt_root under [tool.pomlflow] of pyproject.toml, or give it a name=",
                *(path, name),
            )


NAMES: Final = _Names()


def name_and_path(path: Path, name: str | None) -> tuple[str | None, str]:
    """Return a file's prompt name in the registry's spelling, and its path for traces, with forward slashes.

    The name is the first of these: the given one; the path relative to the prompt root; the path in the Python package;
    the path relative to the working folder; the names of the folder and the file. The path for traces is the first of
    these: relative to the prompt root; relative to the working folder; in the package; the folder and the file.
    """
    root = settings().prompt_root
    in_root = (root and _relative(path, root)) or ((root := _project_root(path.parent)) and _relative(path, root))
    package = None if in_root else _in_package(path)
    here = working_folder()
    trace_path = in_root or (here and _relative(path, here)) or package
    outside = trace_path is None
    trace_path = trace_path or f"{path.parent.name or 'root'}/{path.name}"
    found = registry_name(name or (in_root or package or trace_path).removesuffix(".poml"))
    if found is not None:
        NAMES.add(found, path, outside=outside and not name)
    return found, trace_path


def name_in_copy(path: Path, folder: Path) -> str | None:
    """Return a file's prompt name after its top folder was copied elsewhere; None if the name depends on the place."""
    project, _ = tool_settings(path.parent)
    is_copied = project is not None and project.is_relative_to(folder.parent)
    root = _project_root(path.parent) if is_copied else None
    found = (root and _relative(path, root)) or _in_package(path)
    return registry_name(found.removesuffix(".poml")) if found else None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises for a link to itself


def _relative(path: Path, folder: Path) -> str | None:
    # os.getcwd returns a path without links, but the file's path may have some: /tmp is a link on macOS.
    for file, above in ((path, folder), (_real(path), _real(folder))):
        if file.is_relative_to(above):
            return file.relative_to(above).as_posix()
    return None


@lru_cache(maxsize=256)
def tool_settings(folder: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the nearest pyproject.toml at or above a folder, and its ``[tool.pomlflow]``."""
    file = next((file for at in (folder, *folder.parents) if (file := at / "pyproject.toml").is_file()), None)
    if file is None:
        return None, {}
    try:
        tools = tomllib.loads(file.read_text("utf-8")).get("tool")
    except (OSError, ValueError) as error:
        warn_once(("pyproject", file), "%s cannot be read, so that its [tool.pomlflow] is unknown: %s", file, error)
        return file, {}
    values = tools.get("pomlflow") if isinstance(tools, dict) else None
    values = values if isinstance(values, dict) else {}
    if unknown := sorted(values.keys() - _SETTINGS):
        known = ", ".join(sorted(_SETTINGS))
        warn_once(
            ("pyproject key", file), "%s: [tool.pomlflow] has no %s; its keys are %s", file, ", ".join(unknown), known
        )
    return file, values


def _project_root(folder: Path) -> Path | None:
    """Return the ``prompt_root`` under ``[tool.pomlflow]`` of the nearest pyproject.toml at or above a folder."""
    file, values = tool_settings(folder)
    root = values.get("prompt_root")
    if file is None or root is None:
        return None
    if not isinstance(root, str):
        raise ConfigurationError(f"{file}: prompt_root under [tool.pomlflow] must be a path, got {root!r}")
    return Path(os.path.normpath(file.parent / root))


@lru_cache(maxsize=256)
def _package(folder: Path) -> str | None:
    """Return a folder's path in its Python package, beginning with the package's name; None outside packages."""
    if not (folder / "__init__.py").is_file():
        return None
    above = _package(folder.parent)
    return f"{above}/{folder.name}" if above else folder.name


def _in_package(path: Path) -> str | None:
    package = _package(path.parent)
    return package and f"{package}/{path.name}"


@lru_cache(maxsize=256)
def relative_path(path: str, folder: str) -> str | None:
    """Return a path relative to a folder, with forward slashes; None if it is on another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return None


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path, with ``~`` expanded; links are not followed."""
    try:
        return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111
    except OSError as error:
        why = "the working folder was removed; give an absolute path"
        raise TemplateNotFoundError(errno.ENOENT, why, os.fspath(path)) from error


def working_folder() -> Path | None:
    """Return the working folder; None if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return None


def registry_name(text: str) -> str | None:
    """Return a name as MLflow's registry allows it: letters, digits, ``_``, ``.`` and ``-``, folders joined by dots.

    Letters lose their accents. A name that then has letters other than ASCII's, or that is too long, ends in a digest
    of the whole name. Other names may coincide, such as "a b" and "a-b"; `_Names` warns about files.
    """
    if not text:
        return None
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain.replace("/", ".")).strip(".-")
    lossy = any(char.isalnum() and not char.isascii() for char in plain)
    if lossy or not name or len(name) > _LONGEST:
        end = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = f"{name[: _LONGEST - 13] or 'prompt'}-{end}"
    return name
