"""A POML template: where its markup comes from, what it takes, and its renders as records.

It knows no framework and no MLflow; the adapters' prompt templates are made around it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pomlflow import engine
from pomlflow.exceptions import PomlError, RenderError, TemplateNotFoundError, VariableError
from pomlflow.record import JsonObject, RenderRecord, content_digest
from pomlflow.settings import settings
from pomlflow.template.history import History
from pomlflow.template.inference import Inference, infer
from pomlflow.template.names import absolute, from_root, name_and_place, registry_name
from pomlflow.template.source import Origin, Snapshot, prompt_files, stamp, stamps
from pomlflow.template.validation import admitted, checked, encoded

__all__ = ["Snapshot", "Template"]

_log = logging.getLogger("pomlflow")
_NOWHERE = os.path.join(os.sep, "<inline>")  # noqa: PTH118 - no folder, so that nothing is allowed by it


class Template:
    """One POML template.

    A file is read at construction and again when it, or a file that it names, has changed: that costs one ``stat``
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
        origin: Where the markup comes from, instead of `source` and `path`; the name is then the origin's.

    Raises:
        TemplateNotFoundError: The file cannot be read, and there is no markup.

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
        origin: Origin | None = None,
    ) -> None:
        self.origin = origin
        self.path = None if path is None else absolute(path)
        self.base_dir = None if base_dir is None else absolute(base_dir)
        self.relative = None
        home = self.base_dir if self.path is None else self.path.parent
        self._home = None if home is None else from_root(str(home), str(settings().prompt_root or Path.cwd()))
        name = name if origin is None else origin.name
        self.name = registry_name(name or "")
        if self.path is not None:
            self.name, self.relative = name_and_place(self.path, name)
        self.stylesheet = None if stylesheet is None else dict(stylesheet)
        self.chat = chat
        self.register = register
        self._lost = False
        self._snapshot = self._read(source) if origin is None else origin.current()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]  # its file may change

    def _identity(self) -> tuple[Any, ...]:
        where = self.path, self.origin, self.base_dir
        return *where, self.source, self.name, self.stylesheet, self.chat, self.register

    @property
    def source(self) -> str:
        """The markup as it is now."""
        return self.current().source

    @property
    def digest(self) -> str:
        """What the content is known by: `pomlflow.record.content_digest` of the markup and the files that it names."""
        return self.current().digest

    @property
    def inference(self) -> Inference:
        """What it takes."""
        return self.current().inference

    def current(self) -> Snapshot:
        """The template as its files are now; the same object for as long as they do not change."""
        if self.origin is not None:
            self._snapshot = now = self.origin.current()
            return now
        now = self._snapshot
        # Inline markup without a folder of its own is at home where the process is.
        moved = self.path is None and now.files and self._folder() != now.folder
        if moved or any(stamp(file) != before for file, before in now.stamps):
            self._snapshot = now = self._read(now.source)
        return now

    def folder(self) -> str | None:
        """The folder that relative sources are looked for in, relative to the prompt root; None on another drive."""
        root = settings().prompt_root
        if self.path is not None or self.base_dir is not None:
            return self._home
        return "." if root is None else from_root(os.getcwd(), str(root))  # noqa: PTH109 - the cache's key

    def _folder(self) -> Path:
        return self.path.parent if self.path is not None else self.base_dir or Path.cwd()

    def _read(self, last: str | None) -> Snapshot:
        source, folder = last, self._folder()
        # Every stamp is taken before its file is read, so that a change meanwhile is seen next time.
        before = stamps([] if self.path is None else [self.path])
        if self.path is not None:
            source = self._read_file(self.path, last)
        if source is None:
            raise TypeError("a template needs markup or a path")
        inference = _remembered(source, folder)
        if inference.includes or inference.assets:  # what they hold may have changed since
            before |= stamps((*inference.includes, *inference.assets))
            inference = infer(source, folder)
        files = prompt_files(inference, folder)
        seen = tuple((file.location, before.get(file.location)) for file in files)
        own = () if self.path is None else ((self.path, before[self.path]),)
        digest = content_digest(source, files)
        return Snapshot(source, digest, inference, folder, own + seen, files, self.path, self.relative)

    def _read_file(self, path: Path, last: str | None) -> str:
        try:
            # As Node reads it: UTF-8, what is not becomes U+FFFD, line ends as they are. Only the mark that editors on
            # Windows put first is left out: POML (0.0.8) refuses it.
            text = path.read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            if last is None:
                remedy = "give an existing .poml file, or markup to from_template"
                why = f"cannot read the template ({error.strerror}); {remedy}"
                raise TemplateNotFoundError(error.errno, why, str(path)) from error
            if not self._lost:
                _log.warning("the template %s cannot be read (%s): its last content stays", path, error.strerror)
            self._lost = True
            return last
        self._lost = False
        return text

    def render(
        self,
        variables: Mapping[str, Any],
        *,
        history: History[Any] | None = None,
        snapshot: Snapshot | None = None,
        timeout: float | None = None,
    ) -> RenderRecord:
        """Render, and tell all about it.

        Args:
            variables: By name.
            history: Takes a framework's own messages out of the variables; tells afterwards where they are.
            snapshot: The template as it is to be rendered, from `current`, which is the default.
            timeout: Seconds; None for `pomlflow.configure`'s.

        Returns:
            The record, of a failed render too: `RenderRecord.result` raises its error.
        """
        render = _Render(self, snapshot or self.current(), variables, history)
        return render.run(timeout)

    async def arender(
        self,
        variables: Mapping[str, Any],
        *,
        history: History[Any] | None = None,
        snapshot: Snapshot | None = None,
        timeout: float | None = None,
    ) -> RenderRecord:
        """Render without holding up the event loop; otherwise as `render`."""
        render = _Render(self, snapshot or self.current(), variables, history)
        try:
            while render.request is not None:
                render.take(await engine.arun(render.request, timeout))
        except PomlError as error:
            render.fail(error)
        return render.record()

    def check(self, variables: Mapping[str, Any] | None = None, *, history: History[Any] | None = None) -> RenderRecord:
        """Render with what variables there are, to find what is wrong with the template itself.

        A variable without a value stands for itself: expressions may do with it what they like, a loop over it runs
        once, what hangs on an ``if`` of it is rendered. A problem that may be due to the missing value is not told.

        Args:
            variables: By name, as many as there are.
            history: As `render` takes it.

        Returns:
            The record; its `error` tells all problems.

        Example:
            >>> Template("<p for='x in xs'>{{x.price.toFixed(2)}}</p>").check().error is None
            True
            >>> print(Template("<p>{{ JSON.prase(text) }} {{ text. }}</p>").check({"text": ""}).error)
            <inline>:1:4: JSON.prase is not a function
                <p>{{ JSON.prase(text) }} {{ text. }}</p>
                   ^^^^^^^^^^^^^^^^^^^^^^
            also <inline>:1:27: Unexpected token '}'
        """
        now = self.current()
        given = {**dict.fromkeys(now.inference.messages, ()), **(variables or {})}
        names = [name for name in (*now.inference.variables, *now.inference.optional) if name not in given]
        return _Render(self, now, given, history, stand_ins=names).run(None)


