"""A POML template, from a file, from a registry or inline. It renders to records, without a framework or MLflow."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pomlflow._log import warn_once
from pomlflow.engine.file_access import decode
from pomlflow.exceptions import ConfigurationError, Problem, RenderError, TemplateNotFoundError
from pomlflow.record import RenderRecord, content_digest
from pomlflow.settings import settings
from pomlflow.template.history import History
from pomlflow.template.inference import infer
from pomlflow.template.lint import Finding, LintSettings, lint, lint_settings
from pomlflow.template.names import absolute, name_and_path, registry_name, relative_path, working_folder
from pomlflow.template.render import NOWHERE, Render, TemplateOptions
from pomlflow.template.source import Inference, Origin, Snapshot, prompt_files, stamp


class Template:
    """One POML template: `source` (inline markup), the file at `path`, or a prompt in a registry (`origin`).

    A file is read at construction, and again when it or a file that it names has changed. With `path`, `source` is the
    last known content of the file, used if the file no longer exists. `base_dir` is the folder that relative sources in
    inline markup are resolved against; the default is the working folder at each render.
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
        origin: Origin | None = None,
    ) -> None:
        if source is not None and not isinstance(source, str):
            raise ConfigurationError(
                f"a template is a text, not of the type {type(source).__name__}; for a file use from_file(path)"
            )
        if source is not None and path is None and _names_file(source):
            warn_once(
                ("path as markup", source),
                "the template is the text %r, which is the path of a file: for the file use from_file(path), or a Path",
                source,
            )
        if stylesheet is not None and not isinstance(stylesheet, Mapping):
            raise ConfigurationError(
                "a stylesheet is a mapping of elements or classes to attributes, "
                f'such as {{"list": {{"listStyle": "dash"}}}}, not of the type {type(stylesheet).__name__}'
            )
        self.origin = origin
        self.path = None if path is None else absolute(path)
        self.base_dir = None if base_dir is None else absolute(base_dir)
        self.trace_path = None
        folder = self.base_dir if self.path is None else self.path.parent
        self._relative_folder = "." if folder is None else _relative_to_root(folder)
        name = name if origin is None else origin.name
        self.name = registry_name(name or "")
        if self.path is not None:
            self.name, self.trace_path = name_and_path(self.path, name)
        self.stylesheet = None if stylesheet is None else dict(stylesheet)
        self.chat = chat
        self.register = register
        self._snapshot = self._read(source) if origin is None else origin.current()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]  # its file may change

    def _identity(self) -> tuple[Any, ...]:
        where = self.path, self.origin, self.base_dir
        return *where, self.source, self.name, self.stylesheet, self.chat, self.register

    @property
    def source(self) -> str:
        """The current markup."""
        return self.current().source

    @property
    def digest(self) -> str:
        """The digest that identifies the content: `pomlflow.record.content_digest` of the markup and its files."""
        return self.current().digest

    @property
    def inference(self) -> Inference:
        """The variables and files of the current markup."""
        return self.current().inference

    def current(self) -> Snapshot:
        """Return the template with its files as they are now; the same object as long as they do not change."""
        if self.origin is not None:
            self._snapshot = now = self.origin.current()
            return now
        now = self._snapshot
        # Inline markup without base_dir is resolved against the working folder, which may have changed.
        moved = self.path is None and now.files and self._current_folder() != now.folder
        if moved or any(stamp(file) != before for file, before in now.stamps):
            self._snapshot = now = self._read(now.source)
        return now

    def _current_folder(self) -> Path:
        """Return the folder that relative sources are resolved against."""
        return self.path.parent if self.path is not None else self.base_dir or working_folder() or NOWHERE

    def _read(self, last: str | None) -> Snapshot:
        source, folder = last, self._current_folder()
        # Take every stamp before reading its file, so that a change during the read is detected at the next check.
        before = {} if self.path is None else {self.path: stamp(self.path)}
        if self.path is not None:
            source = self._read_file(self.path, last)
        if source is None:
            raise TypeError("a template needs markup or a path")
        inference = _remembered(source, folder)
        if inference.includes or inference.assets:  # their contents may have changed since they were remembered
            before |= {file: stamp(file) for file in (*inference.includes, *inference.assets)}
            inference = infer(source, folder)
        files = prompt_files(inference, folder)
        seen = tuple((file.location, before.get(file.location)) for file in files)
        own = () if self.path is None else ((self.path, before[self.path]),)
        digest = content_digest(source, files)
        return Snapshot(source, digest, inference, folder, own + seen, files, self.path, self.trace_path)

    def _read_file(self, path: Path, last: str | None) -> str:
        try:
            if path.exists() and not path.is_dir() and not path.is_file():
                raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
            # Keep line ends as they are, as Node does. Drop a byte-order mark, which POML (0.0.8) refuses.
            text, problem = decode(path.read_bytes(), str(path))
        except OSError as error:
            if last is None:
                remedy = "give an existing .poml file, or markup to from_template"
                if any(module.startswith("code_model_") for module in sys.modules):  # MLflow runs a model's code
                    remedy = (
                        'log the model with **pomlflow.packaged("shop"), the package that has the file, and open it by '
                        'importlib.resources.files("shop")'
                    )
                why = f"cannot read the template ({error.strerror}); {remedy}"
                raise TemplateNotFoundError(error.errno, why, str(path)) from error
            reason = error.strerror
        else:
            if problem is None:
                return text
            if last is None:
                raise RenderError([problem])
            reason = problem.message
        message = "the template %s cannot be read (%s): its last content stays in use"
        warn_once(("template", path, reason), message, path, reason)
        return last

    def render(
        self,
        variables: Mapping[str, Any],
        *,
        history: History[Any] | None = None,
        snapshot: Snapshot | None = None,
        timeout: float | None = None,
        keep_whitespace: bool = False,
        exact: bool = False,
    ) -> RenderRecord:
        """Render, and return the record. A failed render has a record too; `RenderRecord.result` raises its error.

        `history` replaces a framework's own messages in the variables, and has their places in the output afterwards.
        `snapshot` is the template to render, by default the current one; `timeout` is in seconds. `keep_whitespace`
        keeps the whitespace that POML would collapse. With `exact`, POML gets histories and other values unchecked.
        """
        options = {"keep_whitespace": keep_whitespace, "exact": exact}
        return self._prepare(variables, history, snapshot, **options).run(timeout)

    async def arender(
        self,
        variables: Mapping[str, Any],
        *,
        history: History[Any] | None = None,
        snapshot: Snapshot | None = None,
        timeout: float | None = None,
        keep_whitespace: bool = False,
    ) -> RenderRecord:
        """Render without blocking the event loop; otherwise as `render`."""
        return await self._prepare(variables, history, snapshot, keep_whitespace=keep_whitespace).arun(timeout)

    def _prepare(
        self, variables: Mapping[str, Any], history: History[Any] | None, snapshot: Snapshot | None, **options: Any
    ) -> Render:
        now = snapshot or self.current()
        folder = self.base_dir if self.origin is None else now.folder
        relative = self._relative_folder
        if self.path is None and self.base_dir is None and settings().prompt_root and (here := working_folder()):
            relative = _relative_to_root(here)
        own = TemplateOptions(self.name, folder, relative, self.stylesheet, self.chat, self.register)
        return Render(own, now, variables, history, **options)

    def check(self, variables: Mapping[str, Any] | None = None, *, history: History[Any] | None = None) -> RenderRecord:
        """Render with the given variables, to find problems of the template itself.

        Missing variables are replaced by placeholders (placeholders.cjs). Errors that a placeholder may have caused are
        suppressed.
        """
        now = self.current()
        given = {**dict.fromkeys(now.inference.messages, ()), **(variables or {})}
        names = [name for name in (*now.inference.variables, *now.inference.optional) if name not in given]
        return self._prepare(given, history, now, placeholders=names).run(None)

    def lint(self, settings: LintSettings | None = None, errors: Iterable[Problem] = ()) -> list[Finding]:
        """Return warnings about the markup and the files that it includes; none that repeats one of `errors`."""
        now = self.current()
        settings = settings or lint_settings(self._current_folder())
        return lint(now, settings, self.stylesheet, errors)


def _names_file(text: str) -> bool:
    """Return whether a markup is the path of an existing .poml file."""
    return text.endswith(".poml") and not {"<", "\n"} & set(text) and os.path.exists(text)  # noqa: PTH110 - it accepts any text


def _relative_to_root(folder: Path) -> str | None:
    """Return a folder relative to the prompt root or the working folder; None if it is on another drive."""
    root = settings().prompt_root or working_folder()
    return None if root is None else relative_path(str(folder), str(root))


@lru_cache(maxsize=256)
def _remembered(source: str, folder: Path) -> Inference:
    """Return the inference of a markup, cached: frameworks often copy templates (partial, deepcopy, bind)."""
    return infer(source, folder)
