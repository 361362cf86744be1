"""A POML template, from a file, from a registry or inline. It renders to records, without a framework or MLflow."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pomlflow import engine
from pomlflow._log import warn_once
from pomlflow.engine.file_access import decode
from pomlflow.exceptions import ConfigurationError, PomlError, Problem, RenderError, TemplateNotFoundError
from pomlflow.record import RenderRecord, content_digest
from pomlflow.settings import settings
from pomlflow.template.history import History, plain_histories
from pomlflow.template.inference import infer
from pomlflow.template.lint import Finding, LintSettings, lint, lint_settings
from pomlflow.template.names import absolute, name_and_path, registry_name, relative_path, working_folder
from pomlflow.template.runtime import canonical
from pomlflow.template.source import Inference, Origin, Snapshot, prompt_files, stamp
from pomlflow.template.validation import check_values, encode_variables, explained, missing_names

_NOWHERE: Final = Path(os.sep, "<inline>")  # it does not exist, so that no file under it can be read
_Steps = Generator[engine.Request | RenderRecord, engine.Result | PomlError | None, None]


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
        if source is not None and path is None and source.endswith(".poml") and not {"<", "\n"} & set(source):
            warn_once(
                ("path as markup", source),
                "%r looks like the path of a file, which %s, but is used as markup: to read a file, use "
                "from_file(path) or a Path",
                *(source, "exists" if os.path.exists(source) else "does not exist"),  # noqa: PTH110 - it accepts any text
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
        return self.path.parent if self.path is not None else self.base_dir or working_folder() or _NOWHERE

    def _read(self, last: str | None) -> Snapshot:
        source, folder = last, self._current_folder()
        # Take every stamp before reading its file, so that a change during the read is detected at the next check.
        before = {} if self.path is None else {self.path: stamp(self.path)}
        if self.path is not None:
            source = self._read_file(self.path, last)
        if source is None:
            raise TypeError("a template needs markup or a path")
        inference = _cached_inference(source, folder)
        if inference.includes or inference.assets:  # their contents may have changed since they were cached
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
        keeps the whitespace that POML would collapse. With `exact`, as in ``poml.poml()``, histories are
        not converted and tables are not checked.
        """
        steps = self._steps(variables, history, snapshot, keep_whitespace=keep_whitespace, exact=exact)
        return _run(steps, timeout)

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
        steps = self._steps(variables, history, snapshot, keep_whitespace=keep_whitespace)
        outcome: engine.Result | PomlError | None = None
        while not isinstance(request := steps.send(outcome), RenderRecord):
            try:
                outcome = await engine.arun(request, timeout)
            except PomlError as error:
                outcome = error
        return request

    def check(self, variables: Mapping[str, Any] | None = None, *, history: History[Any] | None = None) -> RenderRecord:
        """Render with the given variables, to find problems of the template itself.

        Missing variables are replaced by placeholders (placeholders.cjs). Errors that a placeholder may have caused are
        suppressed.
        """
        now = self.current()
        given = {**dict.fromkeys(now.inference.messages, ()), **(variables or {})}
        names = [name for name in (*now.inference.variables, *now.inference.optional) if name not in given]
        return _run(self._steps(given, history, now, placeholders=names), None)

    def lint(self, settings: LintSettings | None = None, errors: Iterable[Problem] = ()) -> list[Finding]:
        """Return warnings about the markup and the files that it includes; none that repeats one of `errors`."""
        now = self.current()
        settings = settings or lint_settings(self._current_folder())
        return lint(now, settings, self.stylesheet, errors)

    def _steps(
        self,
        variables: Mapping[str, Any],
        history: History[Any] | None,
        snapshot: Snapshot | None,
        *,
        placeholders: Sequence[str] = (),
        keep_whitespace: bool = False,
        exact: bool = False,
    ) -> _Steps:
        """Yield each request to the engine and receive its outcome; at the end, yield the record.

        A variable is missing only if an expression that was evaluated needed it, so the engine decides. A second
        render, with placeholders, shows which problems the missing variables did not cause.
        """
        started, now = (time.time_ns(), time.perf_counter_ns()), snapshot or self.current()
        context, output, kept, error = b"{}", None, False, None
        try:
            variables = _as_seen(variables, now.inference, history, exact=exact)
            context, revive = encode_variables(now.inference, variables)
            if not exact:
                check_values(now, variables)
            marks = None if history is None else history.marks if self.chat else history.texts()
            request = self._request(now, context, revive, marks or None)
            request = request._replace(placeholders=placeholders or None, keep_whitespace=keep_whitespace)
            outcome = yield request
            if history is not None and request.marks is history.marks and isinstance(outcome, engine.Result):
                output = history.splice(outcome.output)
                if output is None:  # POML changed a mark
                    outcome = yield (request := request._replace(marks=history.texts()))
            if isinstance(outcome, engine.Result):
                output, kept = output or outcome.output, outcome.kept_whitespace
            elif type(outcome) is not RenderError:  # a timeout, or a failure of the engine
                error = outcome
            else:
                missing = () if placeholders else missing_names(outcome, now.inference, variables)
                retry = (yield request._replace(placeholders=missing)) if missing else None
                error = explained(outcome, now, variables, missing, retry)
        except PomlError as raised:
            error = raised
        yield self._record(now, started, context, error or output, kept, history)

    def _request(
        self, now: Snapshot, context: bytes, revive: bool, marks: Mapping[str, Sequence[Any]] | None
    ) -> engine.Request:
        # POML resolves relative sources against the folder of a path, whose file need not exist. For inline markup that
        # is the working folder. Do not look it up for markup without sources: os.getcwd releases the interpreter lock,
        # and a busy thread, such as MLflow's exporter, may then hold it for 5 ms.
        may_name_files = "src" in now.source.replace("-", "").lower() or self.stylesheet
        folder = self.base_dir if self.origin is None else now.folder
        folder = folder or (working_folder() if may_name_files else None) or _NOWHERE
        return engine.Request(
            now.source.removeprefix("\ufeff"),
            context,
            revive,
            self.stylesheet,
            str(now.path or os.path.join(folder, "<inline>.poml")),  # noqa: PTH118
            label=now.label,
            roots=now.roots,
            chat=self.chat,
            marks=marks,
        )

    def _record(
        self,
        now: Snapshot,
        started: tuple[int, int],
        context: bytes,
        outcome: Mapping[str, Any] | PomlError | None,
        kept_whitespace: bool,
        history: History[Any] | None,
    ) -> RenderRecord:
        elapsed = time.perf_counter_ns() - started[1]
        error = outcome if isinstance(outcome, PomlError) else None
        output = None if isinstance(outcome, PomlError) else outcome
        added: dict[str, Any] = {}
        if output is not None and now.runtime:
            own = output.get("runtime") or {}
            set_there = {canonical(key) for key in own}
            added = {key: value for key, value in now.runtime.items() if canonical(key) not in set_there}
            if added:
                output = {**output, "runtime": {**own, **added}}
        folder = self._relative_folder
        if self.path is None and self.base_dir is None and settings().prompt_root and (here := working_folder()):
            folder = _relative_to_root(here)
        return RenderRecord(
            source=now.source,
            digest=now.digest,
            context=context,
            start_ns=started[0],
            end_ns=started[0] + elapsed,
            name=self.name,
            path=now.trace_path,
            folder=folder,
            stylesheet=self.stylesheet,
            chat=self.chat,
            message_variables=() if history is None else tuple(history.marks),
            kept_whitespace=kept_whitespace,
            output=output,
            error=error,
            poml_version=engine.poml_version(),
            static_fields=now.inference.static_fields,
            register=self.register if now.register is None else now.register,
            files=now.files,
            version=now.version,
            added_runtime=added,
        )


def _run(steps: _Steps, timeout: float | None) -> RenderRecord:
    outcome: engine.Result | PomlError | None = None
    while not isinstance(request := steps.send(outcome), RenderRecord):
        try:
            outcome = engine.run(request, timeout)
        except PomlError as error:
            outcome = error
    return request


def _as_seen(
    variables: Mapping[str, Any], inference: Inference, history: History[Any] | None, *, exact: bool
) -> Mapping[str, Any]:
    """Return the variables as expressions see them."""
    variables = {name: value for name, value in variables.items() if isinstance(name, str)}
    variables = {**dict.fromkeys(inference.messages, ()), **variables}
    if history is not None:
        return history.collect(variables, inference.messages, inference.message_sources)
    return variables if exact else plain_histories(variables, inference.messages, inference.message_sources)


def _relative_to_root(folder: Path) -> str | None:
    """Return a folder relative to the prompt root or the working folder; None if it is on another drive."""
    root = settings().prompt_root or working_folder()
    return None if root is None else relative_path(str(folder), str(root))


@lru_cache(maxsize=256)
def _cached_inference(source: str, folder: Path) -> Inference:
    """Return the inference of a markup, cached: frameworks often copy templates (partial, deepcopy, bind)."""
    return infer(source, folder)
