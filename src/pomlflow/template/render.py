"""One render of a template, from its variables to its record."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pomlflow import engine
from pomlflow.exceptions import PomlError, RenderError
from pomlflow.record import JsonObject, RenderRecord
from pomlflow.template.history import History, plain_histories
from pomlflow.template.names import working_folder
from pomlflow.template.runtime import canonical
from pomlflow.template.source import Snapshot
from pomlflow.template.validation import (
    check_values,
    encode_variables,
    missing_names,
    missing_variables,
    own_problems,
    with_hint,
)

NOWHERE: Final = Path(os.sep, "<inline>")
"""A folder that does not exist, so that no file under it can be read."""


@dataclass(frozen=True)
class TemplateOptions:
    """The options of a template other than its markup; see `Template`."""

    name: str | None
    folder: Path | None  # that relative sources are resolved against; None for the working folder
    relative_folder: str | None  # the same relative to the prompt root
    stylesheet: Mapping[str, Any] | None
    chat: bool
    register: bool | None


class Render:
    """One render of a template.

    A variable is missing only if an expression that was evaluated needed it, so the engine decides. A second render,
    with placeholders, shows which problems the missing variables did not cause.
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
        self._context = b"{}"
        self._kept_whitespace = False
        self._output: Mapping[str, Any] | None = None
        self._error: PomlError | None = None
        self._requests = self._steps(variables, placeholders, keep_whitespace)

    def run(self, timeout: float | None) -> RenderRecord:
        """Render, and return the record."""
        outcome: engine.Result | PomlError | None = None
        while (request := self._next(outcome)) is not None:
            try:
                outcome = engine.run(request, timeout)
            except PomlError as error:
                outcome = error
        return self._record()

    async def arun(self, timeout: float | None) -> RenderRecord:
        """Render without blocking the event loop, and return the record."""
        outcome: engine.Result | PomlError | None = None
        while (request := self._next(outcome)) is not None:
            try:
                outcome = await engine.arun(request, timeout)
            except PomlError as error:
                outcome = error
        return self._record()

    def _next(self, outcome: engine.Result | PomlError | None) -> engine.Request | None:
        """Return the next request to the engine after the outcome of the last one; None if there is none."""
        try:
            return next(self._requests) if outcome is None else self._requests.send(outcome)
        except StopIteration:
            return None
        except PomlError as error:
            self._error = error
            return None

    def _steps(
        self, variables: Mapping[str, Any], placeholders: Sequence[str], keep_whitespace: bool
    ) -> Generator[engine.Request, engine.Result | PomlError, None]:
        """Yield each request to the engine, receive its outcome, and set the output or the error."""
        snapshot, history = self._snapshot, self._history
        variables, request = self._prepare(variables)
        request = request._replace(placeholders=placeholders or None, keep_whitespace=keep_whitespace)
        while not isinstance(outcome := (yield request), PomlError):
            self._output, self._kept_whitespace = outcome.output, outcome.kept_whitespace
            if history is None or request.marks is not history.marks:
                return
            self._output = history.splice(outcome.output)
            if self._output is not None:
                return
            request = request._replace(marks=history.texts())
        self._error = outcome
        if type(outcome) is not RenderError:  # its limit of time, or the engine
            return
        missing = () if placeholders else missing_names(outcome, snapshot.inference, variables)
        again = (yield request._replace(placeholders=missing)) if missing else None
        own = own_problems(outcome, missing, again) if isinstance(again, RenderError) else []
        if missing and not own:
            self._error = missing_variables(missing, outcome, snapshot, variables)
        else:
            others = [problem for problem in outcome.problems if problem not in own]
            self._error = with_hint(RenderError([*own, *others], outcome.hint), snapshot, variables, own or others)

    def _prepare(self, variables: Mapping[str, Any]) -> tuple[Mapping[str, Any], engine.Request]:
        """Return the variables as expressions see them, and the request."""
        options, now = self._options, self._snapshot
        takes, marks = now.inference, None
        variables = {name: value for name, value in variables.items() if isinstance(name, str)}
        variables = {**dict.fromkeys(takes.messages, ()), **variables}
        if self._history is not None:
            variables = self._history.take(variables, takes.messages, takes.message_sources)
            marks = self._history.marks if options.chat else self._history.texts()
        elif not self._exact:
            variables = plain_histories(variables, takes.messages, takes.message_sources)
        self._context, revive = encode_variables(takes, variables)
        if not self._exact:
            check_values(now, variables)
        # POML resolves relative sources against the folder of a path, whose file need not exist. For inline markup that
        # is the working folder. Do not look it up for markup without sources: os.getcwd releases the interpreter lock,
        # and a busy thread, such as MLflow's exporter, may then hold it for 5 ms.
        may_name_files = "src" in now.source.replace("-", "").lower() or options.stylesheet
        folder = options.folder or (working_folder() if may_name_files else None) or NOWHERE
        request = engine.Request(
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
        return variables, request

    def _record(self) -> RenderRecord:
        elapsed = time.perf_counter_ns() - self._clock
        options, snapshot = self._options, self._snapshot
        output = self._output if self._error is None else None
        added: dict[str, Any] = {}
        if output is not None and snapshot.runtime:
            own = output.get("runtime") or {}
            set_there = {canonical(key) for key in own}
            added = {key: value for key, value in snapshot.runtime.items() if canonical(key) not in set_there}
            if added:
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
            kept_whitespace=self._kept_whitespace,
            output=output,
            error=self._error,
            poml_version=engine.poml_version(),
            static_fields=snapshot.inference.static_fields,
            register=options.register if snapshot.register is None else snapshot.register,
            files=snapshot.files,
            version=snapshot.version,
            added_runtime=added,
        )
