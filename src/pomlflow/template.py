"""A POML template: where its markup comes from, what it takes, and its renders as records.

It knows no framework and no MLflow; the adapters' prompt templates are made around it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pomlflow import engine
from pomlflow.exceptions import MissingVariableError, PomlError, TemplateNotFoundError, VariableError
from pomlflow.history import History
from pomlflow.record import JsonObject, RenderRecord
from pomlflow.settings import settings
from pomlflow.variables import Inference, infer

__all__ = ["Template"]

_log = logging.getLogger("pomlflow")
_NAME = 256  # characters of a prompt's name that MLflow takes on every store


@dataclass(frozen=True)
class _Snapshot:
    """The template as its files were at one moment."""

    source: str
    digest: str
    inference: Inference
    stamps: tuple[tuple[Path, object], ...]


class Template:
    """One POML template.

    A file is read at construction and again when it, or a file that it includes, has changed: that costs one ``stat``
    for each file and render. No process is started before the first render.

    Args:
        source: The markup. Beside `path` it is what the file held, for when the file is not there any more.
        path: The file. It is looked up once, at construction: a later ``chdir`` changes nothing.
        name: The prompt's name in the registry; by default the file's path relative to the prompt root.
        base_dir: The folder that relative sources in inline markup are resolved against; by default the working
            folder at each render.
        stylesheet: A stylesheet beside the markup's own.
        chat: Whether to render messages, or one text.
        register: Whether to register it as a prompt: yes, no, or as the handler is set.

    Raises:
        TemplateNotFoundError: There is neither file nor markup.

    Example:
        >>> Template("<p>Hello {{name}}</p>").render({"name": "Ada"}).output["messages"]
        [{'speaker': 'human', 'content': 'Hello Ada'}]
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        name: str | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        stylesheet: Mapping[str, Any] | None = None,
        chat: bool = True,
        register: bool | None = None,
    ) -> None:
        self.path = None if path is None else Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111
        self.base_dir = None if base_dir is None else Path(base_dir).absolute()
        self.relative = None if self.path is None else _relative(self.path)
        self.name = (
            _registry_name(name) if name else self.relative and _registry_name(self.relative.removesuffix(".poml"))
        )
        self.stylesheet = stylesheet
        self.chat = chat
        self.register = register
        self._missing = False
        self._snapshot = self._read(source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((self.path, self.source, self.name))

    def _identity(self) -> tuple[Any, ...]:
        return self.path, self.source, self.name, self.base_dir, self.stylesheet, self.chat, self.register

    @property
    def source(self) -> str:
        """The markup as it is now."""
        return self.current().source

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the markup and every file that it includes."""
        return self.current().digest

    @property
    def inference(self) -> Inference:
        """What it takes."""
        return self.current().inference

    def current(self) -> _Snapshot:
        """The template as its files are now; the same object for as long as they do not change."""
        snapshot = self._snapshot
        if any(_stamp(file) != stamp for file, stamp in snapshot.stamps):
            self._snapshot = snapshot = self._read(snapshot.source)
        return snapshot

    def _read(self, last: str | None) -> _Snapshot:
        source, stamps = last, []
        if self.path is not None:
            stamps.append((self.path, _stamp(self.path)))  # before reading: a change meanwhile is seen next time
            source = self._read_file(last)
        if source is None:
            raise TypeError("a template needs markup or a path")
        folder = self.path.parent if self.path is not None else self.base_dir
        inference = _infer_alone(source, folder)
        if inference.includes:  # what they hold may have changed, so nothing of it is remembered
            inference = infer(source, folder)
        stamps.extend((file, _stamp(file)) for file in inference.includes)
        return _Snapshot(source, _digest(source, inference.includes, folder), inference, tuple(stamps))

    def _read_file(self, last: str | None) -> str:
        assert self.path is not None  # noqa: S101
        try:
            # As Node reads it: UTF-8, what is not becomes U+FFFD, line ends as they are.
            text = self.path.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            if last is None:
                remedy = "give an existing .poml file, or markup to from_template"
                raise TemplateNotFoundError(
                    error.errno, f"cannot read the template ({error.strerror}); {remedy}", str(self.path)
                ) from error
            if not self._missing:
                _log.warning("the template %s cannot be read any more (%s): its last content stays", self.path, error)
            self._missing = True
            return last
        self._missing = False
        return text

    def render(
        self, variables: Mapping[str, Any], *, history: History[Any] | None = None, timeout: float | None = None
    ) -> RenderRecord:
        """Render, and tell all about it.

        Args:
            variables: By name.
            history: The native messages among them.
            timeout: Seconds; None for `pomlflow.configure`'s.

        Returns:
            The record, of a failed render too: `RenderRecord.result` raises its error.
        """
        snapshot, start, clock = self.current(), time.time_ns(), time.perf_counter_ns()
        request, error = self._prepare(snapshot, variables, history)
        result = None
        try:
            result = engine.run(request, timeout) if error is None else None
        except PomlError as failed:
            error = failed
        return self._record(snapshot, request, result, error, history, start, time.perf_counter_ns() - clock)

    async def arender(
        self, variables: Mapping[str, Any], *, history: History[Any] | None = None, timeout: float | None = None
    ) -> RenderRecord:
        """Render without holding up the event loop; otherwise as `render`."""
        snapshot, start, clock = self.current(), time.time_ns(), time.perf_counter_ns()
        request, error = self._prepare(snapshot, variables, history)
        result = None
        try:
            result = await engine.arun(request, timeout) if error is None else None
        except PomlError as failed:
            error = failed
        return self._record(snapshot, request, result, error, history, start, time.perf_counter_ns() - clock)

    def _prepare(
        self, snapshot: _Snapshot, variables: Mapping[str, Any], history: History[Any] | None
    ) -> tuple[engine.Request, PomlError | None]:
        """Make the request, and find what is wrong with the variables; the record wants both."""
        context, revive, error = b"{}", False, None
        try:
            context, revive = _encode(snapshot.inference, variables)
            self._check(snapshot.inference, variables)
        except VariableError as refused:
            error = refused
        folder = self.path or Path(self.base_dir or os.getcwd(), "<inline>.poml")  # noqa: PTH109
        request = engine.Request(
            snapshot.source,
            context,
            revive,
            self.stylesheet,
            str(folder),
            inline=self.path is None,
            chat=self.chat,
            natives=history.marks if history is not None and history.marks else None,
        )
        return request, error

    def _check(self, inference: Inference, variables: Mapping[str, Any]) -> None:
        place = str(self.path or "<inline>")
        for name in variables:
            if not engine.is_identifier(name) and _names(inference.expressions, name):
                raise VariableError(
                    f"{place}: the variable {name!r} is no plain JavaScript identifier, so no expression can name it: "
                    f"rename it, to {re.sub(r'[^A-Za-z0-9_$]+', '_', name).strip('_')}_ for example",
                    name,
                )
        missing = [name for name in inference.variables if name not in variables]
        if missing:
            given = ", ".join(sorted(map(str, variables))) or "none"
            raise MissingVariableError(
                f"{place}: the template needs the variable{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"given: {given}. Pass it, or guard it in the template: "
                f"{{{{ typeof {missing[0]} === 'undefined' ? '' : {missing[0]} }}}}",
                missing[0],
            )

    def _record(
        self,
        snapshot: _Snapshot,
        request: engine.Request,
        result: engine.Result | None,
        error: PomlError | None,
        history: History[Any] | None,
        start: int,
        elapsed: int,
    ) -> RenderRecord:
        output = None if result is None else result.output
        if output is not None and history is not None and history.marks and self.chat:
            output = history.splice(output)
        return RenderRecord(
            source=snapshot.source,
            digest=snapshot.digest,
            variables=JsonObject(request.context),
            start_ns=start,
            end_ns=start + elapsed,
            name=self.name,
            path=self.relative,
            stylesheet=self.stylesheet,
            chat=self.chat,
            output=output,
            error=error,
            engine="warm" if result is None else result.engine,
            poml_version=engine.poml_version(),
            static=snapshot.inference.static,
            register=self.register,
        )


@lru_cache(maxsize=256)
def _infer_alone(source: str, folder: Path | None) -> Inference:
    """Inference by text: frameworks copy templates often (partial, deepcopy, bind)."""
    return infer(source, folder)


def _encode(inference: Inference, variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Encode, leaving out extra variables without a form in JSON: an agent's state holds much that no prompt names."""
    try:
        return engine.encode(variables)
    except VariableError as refused:
        if any(refused.variable in expression for expression in inference.expressions):
            raise
        return _encode(inference, {name: value for name, value in variables.items() if name != refused.variable})


def _stamp(file: Path) -> object:
    try:
        at = os.stat(file)  # noqa: PTH116 - half the cost of Path.stat
    except OSError:
        return None
    return at.st_mtime_ns, at.st_size, at.st_ino


def _digest(source: str, includes: tuple[Path, ...], folder: Path | None) -> str:
    """SHA-256 of the source alone, so that it can be checked by hand, and of the includes where there are any."""
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass"))
    for file in includes:
        try:
            content = file.read_bytes()
        except OSError:
            content = b""
        try:
            shown = Path(os.path.relpath(file, folder or os.getcwd())).as_posix()  # noqa: PTH109
        except ValueError:  # another drive
            shown = file.name
        digest.update(f"\0{shown}\0{hashlib.sha256(content).hexdigest()}".encode())
    return digest.hexdigest()


def _relative(path: Path) -> str:
    root = settings().prompt_root
    for folder in (root and root.absolute(), Path.cwd()):
        if folder and path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _registry_name(text: str) -> str:
    """Spell a name as MLflow's registry allows: letters, digits, ``_``, ``.`` and ``-``, folders joined by dots."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text.replace("/", ".")).strip(".-")
    if not name or len(name) > _NAME:
        name = f"{name[: _NAME - 13] or 'prompt'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return name


def _names(expressions: tuple[str, ...], name: str) -> bool:
    """Whether an expression tries to name such a variable."""
    if name.isidentifier():  # a reserved word: `in` and `new` are honest parts of other expressions
        alone = re.compile(rf"\s*{re.escape(name)}\s*(?:[.\[?]|$)")
        return any(alone.match(expression) for expression in expressions)
    return any(name in expression for expression in expressions)
