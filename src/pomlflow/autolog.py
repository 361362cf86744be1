"""One line that traces every POML render, in both frameworks and outside of them.

Nothing of a framework is replaced, and none is imported: LangChain is given a handler through its own configure hook,
LlamaIndex through its dispatcher, each as soon as it is there. The one function that is replaced is ``poml.poml``
(`pomlflow._poml_patch`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pomlflow._post_import import no_longer, when_imported
from pomlflow.dispatch import Mask, RenderContext, check_mask, set_sink

if TYPE_CHECKING:
    from pomlflow.record import RenderRecord
    from pomlflow.tracking.trace_files import TraceFiles

__all__ = ["Options", "Part", "autolog", "switch"]

_log = logging.getLogger("pomlflow")

Part = Literal["plain", "langchain", "llama_index"]


@dataclass(frozen=True)
class Options:
    """How one part of autolog is set.

    Attributes:
        log_traces: Whether renders are traced; where not, ``poml.poml()`` is warm all the same.
        silent: Whether pomlflow's warnings are kept back.
        register: Whether prompts are registered and linked.
        mask: What may be stored of a span.
        trace_dir: The folder for POML's local trace files, as it was given.
    """

    log_traces: bool = True
    silent: bool = False
    register: bool = True
    mask: Mask | None = None
    trace_dir: str | None = None


_lock = threading.RLock()
_on: dict[Part, Options] = {}
_files: dict[str, TraceFiles] = {}  # by trace_dir: calling autolog() twice makes one folder


def autolog(
    disable: bool = False,
    log_traces: bool = True,
    silent: bool = False,
    register: bool = True,
    mask: Mask | None = None,
    trace_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Trace every POML render in MLflow, register its prompt, and link the two.

    In a chain, agent or engine of LangChain or LlamaIndex the whole call is traced and the render stands in it, at its
    place; elsewhere it stands under the span that is active, or is a trace of its own. ``poml.poml()`` becomes warm and
    traced, too, wherever it is called by that name.

    Call it once, at the top of a program, before or after MLflow's own autologs and imports of any framework. Calling
    it again sets new arguments. What is traced already, by a handler of ours or by MLflow's autolog, is not traced
    twice.

    Args:
        disable: Undo it all.
        log_traces: False traces and registers nothing: ``poml.poml()`` is only warm, and `trace_dir` written.
        silent: Whether to keep back pomlflow's warnings.
        register: Whether to register each prompt in MLflow's registry and link its version to the trace; a
            template's own ``register=`` decides first.
        mask: From a span's ``{"inputs": …, "outputs": …}`` to what of it may be stored, for spans and local files.
        trace_dir: A folder for POML's own local trace files, in a new folder of this moment's name, as
            ``poml.set_trace(trace_dir=…)`` writes them.

    Raises:
        ConfigurationError: `mask` is no function, or the folder cannot be made.

    Example:
        >>> import pomlflow
        >>> pomlflow.autolog()  # doctest: +SKIP
        >>> pomlflow.poml("explain_code.poml", {"code_path": "sample.py"})  # doctest: +SKIP
    """
    for part in ("plain", "langchain", "llama_index"):
        switch(part, disable, log_traces, silent, register, mask, trace_dir)