class _Render:
    """One render on its way.

    Attributes:
        request: What the engine is to do next; None where nothing is left to do.
        error: Why it failed.
    """

    def __init__(
        self,
        template: Template,
        snapshot: Snapshot,
        variables: Mapping[str, Any],
        history: History[Any] | None,
        stand_ins: Sequence[str] = (),
    ) -> None:
        self._start, self._clock = time.time_ns(), time.perf_counter_ns()
        self._template = template
        self._snapshot = snapshot
        self._history = history
        self._stand_ins = stand_ins
        self._context = b"{}"
        self._result: engine.Result | None = None
        self._output: Mapping[str, Any] | None = None
        self.request: engine.Request | None = None
        self.error: PomlError | None = None
        try:
            self.request = self._prepared(variables)
        except VariableError as refused:
            self.error = refused

    def _prepared(self, variables: Mapping[str, Any]) -> engine.Request:
        template, now = self._template, self._snapshot
        natives = None
        variables = admitted(now.inference, variables)
        left_out = [name for name in now.inference.messages if name in now.inference.optional and name not in variables]
        if left_out:
            variables = {**dict.fromkeys(left_out, ()), **variables}
        if self._history is not None:
            variables = self._history.take(variables, now.inference.messages, now.inference.passed)
            natives = self._history.marks if template.chat else self._history.texts()
        self._context, revive = encoded(now.inference, variables)
        place = now.uri if now.path is None else str(now.path)
        checked(now.inference, variables, self._stand_ins, now.source, place)
        # Relative sources are resolved against the folder of a path, also of one that is not there. That of inline
        # markup is where the process is now, which markup without sources need not know: os.getcwd lets other threads
        # run first, and one that is busy, as MLflow's exporter is, does so for 5 ms.
        home = template.base_dir or (os.getcwd() if _may_read(now.source, str(template.stylesheet)) else _NOWHERE)  # noqa: PTH109
        folder = now.folder if template.origin is not None else home
        return engine.Request(
            now.source,
            self._context,
            revive,
            template.stylesheet,
            str(now.path or os.path.join(folder, "<inline>.poml")),  # noqa: PTH118
            inline=now.path is None,
            label=now.uri,
            roots=now.roots,
            chat=template.chat,
            natives=natives or None,
            placeholders=self._stand_ins or None,
        )

    def run(self, timeout: float | None) -> RenderRecord:
        """Do all of it at once."""
        try:
            while self.request is not None:
                self.take(engine.run(self.request, timeout))
        except PomlError as error:
            self.fail(error)
        return self.record()

    def fail(self, error: PomlError) -> None:
        """Take why it failed, and add what is known of a file that is not there."""
        said = str(error)
        hints = dict.fromkeys(why for file, why in self._snapshot.missing if file in said)
        if hints and type(error) is RenderError:
            error = RenderError(error.problems, "\n".join([*filter(None, [error.hint]), *hints]))
        self.error = error

    def take(self, result: engine.Result) -> None:
        """Take what the engine gave; `request` is then what is still to be done."""
        assert self.request is not None  # noqa: S101
        self._result, self._output = result, result.output
        history, request, self.request = self._history, self.request, None
        if history is not None and request.natives is history.marks:
            self._output = history.splice(result.output)
            if self._output is None:
                self.request = request._replace(natives=history.texts())

    def record(self) -> RenderRecord:
        """Tell all about it."""
        elapsed = time.perf_counter_ns() - self._clock
        template, snapshot = self._template, self._snapshot
        return RenderRecord(
            source=snapshot.source,
            digest=snapshot.digest,
            variables=JsonObject(self._context),
            start_ns=self._start,
            end_ns=self._start + elapsed,
            name=template.name,
            path=snapshot.relative,
            folder=template.folder(),
            stylesheet=template.stylesheet,
            chat=template.chat,
            natives=() if self._history is None else tuple(self._history.marks),
            output=self._output if self.error is None else None,
            error=self.error,
            poml_version=engine.poml_version(),
            static=snapshot.inference.static,
            register=template.register if snapshot.register is None else snapshot.register,
            files=snapshot.files,
            version=snapshot.version,
        )


@lru_cache(maxsize=256)
def _may_read(source: str, stylesheet: str) -> bool:
    """Whether markup may name a file: every way is an attribute or a style named src, in whatever spelling."""
    return re.search("s-?r-?c", source + stylesheet, re.IGNORECASE) is not None


@lru_cache(maxsize=256)
def _remembered(source: str, folder: Path) -> Inference:
    """Inference by text: frameworks copy templates often (partial, deepcopy, bind)."""
    return infer(source, folder)
