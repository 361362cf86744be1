"""One render of a template, from its variables to its record."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pomlflow import engine
from pomlflow.exceptions import PomlError, RenderError
from pomlflow.record import JsonObject, RenderRecord
from pomlflow.template.history import History, plain_histories
from pomlflow.template.names import working_folder
from pomlflow.template.runtime import unset_defaults
from pomlflow.template.source import Snapshot
from pomlflow.template.validation import (
    check_names,
    encode_variables,
    is_suspicious,
    missing_names,
    missing_variables,
    nameable,
    own_problems,
    with_hint,
)

__all__ = ["NOWHERE", "Render", "TemplateOptions"]

NOWHERE: Final = Path(os.sep, "<inline>")
"""A folder that does not exist, so that no file under it can be read."""


@dataclass(frozen=True)
class TemplateOptions:
    """The options of a template besides its markup; see `Template`.

    `folder` is the one that relative sources are resolved against, None for the working folder; `relative_folder` is
    the same relative to the prompt root.
    """

    name: str | None
    folder: Path | None
    relative_folder: str | None
    stylesheet: Mapping[str, Any] | None
    chat: bool
    register: bool | None


class Render:
    """One render in progress.

    A variable is missing only if an expression that was evaluated needed it, so the engine decides. If it reports other
    problems too, a second render, with placeholders, shows which of them the missing variables did not cause.

    Attributes:
        request: The next request to the engine; None if there is none.
        error: The error of a failed render.
    """

    def __init__(
        self,
        options: TemplateOptions,
        snapshot: Snapshot,
        variables: Mapping[str, Any],
        history: History[Any] | None,
        *,
        placeholders: Sequence[str] = (),
        keep_whitespace: bool = False,
        exact: bool = False,
    ) -> None:
        self._start, self._clock = time.time_ns(), time.perf_counter_ns()
        self._options = options
        self._snapshot = snapshot
        self._history = history
        self._exact = exact
        self._variables: Mapping[str, Any] = {}
        self._context = b"{}"
        self._result: engine.Result | None = None
        self._output: Mapping[str, Any] | None = None
        self._missing: tuple[str, ...] = ()
        self.request: engine.Request | None = None
        self.error: PomlError | None = None
        try:
            request = self._prepare(variables)
            self.request = request._replace(placeholders=placeholders or None, keep_whitespace=keep_whitespace)
        except PomlError as refused:
            self.error = refused

    def _prepare(self, variables: Mapping[str, Any]) -> engine.Request:
        options, now = self._options, self._snapshot
        takes, marks = now.inference, None
        if takes.not_utf8:
            raise RenderError(takes.not_utf8)
        variables = nameable(takes, variables)
        left_out = [name for name in takes.messages if name in takes.optional and name not in variables]
        if left_out:
            variables = {**dict.fromkeys(left_out, ()), **variables}
        if self._history is not None:
            variables = self._history.take(variables, takes.messages, takes.message_sources)
            marks = self._history.marks if options.chat else self._history.texts()
        elif not self._exact:
            variables = plain_histories(variables, takes.messages, takes.message_sources)
        self._context, revive = encode_variables(takes, variables)
        check_names(now, variables)
        self._variables = variables
        # POML resolves relative sources against the folder of a path, whose file need not exist. For inline markup that
        # is the working folder. Do not look it up for markup without sources: os.getcwd releases the interpreter lock,
        # and a busy thread, such as MLflow's exporter, may then hold it for 5 ms.
        folder = options.folder or (working_folder() if takes.names_files or options.stylesheet else None) or NOWHERE
        return engine.Request(
            now.source.removeprefix("\ufeff"),
            self._context,
            revive,
            options.stylesheet,
            str(now.path or os.path.join(folder, "<inline>.poml")),  # noqa: PTH118
            label=now.label,
            roots=now.roots,
            chat=options.chat,
            marks=marks or None,
        )

    def run(self, timeout: float | None) -> RenderRecord:
        """Render, and return the record."""
        while self.request is not None:
            try:
                self.take(engine.run(self.request, timeout))
            except PomlError as error:
                self.fail(error)
        return self.record()

    async def arun(self, timeout: float | None) -> RenderRecord:
        """Render without blocking the event loop, and return the record."""
        while self.request is not None:
            try:
                self.take(await engine.arun(self.request, timeout))
            except PomlError as error:
                self.fail(error)
        return self.record()

    def fail(self, error: PomlError) -> None:
        """Handle an error of the engine, and set `request` to the next request or None."""
        assert self.request is not None  # noqa: S101
        request, self.request = self.request, None
        if self._missing:
            self._decide(error if isinstance(error, RenderError) else None)
        elif type(error) is not RenderError:
            self.error = error
        else:
            self.error = error
            if not request.placeholders:
                self._missing = missing_names(error, self._snapshot.inference, self._variables)
            if not self._missing:
                self.error = with_hint(error, self._snapshot)
            elif len(self._missing) == len(error.problems) and not is_suspicious(self._snapshot):
                self._decide(None)
            else:
                self.request = request._replace(placeholders=self._missing)

    def _decide(self, again: RenderError | None) -> None:
        """Set the error: the template's own problems, else the missing variables.

        `again` is the error of the render with placeholders, if it failed.
        """
        failed, names = self.error, self._missing
        assert isinstance(failed, RenderError)  # noqa: S101
        own = own_problems(failed, names, again)
        if own:
            others = [problem for problem in failed.problems if problem not in own]
            self.error = with_hint(RenderError([*own, *others], failed.hint), self._snapshot)
        else:
            self.error = missing_variables(names, failed, self._snapshot, self._variables)

    def take(self, result: engine.Result) -> None:
        """Handle a result of the engine, and set `request` to the next request or None."""
        assert self.request is not None  # noqa: S101
        history, request, self.request = self._history, self.request, None
        if self._missing:
            self._decide(None)
            return
        self._result, self._output = result, result.output
        if history is not None and request.marks is history.marks:
            self._output = history.splice(result.output)
            if self._output is None:
                self.request = request._replace(marks=history.texts())

    def record(self) -> RenderRecord:
        """Make the record."""
        elapsed = time.perf_counter_ns() - self._clock
        options, snapshot = self._options, self._snapshot
        output = self._output if self.error is None else None
        added: dict[str, Any] = {}
        if output is not None and snapshot.runtime:
            own = output.get("runtime") or {}
            if added := unset_defaults(snapshot.runtime, own):
                output = {**output, "runtime": {**own, **added}}
        return RenderRecord(
            source=snapshot.source,
            digest=snapshot.digest,
            variables=JsonObject(self._context),
            start_ns=self._start,
            end_ns=self._start + elapsed,
            name=options.name,
            path=snapshot.trace_path,
            folder=options.relative_folder,
            stylesheet=options.stylesheet,
            chat=options.chat,
            message_variables=() if self._history is None else tuple(self._history.marks),
            kept_whitespace=self._result is not None and self._result.kept_whitespace,
            output=output,
            error=self.error,
            poml_version=engine.poml_version(),
            static_fields=snapshot.inference.static_fields,
            register=options.register if snapshot.register is None else snapshot.register,
            files=snapshot.files,
            version=snapshot.version,
            added_runtime=added,
        )