def switch(
    part: Part,
    disable: bool = False,
    log_traces: bool = True,
    silent: bool = False,
    register: bool = True,
    mask: Mask | None = None,
    trace_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Set one part of autolog; the other arguments are those of `autolog`."""
    folder = None if trace_dir is None else os.path.abspath(trace_dir)  # noqa: PTH100
    options = None if disable else Options(log_traces, silent, register, check_mask(mask), folder)
    with _lock:
        if options == _on.get(part):
            return
        if options is not None and folder is not None and folder not in _files:
            from pomlflow.tracking.trace_files import TraceFiles

            _files[folder] = TraceFiles.of_this_run(folder)
        _on.pop(part, None)  # and back at the end: the last folder that was given is written to
        if options is not None:
            _on[part] = options
        _silence()
        _write_files()
        _set_sink()
        _SWITCHES[part](options)


def _traced(options: Options | None) -> Options | None:
    return options if options is not None and options.log_traces else None


def _store(record: RenderRecord, context: RenderContext) -> bool:
    """Sink: store a render that is part of no chain, agent or engine."""
    part = context.framework
    options = None if part == "llama_index" else _traced(_on.get(part))  # a handler traces all of LlamaIndex's
    if options is None:
        return False
    from pomlflow.tracking.spans import log_render

    log_render(record, parent=None, register=options.register, mask=options.mask)
    return True


def _set_sink() -> None:
    if not any(_traced(_on.get(part)) for part in ("plain", "langchain")):
        set_sink("autolog", None)
        return
    import pomlflow.tracking.spans  # noqa: F401 - MLflow, now: a first render is not to wait a second for it

    set_sink("autolog", _store)


def _plain(options: Options | None) -> None:
    from pomlflow import _poml_patch

    if options is None:
        no_longer("poml")
        _poml_patch.remove()
    else:
        when_imported("poml", _poml_patch.install)


def _langchain(options: Options | None) -> None:
    _hook.set(_traced(options))


def _llama_index(options: Options | None) -> None:
    if options is None:
        no_longer("llama_index.core")
    if options is None and "llama_index.core" not in sys.modules:
        return
    when_imported("llama_index.core", _attach)


_SWITCHES: dict[Part, Callable[[Options | None], None]] = {
    "plain": _plain,
    "langchain": _langchain,
    "llama_index": _llama_index,
}


class _Hook:
    """What LangChain asks, at the start of each run, for a handler to add.

    It stands where LangChain has a context variable, of which it uses `get` alone (langchain-core 1.0 to 1.7). A real
    one would be set in the context of `autolog`'s caller only, not in other threads.
    """

    def __init__(self) -> None:
        self._options: Options | None = None
        self._handler: Any = None

    def set(self, options: Options | None) -> None:
        """Set how the handler is to be; None for no handler."""
        self._options = options
        if options is None:
            no_longer(_CONTEXT)
            self._withdraw()
            return
        self._handler = None
        when_imported(_CONTEXT, self._register)

    def get(self) -> Any:
        """The handler. It is made here, in the first run, when all of LangChain is there."""
        if self._handler is None and self._options is not None:
            with _lock:
                self._make()
        # The last one also when it was just withdrawn: LangChain asks twice, and would call the second None.
        return self._handler

    def _make(self) -> None:
        options = self._options
        if self._handler is not None or options is None:
            return
        try:
            from pomlflow.langchain.handler import PomlCallbackHandler

            self._handler = PomlCallbackHandler(options.register, options.mask)
            self._handler.process_wide = True
        except Exception as error:  # noqa: BLE001 - a LangChain or MLflow that lacks something must not stop a chain
            self._options = None
            _log.warning("LangChain is not traced: %r", error)

    def _register(self) -> None:
        from langchain_core.tracers import context

        if all(known is not self for known, *_ in getattr(context, "_configure_hooks", ())):
            context.register_configure_hook(cast("Any", self), inheritable=True)

    def _withdraw(self) -> None:
        hooks = getattr(sys.modules.get(_CONTEXT), "_configure_hooks", None)
        if isinstance(hooks, list):
            # In place: langchain-core 1.0 has the list under another name, too.
            hooks[:] = [hook for hook in hooks if hook[0] is not self]
        else:
            self._handler = None  # it stays registered, and gives nothing


def _attach() -> None:
    """Attach a handler to all of LlamaIndex, as the options are now, in the place of the last one."""
    global _attached
    options = _traced(_on.get("llama_index"))
    before, _attached = _attached, None
    if options is not None:
        try:
            from pomlflow.llama_index.handler import PomlCallbackHandler

            _attached = PomlCallbackHandler(options.register, options.mask).attach()
        except Exception as error:  # noqa: BLE001 - a LlamaIndex or MLflow that lacks something must not stop a program
            _log.warning("LlamaIndex is not traced: %r", error)
    if before is not None:
        before.detach()


class _Quiet(logging.Filter):
    """Keeps warnings back."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING


def _silence() -> None:
    if any(options.silent for options in _on.values()):
        _log.addFilter(_quiet)
    else:
        _log.removeFilter(_quiet)


def _write_files() -> None:
    wanted = [options for options in _on.values() if options.trace_dir is not None]
    if not wanted:
        set_sink("trace_files", None)
        _files.clear()
        return
    options = wanted[-1]
    files = _files[cast("str", options.trace_dir)]

    def write(record: RenderRecord, context: RenderContext) -> bool:
        files.write(record, context.file, mask=options.mask)
        return False

    set_sink("trace_files", write)


_CONTEXT = "langchain_core.tracers.context"
_hook = _Hook()
_attached: Any = None
_quiet = _Quiet()
