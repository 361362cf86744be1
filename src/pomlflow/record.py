"""The one record that every render makes, and that everything behind the engine reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pomlflow.exceptions import PomlError

if TYPE_CHECKING:
    from poml.api import PomlFrame

__all__ = ["JsonObject", "PromptFile", "RenderRecord", "content_digest", "frame_of", "well_formed"]


@dataclass(frozen=True)
class PromptFile:
    """A file that a prompt's markup names, and that so is part of the prompt.

    Attributes:
        path: Relative to the markup's folder, with forward slashes: ``parts/header.poml``, ``../shared/logo.png``; an
            absolute one where the markup names it so.
        sha256: Of its content when the prompt was read, in hexadecimal; of nothing where it was not there.
        location: Where it is on this machine.
        home: The markup's folder there, which says with others what may be read; None where it has none.
    """

    path: str
    sha256: str
    location: Path
    home: Path | None = None


def content_digest(source: str, files: Iterable[PromptFile]) -> str:
    """Give the digest that a content is known by, everywhere.

    It is SHA-256 of the source alone where there are no files, so that it can be checked by hand; each file adds a zero
    byte, its path, a zero byte, and its own SHA-256 in hexadecimal, in the order of their first use, includes first.

    Args:
        source: The markup.
        files: What it names.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> content_digest("<p>Hello</p>", [])[:16]
        'd0a26d23e9d8e053'
    """
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass"))
    for file in files:
        digest.update(f"\0{file.path}\0{file.sha256}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def well_formed(text: str) -> str:
    r"""Give a text without lone halves of UTF-16 pairs, which neither UTF-8, nor a store, nor any model can take.

    Example:
        >>> well_formed("an \ud83d\ude00, and half of one: \ud83d")
        'an 😀, and half of one: �'
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class JsonObject(Mapping[str, Any]):
    """A JSON object that is read when somebody looks into it.

    A record holds its variables so: they are what crossed the pipe, whatever happens to the user's own objects later,
    and where no handler looks at the record, a megabyte of context costs nothing.

    Args:
        text: The JSON text.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text

    @cached_property
    def _read(self) -> dict[str, Any]:
        read: dict[str, Any] = orjson.loads(self._text)
        return read

    def __getitem__(self, key: str) -> Any:
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __repr__(self) -> str:
        return repr(self._read)


@dataclass(frozen=True)
class RenderRecord:
    """What was rendered, with what, into what, and when.

    Made once per render, also of one that failed, and never changed. It holds all that a trace, a prompt version or
    a replay needs; whoever reads it asks nobody else.

    Attributes:
        source: The complete markup.
        digest: SHA-256, in hexadecimal, of the source and of every file that it names (`content_digest`).
        name: The prompt's name in the registry's spelling; None for inline markup without a name.
        path: The file, relative to the prompt root, with forward slashes; None for inline markup.
        folder: The folder that relative sources are looked for in, relative to the prompt root, with forward slashes;
            None where no path leads there (another drive).
        variables: The variables as POML got them: JSON's types only, mostly a `JsonObject`.
        stylesheet: The stylesheet given beside the markup, or None.
        chat: Whether messages were asked for (else one text, as ``poml.poml(chat=False)`` gives).
        natives: The variables that were lists of a framework's own messages, which passed through untouched.
        spaced: Whether texts kept whitespace that POML collapses.
        output: What ``poml.poml(format="dict")`` gives: ``messages`` and, where the markup has them, ``schema``,
            ``tools``, ``runtime``. None where the render failed.
        error: Why the render failed, or None.
        start_ns: When the render began, in nanoseconds since the epoch.
        end_ns: When it ended.
        poml_version: The version of the ``poml`` package.
        static: Those of ``"schema"``, ``"tools"``, ``"runtime"`` that do not depend on any variable.
        register: What the template asks of the registry: True, False, or None for what the handler is set to.
        files: The files that the source names without a variable: its includes, then its pictures, documents and data.
        version: The number of the registry's version that was rendered; None for what does not come from a registry.
    """

    source: str
    digest: str
    variables: Mapping[str, Any]
    start_ns: int
    end_ns: int
    name: str | None = None
    path: str | None = None
    folder: str | None = "."
    stylesheet: Mapping[str, Any] | None = None
    chat: bool = True
    natives: tuple[str, ...] = ()
    spaced: bool = False
    output: Mapping[str, Any] | None = None
    error: PomlError | None = None
    poml_version: str = ""
    static: frozenset[str] = field(default_factory=frozenset)
    register: bool | None = None
    files: tuple[PromptFile, ...] = ()
    version: int | None = None

    @cached_property
    def frame(self) -> PomlFrame:
        """The render's result in poml's own models.

        Raises:
            PomlError: The error of a failed render.
        """
        return frame_of(self.result(), chat=self.chat)

    def result(self) -> Mapping[str, Any]:
        """The output, or the render's own error raised.

        Raises:
            PomlError: The error of a failed render.
        """
        if self.output is None:
            raise self.error or PomlError("the render has neither output nor error")
        return self.output


def frame_of(output: Mapping[str, Any], *, chat: bool = True) -> PomlFrame:
    """Give poml's own `PomlFrame` for what ``poml.poml(format="dict")`` gives, as ``format="pydantic"`` would.

    Args:
        output: ``messages`` (a list, or one text or list of parts with chat off), ``schema``, ``tools``, ``runtime``.
        chat: Whether messages were asked for.

    Returns:
        The frame; with chat off its only message is a human's.
    """
    from poml.api import PomlFrame

    messages = output["messages"]
    if not (chat and isinstance(messages, list) and all(isinstance(m, dict) and "speaker" in m for m in messages)):
        messages = [{"speaker": "human", "content": messages}]
    return PomlFrame.model_validate(
        {
            "messages": messages,
            "output_schema": output.get("schema"),
            "tools": output.get("tools"),
            "runtime": output.get("runtime"),
        }
    )
