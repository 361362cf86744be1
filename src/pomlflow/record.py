"""The one record that every render makes, and that everything behind the engine reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import orjson

from pomlflow.exceptions import PomlError

if TYPE_CHECKING:
    from poml.api import PomlFrame

__all__ = ["JsonObject", "RenderRecord", "frame_of"]


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
    """What was rendered, with what, into what, when, and by which engine.

    Made once per render, also of one that failed, and never changed. It holds all that a trace, a prompt version or
    a replay needs; whoever reads it asks nobody else.

    Attributes:
        source: The complete markup.
        digest: SHA-256, in hexadecimal, of the source and of every file that it includes.
        name: The prompt's name in the registry's spelling; None for inline markup without a name.
        path: The file, relative to the prompt root, with forward slashes; None for inline markup.
        folder: The folder that relative sources are looked for in, relative to the prompt root, with forward slashes;
            None where no path leads there (another drive).
        includes: Of each file that it includes, its path relative to that folder and its SHA-256.
        variables: The variables as POML got them: JSON's types only, mostly a `JsonObject`.
        stylesheet: The stylesheet given beside the markup, or None.
        chat: Whether messages were asked for (else one text, as ``poml.poml(chat=False)`` gives).
        natives: The variables that were lists of a framework's own messages, which passed through untouched.
        spaced: Whether texts kept whitespace that POML collapses (`pomlflow.whitespace`).
        output: What ``poml.poml(format="dict")`` gives: ``messages`` and, where the markup has them, ``schema``,
            ``tools``, ``runtime``. None where the render failed.
        error: Why the render failed, or None.
        start_ns: When the render began, in nanoseconds since the epoch.
        end_ns: When it ended.
        engine: ``"warm"`` for the warm Node process, ``"poml"`` for ``poml.poml()`` itself.
        poml_version: The version of the ``poml`` package.
        static: Those of ``"schema"``, ``"tools"``, ``"runtime"`` that do not depend on any variable.
        register: What the template asks of the registry: True, False, or None for what the handler is set to.
    """

    source: str
    digest: str
    variables: Mapping[str, Any]
    start_ns: int
    end_ns: int
    name: str | None = None
    path: str | None = None
    folder: str | None = "."
    includes: tuple[tuple[str, str], ...] = ()
    stylesheet: Mapping[str, Any] | None = None
    chat: bool = True
    natives: tuple[str, ...] = ()
    spaced: bool = False
    output: Mapping[str, Any] | None = None
    error: PomlError | None = None
    engine: Literal["warm", "poml"] = "warm"
    poml_version: str = ""
    static: frozenset[str] = field(default_factory=frozenset)
    register: bool | None = None

    @cached_property
    def frame(self) -> PomlFrame:
        """The render's result in poml's own models.

        Raises:
            PomlError: The error of a failed render.
        """
        return frame_of(self.result())

    def result(self) -> Mapping[str, Any]:
        """The output, or the render's own error raised.

        Raises:
            PomlError: The error of a failed render.
        """
        if self.output is None:
            raise self.error or PomlError("the render has neither output nor error")
        return self.output


def frame_of(output: Mapping[str, Any]) -> PomlFrame:
    """Give poml's own `PomlFrame` for what ``poml.poml(format="dict")`` gives, as ``format="pydantic"`` would.

    Args:
        output: ``messages`` (a list, or one text or list of parts with chat off), ``schema``, ``tools``, ``runtime``.

    Returns:
        The frame; with chat off its only message is a human's.
    """
    from poml.api import PomlFrame

    messages = output["messages"]
    if not (isinstance(messages, list) and all(isinstance(m, dict) and "speaker" in m for m in messages)):
        messages = [{"speaker": "human", "content": messages}]
    return PomlFrame.model_validate(
        {
            "messages": messages,
            "output_schema": output.get("schema"),
            "tools": output.get("tools"),
            "runtime": output.get("runtime"),
        }
    )
