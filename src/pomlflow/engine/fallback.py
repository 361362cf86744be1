"""POML by the package's own command line: a Node process for each render, where the bundle cannot be kept warm."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pomlflow.engine.errors import render_error
from pomlflow.engine.protocol import Request
from pomlflow.engine.serialize import decode
from pomlflow.exceptions import RenderError

__all__ = ["render_cold"]


def render_cold(request: Request, timeout: float) -> dict[str, Any]:
    """Render with poml's own command line, as ``poml.poml()`` does.

    Args:
        request: What to render.
        timeout: Seconds until its process is ended.

    Returns:
        What ``poml.poml(format="dict")`` gives.

    Raises:
        RenderError: POML refused it; only its first problem is known here.
        TimeoutError: It outlasted its limit.
    """
    # Not poml.poml(): it is ours under autolog, has tracing of its own, and keeps silent about what went wrong.
    from poml.cli import run

    with tempfile.TemporaryDirectory(prefix="pomlflow-") as folder:
        file = Path(folder) / "prompt.poml"
        file.write_text(request.markup, encoding="utf-8", errors="replace", newline="")
        if request.path is not None:  # poml's own way to say where a copied prompt comes from
            file.with_suffix(".env").write_text(f"SOURCE_PATH={request.path}\n", encoding="utf-8")
        output = file.with_name("output")
        args = ["-f", str(file), "-o", str(output), f"--chat={json.dumps(request.chat)}"]
        for name, value in (("context", _context(request)), ("stylesheet", dict(request.stylesheet or {}))):
            file.with_name(name).write_text(json.dumps(value), encoding="utf-8")
            args += [f"--{name}-file", str(file.with_name(name))]
        try:
            done = run(*args, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        if done.returncode or not output.exists():  # it may also end well, and without a word
            raise _reason(request, done.stderr.decode(errors="replace"))
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
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


def _reason(request: Request, text: str) -> RenderError:
    """What Node printed, as an error."""
    # Node shows an error as its class, its message, its stack and its attributes.
    told = re.search(r"^(\w*Error): (.*?)\n    at ", text, re.MULTILINE | re.DOTALL)
    reported: dict[str, Any] = {"kind": "RuntimeError", "message": text[-1000:] or "poml ended without a word"}
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
