"""POML by the package's own `poml.poml()`: a Node process for each render, where the bundle cannot be kept warm."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pomlflow.exceptions import Problem, RenderError

__all__ = ["render_cold"]


def render_cold(
    markup: str, context: Mapping[str, Any], stylesheet: Mapping[str, Any] | None, path: str | None, *, chat: bool
) -> dict[str, Any]:
    """Render with `poml.poml()`.

    Args:
        markup: The markup.
        context: The variables, in JSON's types.
        stylesheet: The stylesheet, or None.
        path: The path that relative sources are resolved against, or None.
        chat: Whether to give messages.

    Returns:
        What ``poml.poml(format="dict")`` gives.

    Raises:
        RenderError: It failed. POML prints the reason to the process's stderr and tells Python nothing.
    """
    import poml

    with tempfile.TemporaryDirectory(prefix="pomlflow-") as folder:
        # Always a file of ours: poml.poml() takes a string that happens to be a path for that path's file.
        file = Path(folder) / "prompt.poml"
        file.write_text(markup, encoding="utf-8", newline="")
        if path is not None:  # poml's own way to say where a copied prompt comes from
            file.with_suffix(".env").write_text(f"SOURCE_PATH={path}\n", encoding="utf-8")
        try:
            result: dict[str, Any] = poml.poml(
                file, context=dict(context), stylesheet=dict(stylesheet or {}), chat=chat, format="dict"
            )
        except RuntimeError as error:
            raise RenderError([Problem(str(error), "RuntimeError", path)]) from error
        return result
