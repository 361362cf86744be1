"""The record of a render: the only data that tracing, registration and replay read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import orjson

from pomlflow.content import as_chat
from pomlflow.exceptions import PomlError
from pomlflow.types import Frame


@dataclass(frozen=True)
class PromptFile:
    """A file that a prompt's markup names. It is part of the prompt's content."""

    path: str  # relative to the markup's folder, with forward slashes; absolute if the markup names an absolute path
    sha256: str  # of its content when the prompt was read, in hexadecimal; that of no bytes if it is missing
    location: Path  # on this machine
    folder: Path | None = None  # the markup's folder, from which a trusted template may read


def content_digest(source: str, files: Iterable[PromptFile]) -> str:
    """Return the digest that identifies a prompt's content: 64 hexadecimal digits.

    Without files, it is the SHA-256 of the source, so that it can be checked by hand. The order of files is that of
    first use, includes first.
    """
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass"))
    for file in files:
        digest.update(f"\0{file.path}\0{file.sha256}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def well_formed(text: str) -> str:
    """Return a text with lone UTF-16 surrogates replaced: neither UTF-8 nor a store nor a model accepts them."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass(frozen=True)
class RenderRecord:
    """One render: the template, the variables, the output or the error, and the time.

    Every render makes one, also a failed one.

    Attributes:
        source: The complete markup.
        digest: The identity of the content (`content_digest`).
        name: The prompt's name in the registry's spelling; None for inline markup without a name.
        path: The file, with forward slashes; None for inline markup. It is relative to the prompt root or the working
            folder, else the path in its Python package, else the folder's name and the file's.
        folder: The folder that relative sources are resolved against, relative to the prompt root, with forward
            slashes; None if it is on another drive or unknown.
        context: The variables as they were sent to POML, a JSON object.
        stylesheet: The stylesheet in addition to the markup's own, or None.
        chat: Whether messages were rendered; else one text, as by ``poml.poml(chat=False)``.
        message_variables: The names of the variables with a framework's own messages, which POML does not change.
        kept_whitespace: Whether whitespace that POML usually collapses was kept.
        output: The result of ``poml.poml(format="dict")``: ``messages`` (a list; without `chat`, a text or a list of
            parts) and, if the markup has them, ``schema``, ``tools``, ``runtime``. None for a failed render.
        error: The error of a failed render, or None.
        start_ns: The start of the render, in nanoseconds since the epoch.
        end_ns: Its end.
        poml_version: The version of the ``poml`` package.
        static_fields: Which of ``"schema"``, ``"tools"`` and ``"runtime"`` do not depend on any variable.
        register: Whether to register the prompt; None for the handler's setting.
        files: The files that the source names without a variable: its includes, then its pictures, documents and data.
        version: The number of the version in the registry; None for a prompt that does not come from there.
        added_runtime: The settings in the output's ``runtime`` that come from that version's model config, not from
            the markup.
    """

    source: str
    digest: str
    context: bytes
    start_ns: int
    end_ns: int
    name: str | None = None
    path: str | None = None
    folder: str | None = "."
    stylesheet: Mapping[str, Any] | None = None
    chat: bool = True
    message_variables: tuple[str, ...] = ()
    kept_whitespace: bool = False
    output: Mapping[str, Any] | None = None
    error: PomlError | None = None
    poml_version: str = ""
    static_fields: frozenset[str] = field(default_factory=frozenset)
    register: bool | None = None
    files: tuple[PromptFile, ...] = ()
    version: int | None = None
    added_runtime: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The template's name in errors: its path, or else its name."""
        return self.path or self.name or "<inline>"

    @cached_property
    def variables(self) -> Mapping[str, Any]:
        """The variables in JSON types only; they are parsed at the first use."""
        return cast("dict[str, Any]", orjson.loads(self.context))

    @cached_property
    def frame(self) -> Frame:
        """The render's result in poml's own models; with chat off, it has one human message.

        Raises:
            PomlError: The error of a failed render.
        """
        from pomlflow._frame import PomlFrame

        output = self.result()
        messages = output["messages"]
        fields = {
            "messages": as_chat(messages) if self.chat else [{"speaker": "human", "content": messages}],
            "output_schema": output.get("schema"),
            "tools": output.get("tools"),
            "runtime": output.get("runtime"),
        }
        return cast("Frame", PomlFrame.model_validate(fields))

    def result(self) -> Mapping[str, Any]:
        """Return the output.

        Raises:
            PomlError: The error of a failed render.
        """
        if self.output is None:
            raise self.error or PomlError("the render has neither output nor error")
        return self.output
