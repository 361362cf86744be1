"""The handler that LangChain adds to every run while `pomlflow.autolog` is on.

LangChain reads it from a configure hook, like the handlers of its own context managers.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, Final, cast

from langchain_core.tracers import context

from pomlflow._log import logger
from pomlflow.dispatch import Mask

# LangChain calls its `get`, twice for a run. The second call must not return None alone, so it stays after `detach`.
# A real `ContextVar` would be set only in the context of `autolog`'s caller, and not in other threads.
_hook: Final = SimpleNamespace()


def attach(register: bool, mask: Mask | None) -> None:
    """Make LangChain add a handler to every run, in place of an earlier one."""

    @cache
    def make() -> Any:
        """Make the handler, once and not before the first run: LangChain may be half imported during `attach`."""
        try:
            from pomlflow.langchain.handler import PomlCallbackHandler

            handler = PomlCallbackHandler(register, mask)
            handler.process_wide = True
        except Exception as error:  # noqa: BLE001 - a LangChain or MLflow that lacks something must not stop a chain
            logger.warning("LangChain is not traced: %r", error)
            return None
        return handler

    _hook.get = make
    if all(hook is not _hook for hook, *_ in getattr(context, "_configure_hooks", ())):
        context.register_configure_hook(cast("Any", _hook), inheritable=True)


def detach() -> None:
    """Stop LangChain from adding the handler."""
    # upstream: langchain-core 1.4-1.7: a hook can be registered and not removed
    hooks = getattr(context, "_configure_hooks", [])
    hooks[:] = [hook for hook in hooks if hook[0] is not _hook]
