"""`autolog`: one line that traces every POML render, in LangChain, in LlamaIndex and outside of both.

No framework is patched or imported: each adapter attaches a handler by the framework's own means, as soon as the
framework has been imported. Only ``poml.poml`` is patched, to render in the engine (`pomlflow._poml_patch`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final, Never

from pomlflow._arguments import refuse_arguments
from pomlflow._log import logger
from pomlflow.dispatch import Mask, RenderContext, Sink, check_mask, set_sink

if TYPE_CHECKING:
    from pomlflow.record import RenderRecord


def autolog(
    disable: bool = False,
    *,
    log_traces: bool = True,
    silent: bool = False,
    register: bool = True,
    mask: Mask | None = None,
    trace_dir: str | os.PathLike[str] | None = None,
    **removed: Never,
) -> None:
    """Trace every POML render in MLflow, register its prompt, and link the trace to the prompt version.

    In a chain, agent or engine of LangChain or LlamaIndex, the whole call is traced, and the render is a span of that
    trace. Elsewhere, a render is a child of the active span, or a trace of its own. Calls of ``poml.poml()`` use the
    engine and are traced too.

    Call it once, at the top of a program, before or after MLflow's own autologs and imports of any framework. Another
    call sets new options. Nothing is traced twice: neither with a pomlflow handler nor with MLflow's autolog.

    Args:
        disable: Whether to switch it off.
        log_traces: False traces and registers nothing; ``poml.poml()`` still uses the engine, and `trace_dir` is still
            written.
        silent: Whether pomlflow logs errors only.
        register: Whether to register each prompt in MLflow's registry and link its version to the trace; a template's
            own ``register=`` overrides it.
        mask: A function that returns what may be stored of a span's ``{"inputs": …, "outputs": …}``, in MLflow and in
            local files.
        trace_dir: A folder for POML's own local trace files. They are written to a new folder in it, named by the
            time, as by ``poml.set_trace(trace_dir=…)``.
        **removed: Arguments of earlier versions, which raise an error that names the replacement.

    Raises:
        ConfigurationError: `mask` is not a function, or the folder cannot be made.

    Example:
        >>> import pomlflow
        >>> pomlflow.autolog()  # doctest: +SKIP
        >>> pomlflow.poml("explain_code.poml", {"code_path": "sample.py"})  # doctest: +SKIP
    """
    refuse_arguments(removed, "autolog", _Options.__annotations__)
    # Absolute, so that the same options after a chdir are recognised as unchanged.
    folder = os.path.abspath(os.path.expanduser(trace_dir)) if trace_dir else None  # noqa: PTH100, PTH111
    _apply(None if disable else _Options(log_traces, silent, register, check_mask(mask), folder))


@dataclass(frozen=True)
class _Options:
    """The arguments of `autolog`."""

    log_traces: bool
    silent: bool
    register: bool
    mask: Mask | None
    trace_dir: str | None


# The third-party modules that are traced once they are imported, and for each the module with `attach` and `detach`.
_ADAPTERS: Final = {
    "poml": "pomlflow._poml_patch",
    "langchain_core.tracers.context": "pomlflow.langchain.configure_hook",
    "llama_index.core": "pomlflow.llama_index.handler",
}
_lock: Final = threading.Lock()
_current: _Options | None = None


def _apply(options: _Options | None) -> None:
    global _current
    with _lock:
        if options == _current:
            return
        files = None if options is None else _files_sink(options)
        if options is not None and options.log_traces:
            from pomlflow.tracking.spans import prepare  # imports MLflow, which would slow the first render by a second

            prepare()
        _current = options
        set_sink("trace_files", files)
        set_sink("autolog", _store if options is not None and options.log_traces else None)
        if options is not None and options.silent:
            logger.addFilter(_errors_only)
        else:
            logger.removeFilter(_errors_only)
        for imported in _ADAPTERS:
            _attach_or_detach(imported)


def _attach_or_detach(imported: str) -> None:
    """Attach our module for one of `_ADAPTERS`, or detach it, by the current options."""
    options, module = _current, _ADAPTERS[imported]
    if options is None or not (options.log_traces or imported == "poml"):
        if module in sys.modules:
            sys.modules[module].detach()
    elif imported in sys.modules:
        try:
            import_module(module).attach(options.register, options.mask)
        except Exception as error:  # noqa: BLE001 - an incompatible framework or MLflow must not stop the program
            logger.warning("%s is not traced: %r", imported.partition(".")[0], error)
    else:
        _attach_after_import(imported)


@cache  # one hook for each module
def _attach_after_import(imported: str) -> None:
    """Attach our module right after the import of another."""
    from wrapt import register_post_import_hook

    # It takes no lock: it runs in an import, for which a thread that calls `autolog` may wait.
    register_post_import_hook(lambda _: _attach_or_detach(imported), imported)


def _store(record: RenderRecord, context: RenderContext) -> bool:
    """Sink: store a render that is not part of a chain, agent or engine."""
    options = _current
    # LlamaIndex's handler stores every render of LlamaIndex.
    if options is None or context.framework == "llama_index":
        return False
    from pomlflow.tracking.spans import log_render

    log_render(record, parent=None, register=options.register, mask=options.mask)
    return True


def _files_sink(options: _Options) -> Sink | None:
    """Return the sink that writes POML's local trace files, to a new folder."""
    if options.trace_dir is None:
        return None
    from pomlflow.tracking.trace_files import TraceFiles

    files = TraceFiles.of_this_run(options.trace_dir)

    def write(record: RenderRecord, context: RenderContext) -> bool:
        files.write(record, context.file, mask=options.mask)
        return False

    return write


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING
