"""The handler that LangChain adds to every run while `pomlflow.autolog` is on.

LangChain reads it from a configure hook, like the handlers of its own context managers. A hook cannot be removed, so it
is registered once, and returns no handler while autolog is off.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, Final, cast

from langchain_core.callbacks.base import BaseCallbackHandler
from langchain_core.tracers import context

from pomlflow._log import logger
from pomlflow.dispatch import Mask


class _NoHandler(BaseCallbackHandler):
    """The handler that LangChain makes if autolog is switched off between LangChain's two calls of `get` for a run."""


def _none() -> None:
    """Return no handler."""


# A real `ContextVar` would be set only in the context of `autolog`'s caller, and not in other threads.
_hook: Final = SimpleNamespace(get=_none)


@cache
def _register() -> None:
    context.register_configure_hook(cast("Any", _hook), inheritable=True, handle_class=_NoHandler)


def attach(register: bool, mask: Mask | None) -> None:
    """Make LangChain add a new handler to every run, in place of one that was attached before."""

    @cache
    def make() -> Any:
        """Make the handler once, at the first run: LangChain may be half imported during `attach`."""
        try:
            from pomlflow.langchain.handler import PomlCallbackHandler

            handler = PomlCallbackHandler(register, mask)
            handler.process_wide = True
        except Exception as error:  # noqa: BLE001 - a LangChain or MLflow that lacks something must not stop a chain
            logger.warning("LangChain is not traced: %r", error)
            return None
        return handler

    _hook.get = make
    _register()


def detach() -> None:
    """Stop LangChain from adding the handler."""
    _hook.get = _none
