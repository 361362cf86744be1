"""`autolog`: one line that traces every POML render, in LangChain, in LlamaIndex and outside of both.

No framework is patched or imported: each adapter attaches a handler by the framework's own means, as soon as the
framework has been imported. What is replaced is how ``poml.poml`` renders (`pomlflow._poml_patch`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from pomlflow._arguments import refuse_arguments
from pomlflow._log import logger
from pomlflow._post_import import cancel, when_imported
from pomlflow.dispatch import Framework, Mask, RenderContext, check_mask, set_sink

if TYPE_CHECKING:
    from pomlflow.record import RenderRecord
    from pomlflow.tracking.trace_files import TraceFiles


class AutologOptions(TypedDict, total=False):
    """The keyword arguments of `autolog`; see there for their meaning."""

    log_traces: bool
    silent: bool
    register: bool
    mask: Mask | None
    trace_dir: str | os.PathLike[str] | None


_DEFAULTS: Final[AutologOptions] = {
    "log_traces": True,
    "silent": False,
    "register": True,
    "mask": None,
    "trace_dir": None,
}


def autolog(disable: bool = False, **options: Unpack[AutologOptions]) -> None:
    """Trace every POML render in MLflow, register its prompt, and link the trace to the prompt version.

    In a chain, agent or engine of LangChain or LlamaIndex, the whole call is traced, and the render is a span of that
    trace. Elsewhere, a render is a child of the active span, or a trace of its own. Calls of ``poml.poml()`` use the
    engine and are traced too.

    Call it once, at the top of a program, before or after MLflow's own autologs and imports of any framework. Another
    call sets new options. Nothing is traced twice: neither with a pomlflow handler nor with MLflow's autolog.

    Args:
        disable: Whether to switch it off.
        log_traces: False traces and registers nothing; ``poml.poml()`` still uses the engine, and `trace_dir` is still
            written. The default is True.
        silent: Whether to suppress pomlflow's warnings. The default is False.
        register: Whether to register each prompt in MLflow's registry and link its version to the trace. The default
            is True; a template's own ``register=`` overrides it.
        mask: A function that returns what may be stored of a span's ``{"inputs": …, "outputs": …}``, in MLflow and in
            local files.
        trace_dir: A folder for POML's own local trace files. They are written to a new folder in it, named by the
            time, as by ``poml.set_trace(trace_dir=…)``.
        **options: The arguments above, except `disable`.

    Raises:
        ConfigurationError: `mask` is not a function, or the folder cannot be made.

    Example:
        >>> import pomlflow
        >>> pomlflow.autolog()  # doctest: +SKIP
        >>> pomlflow.poml("explain_code.poml", {"code_path": "sample.py"})  # doctest: +SKIP
    """
    switch(("plain", "langchain", "llama_index"), disable=disable, **options)


def switch(parts: tuple[Framework, ...], *, disable: bool, **options: Unpack[AutologOptions]) -> None:
    """Switch some parts of autolog on or off; the other arguments are those of `autolog`."""
    _state.set(parts, None if disable else _checked(options))


def _checked(given: AutologOptions) -> AutologOptions:
    refuse_arguments(given.keys() - _DEFAULTS.keys(), "autolog", _DEFAULTS)
    options: AutologOptions = {**_DEFAULTS, **given}
    check_mask(options["mask"])
    if options["trace_dir"]:
        # Absolute, so that the same options after a chdir are recognised as unchanged.
        options["trace_dir"] = os.path.abspath(os.path.expanduser(options["trace_dir"]))  # noqa: PTH100, PTH111
    return options


# For each part: the module whose import triggers it, and our module with its `attach` and `detach`.
_ATTACHED: Final[dict[Framework, tuple[str, str]]] = {
    "plain": ("poml", "pomlflow._poml_patch"),
    "langchain": ("langchain_core.tracers.context", "pomlflow.langchain.configure_hook"),
    "llama_index": ("llama_index.core", "pomlflow.llama_index.handler"),
}


class _State:
    """The options of each part that is on, in the order in which they were set; and the sinks that the parts share."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._options: dict[Framework, AutologOptions] = {}

    def set(self, parts: tuple[Framework, ...], options: AutologOptions | None) -> None:
        with self._lock:
            changed = [part for part in parts if self._options.get(part) != options]
            if not changed:
                return
            if options is not None and options["trace_dir"] is not None:
                _trace_files(os.fspath(options["trace_dir"]))  # raises an error before anything is changed
            for part in changed:
                self._options.pop(part, None)  # reinserted at the end: the folder that was set last is used
                if options is not None:
                    self._options[part] = options
            self._set_filter()
            self._set_files()
            self._set_sink()
            for part in changed:
                if options is not None and (options["log_traces"] or part == "plain"):
                    _attach(part, options)
                else:
                    _detach(part)

    def _set_filter(self) -> None:
        if any(options["silent"] for options in self._options.values()):
            logger.addFilter(_errors_only)
        else:
            logger.removeFilter(_errors_only)

    def _set_files(self) -> None:
        sink = None
        for options in self._options.values():
            if options["trace_dir"] is not None:
                sink = partial(_write, _trace_files(os.fspath(options["trace_dir"])), options["mask"])
        if sink is None:
            _trace_files.cache_clear()
        set_sink("trace_files", sink)

    def _set_sink(self) -> None:
        if not (self._traced("plain") or self._traced("langchain")):
            set_sink("autolog", None)
            return
        from pomlflow.tracking.spans import prepare  # imports MLflow, which would slow the first render by a second

        prepare()
        set_sink("autolog", self._store)

    def _traced(self, part: Framework) -> AutologOptions | None:
        options = self._options.get(part)
        return options if options is not None and options["log_traces"] else None

    def _store(self, record: RenderRecord, context: RenderContext) -> bool:
        """Sink: store a render that is not part of a chain, agent or engine."""
        part = context.framework
        options = None if part == "llama_index" else self._traced(part)  # its handler stores every render of LlamaIndex
        if options is None:
            return False
        from pomlflow.tracking.spans import log_render

        log_render(record, parent=None, register=options["register"], mask=options["mask"])
        return True


def _attach(part: Framework, options: AutologOptions) -> None:
    imported, module = _ATTACHED[part]

    def attach() -> None:
        try:
            import_module(module).attach(options["register"], options["mask"])
        except Exception as error:  # noqa: BLE001 - an incompatible framework or MLflow must not stop the program
            logger.warning("%s is not traced: %r", imported.partition(".")[0], error)

    when_imported(imported, attach)


def _detach(part: Framework) -> None:
    imported, module = _ATTACHED[part]
    cancel(imported)
    if module in sys.modules:
        sys.modules[module].detach()


@cache  # so that calling autolog() twice makes one folder
def _trace_files(trace_dir: str) -> TraceFiles:
    from pomlflow.tracking.trace_files import TraceFiles

    return TraceFiles.of_this_run(trace_dir)


def _write(files: TraceFiles, mask: Mask | None, record: RenderRecord, context: RenderContext) -> bool:
    """Sink: write POML's local trace files."""
    files.write(record, context.file, mask=mask)
    return False


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


_state: Final = _State()
