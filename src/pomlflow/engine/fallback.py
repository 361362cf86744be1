"""POML by the package's own `poml.poml()`: a Node process for each render, where the bundle cannot be kept warm."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from pomlflow.engine.encode import decode
from pomlflow.engine.problems import render_error
from pomlflow.engine.request import Request
from pomlflow.exceptions import RenderError

__all__ = ["render_cold"]


def render_cold(request: Request) -> dict[str, Any]:
    """Render with `poml.poml()`.

    Args:
        request: What to render.

    Returns:
        What ``poml.poml(format="dict")`` gives.

    Raises:
        RenderError: POML refused it; only its first problem is known here.
    """
    import poml

    context, stylesheet = _context(request), dict(request.stylesheet or {})
    with tempfile.TemporaryDirectory(prefix="pomlflow-") as folder:
        # Always a file of ours: poml.poml() takes a string that happens to be a path for that path's file.
        file = Path(folder) / "prompt.poml"
        file.write_text(request.markup, encoding="utf-8", errors="replace", newline="")
        if request.path is not None:  # poml's own way to say where a copied prompt comes from
            file.with_suffix(".env").write_text(f"SOURCE_PATH={request.path}\n", encoding="utf-8")
        try:
            result: dict[str, Any] = poml.poml(
                file, context=context, stylesheet=stylesheet, chat=request.chat, format="dict"
            )
        except (RuntimeError, ValueError) as error:  # ValueError: it ended well, and without a word
            raise _reason(request, file, context, stylesheet) from error
        return result


def _context(request: Request) -> dict[str, Any]:
    context: dict[str, Any] = decode(request.context)
    context |= {name: name for name in request.stand_ins or ()}
    for name, marks in (request.natives or {}).items():  # worker.cjs does it without touching what expressions see
        context[name] = [
            {"speaker": "ai" if message["speaker"] == "tool" else message["speaker"], "content": mark}
            for message, mark in zip(context[name], marks, strict=True)
        ]
    return context


def _reason(request: Request, file: Path, context: dict[str, Any], stylesheet: dict[str, Any]) -> RenderError:
    """Find out why poml.poml() failed, which prints that to the process's stderr and tells Python nothing."""
    from poml.cli import run

    args = ["-f", str(file), f"--chat={json.dumps(request.chat)}"]
    for name, value in (("context", context), ("stylesheet", stylesheet)):
        file.with_name(name).write_text(json.dumps(value), encoding="utf-8")
        args += [f"--{name}-file", str(file.with_name(name))]
    text = run(*args, capture_output=True).stderr.decode(errors="replace")
    # Node shows an error as its class, its message, its stack and its attributes.
    told = re.search(r"^(\w*Error): (.*?)\n    at ", text, re.MULTILINE | re.DOTALL)
    reported: dict[str, Any] = {"kind": "RuntimeError", "message": text[-1000:] or "poml.poml() ended without a word"}
    if told:
        reported = {"kind": told[1], "message": told[2]}
        for key, attribute in (("start", "startIndex"), ("end", "endIndex")):
            if number := re.search(rf"^  {attribute}: (\d+)", text, re.MULTILINE):
                reported[key] = int(number[1])
        if path := re.search(r"^  sourcePath: '(.*)'", text, re.MULTILINE):
            reported["path"] = path[1]
        elif "<include" in request.markup.lower():
            del reported["start"]  # a component's error names no file, and may be an included one's
    return render_error([reported], request)
