"""Read a project's settings, ``[tool.pomlflow]`` in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pomlflow._log import warn_once


@lru_cache(maxsize=256)
def tool_settings(folder: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the nearest pyproject.toml at or above a folder, and its ``[tool.pomlflow]``."""
    file = next((file for at in (folder, *folder.parents) if (file := at / "pyproject.toml").is_file()), None)
    if file is None:
        return None, {}
    try:
        tools = tomllib.loads(file.read_text("utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        warn_once(("pyproject", file), "%s cannot be read, so that its prompt_root is unknown: %s", file, error)
        return file, {}
    values = tools.get("pomlflow", {})
    return file, values if isinstance(values, dict) else {}
