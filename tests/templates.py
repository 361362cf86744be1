"""Helpers that write and render template files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pomlflow.template import Template

HELLO = "<p>Hello {{name}}</p>"


def text(template: Template, **variables: Any) -> str:
    """Render, and return the messages' contents as one text."""
    messages = template.render(variables).result()["messages"]
    return messages if isinstance(messages, str) else "|".join(str(message["content"]) for message in messages)


def sha(content: str) -> str:
    """Return the SHA-256 digest in hexadecimal."""
    return hashlib.sha256(content.encode()).hexdigest()


def write(file: Path, content: str) -> Path:
    """Write a file with a later time than before, so that the change is noticed at a resolution of a second."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8", newline="")
    if before:
        os.utime(file, ns=(before + 10**9, before + 10**9))
    return file
