"""LlamaIndex's components and POML's renders as one MLflow trace.

LlamaIndex tells its dispatcher about each span and event, whoever listens. `PomlCallbackHandler` decides which of them
are traced; `pomlflow.llama_index.span_handler` makes MLflow's spans of those, and here each render becomes a ``poml``
span under the model's or step's. Where ``mlflow.llama_index.autolog()`` is on, the spans are MLflow's own, and only the
``poml`` span is added; those that stream are ended here, where MLflow would leave them open.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, Self

from llama_index.core import Settings
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.dispatcher import (  # type: ignore[attr-defined]
    DISPATCHER_SPAN_DECORATED_ATTR,
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.workflow import Workflow
from mlflow.entities.model_registry import PromptVersion

from pomlflow.dispatch import RenderContext, check_mask, set_sink
from pomlflow.exceptions import ConfigurationError
from pomlflow.llama_index.binding import PomlLLM
from pomlflow.llama_index.llm import earlier_render
from pomlflow.llama_index.mlflow_tracer import autolog_handler
from pomlflow.llama_index.span_handler import Spans, has_outlived_trace, nearest
from pomlflow.record import RenderRecord
from pomlflow.tracking.publish import PromptRegistry
from pomlflow.tracking.spans import Mask, log_render, version_wait, warn_once

__all__ = ["PomlCallbackHandler", "trace_in_span"]

_ROOT = get_dispatcher()
_scope: ContextVar[tuple[PomlCallbackHandler, ...]] = ContextVar("pomlflow_llama_index", default=())
_everywhere: list[PomlCallbackHandler] = []
_objects: dict[int, tuple[weakref.ref[Any], list[PomlCallbackHandler]]] = {}
_handlers: weakref.WeakSet[PomlCallbackHandler] = weakref.WeakSet()


class PomlCallbackHandler(BaseCallbackHandler):
    """Trace LlamaIndex and its POML prompts in MLflow.

    One object, four ways to attach it:

    - ``handler.attach()``: everything, until ``handler.detach()``;
    - ``handler.attach(agent)``: one agent, workflow, engine or model that exists already, in all that it does;
    - ``with handler:``: what is begun in the block, by this thread or task and by LlamaIndex and the tasks that are
      started there; it is traced to its end, also where a stream is read, or a run awaited, after the block. Threads of
      a ``ThreadPoolExecutor`` know nothing of a block, as of no context variable: attach the engine for those;
    - ``CallbackManager([handler])``, given to ``Settings``, an engine or a model: what that component does, until
      ``manager.remove_handler(handler)``; `detach` does not reach into callback managers, and LlamaIndex's
      ``CallbackManager([])`` takes over the handlers of ``Settings``.

    What two handlers would trace is one trace, of the one that is attached more closely. Where
    ``mlflow.llama_index.autolog()`` is on, it traces, and only the POML spans are added, and the end of what streams,
    which it mostly misses.

    Args:
        register: Whether to register each POML prompt in MLflow's registry and link its version to the trace;
            a template's own ``register=`` decides first.
        mask: From a span's ``{"inputs": …, "outputs": …}`` to what of it may be stored. It is asked once for each
            span, before anything of it is stored, with plain data; for a failed one, outputs are ``{"error": …}``.
            Attributes that hold content (prompts, template variables) are not stored then. Names, times, token counts
            and the model's settings are. A mask does not reach what MLflow's autolog traces beside it.

    Raises:
        ConfigurationError: `mask` is no function.

    Example:
        >>> with PomlCallbackHandler():
        ...     index.as_query_engine(text_qa_template=prompt).query("What is POML?")
    """

    def __init__(self, register: bool = True, mask: Mask | None = None) -> None:
        super().__init__(event_starts_to_ignore=list(CBEventType), event_ends_to_ignore=list(CBEventType))
        self.register = register
        self.mask = check_mask(mask)
        _handlers.add(self)
        weakref.finalize(self, _uninstall_with_the_last).atexit = False
        # Now, because nobody tells when it comes into a callback manager, and a span is seen from its start or not.
        _install()

    def attach(self, *components: Any) -> Self:
        """Trace everything, or some components.

        Args:
            *components: Agents, workflows, engines, retrievers, models …; none for everything.

        Returns:
            The handler itself.

        Raises:
            ConfigurationError: LlamaIndex tells nothing of what such a component does.
        """
        _install()
        if not components and self not in _everywhere:
            _everywhere.append(self)
        for component in components:
            if not _is_traceable(component):
                raise ConfigurationError(
                    f"LlamaIndex traces nothing of a {type(component).__name__}: attach the engine, agent or model "
                    "that works with it, or attach() for all"
                )
            key = id(component)
            if key not in _objects:
                _objects[key] = weakref.ref(component, partial(_forget, key)), []
            _objects[key][1].append(self)
        return self

    def detach(self, *components: Any) -> None:
        """Undo `attach`: for some components, or wholly. What has begun is traced to its end.

        Args:
            *components: As they were attached; none for all that was.
        """
        for key in [id(component) for component in components] or list(_objects):
            if (known := _objects.get(key)) is not None:
                known[1][:] = [handler for handler in known[1] if handler is not self]
                if not known[1]:
                    _forget(key, None)
        if not components and self in _everywhere:
            _everywhere.remove(self)

    def __enter__(self) -> Self:
        _install()
        _scope.set((*_scope.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        # By value, not by a token: the same handler is entered in several tasks at once, and again inside itself.
        entered = list(_scope.get())
        if self in entered:
            entered.reverse()
            entered.remove(self)
            _scope.set(tuple(reversed(entered)))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:  # with a model or engine whose callback manager it stands in
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.register, self.mask)

    # Standing in a callback manager is what matters; what the manager calls does not.

    def on_event_start(self, *_: Any, event_id: str = "", **__: Any) -> str:
        """Do nothing: LlamaIndex's dispatcher tells more."""
        return event_id

    def on_event_end(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def start_trace(self, trace_id: str | None = None) -> None:
        """Do nothing."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Do nothing."""


class _Listener(BaseEventHandler):
    """What gets LlamaIndex's events. No handler of MLflow's: autolog() would take it for its own."""

    @classmethod
    def class_name(cls) -> str:
        return "PomlEventHandler"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        try:
            _spans.on_event(event)
            if isinstance(event, (LLMChatStartEvent, LLMCompletionStartEvent)) and (record := earlier_render.get()):
                _link_earlier_render(event.span_id, record)
        except Exception as error:  # noqa: BLE001 - telemetry never hurts; the dispatcher would swallow it in silence
            warn_once("llama-index event", "a LlamaIndex event could not be traced: %r", error)


def trace_in_span(record: RenderRecord, context: RenderContext) -> bool:
    """Store a render in the LlamaIndex span that it is part of; return whether that span, or a handler, is there.

    A render of LlamaIndex's own prompts is stored outside of all spans too, where a handler is attached to everything.
    """
    span_id = active_span_id.get()
    span, owner = _spans.find(span_id)
    if context.framework != "llama_index" and span is None and not _scope.get():
        return False
    owner = owner or (_choose(None) if _is_installed() else None)
    if owner is None and autolog_handler() is None:
        return False
    log_render(
        record,
        parent=None if span is None else nearest(span),
        register=True if owner is None else owner.register,
        mask=None if owner is None else owner.mask,
        root=span is None and has_outlived_trace(),
    )
    return True


def _link_earlier_render(span_id: str | None, record: RenderRecord) -> None:
    """Link an agent's prompt, rendered before the run, to the trace of a model's call."""
    span, owner = _spans.find(span_id)
    owner = owner or _choose(None)
    if span is None or owner is None:
        return
    prompt = {"name": record.name, "digest": record.digest}
    span.set_attribute("poml.prompts", [prompt])

    def on_version(version: PromptVersion) -> None:
        if span.end_time_ns is None:  # the version may be known only after the span
            span.set_attribute("poml.prompts", [{**prompt, "uri": version.uri}])

    if owner.register if record.register is None else record.register:
        PromptRegistry.shared().link(record, span.trace_id, wait=version_wait(), on_version=on_version)


# Who wants a span.


def _choose(component: Any) -> PomlCallbackHandler | None:
    """Whose trace begins with a component's span: the closest handler's; None where nobody wants it."""
    if scope := _scope.get():
        return scope[-1]
    # Whoever traces a model wants the renders for it, too.
    for one in (component, component.llm) if isinstance(component, PomlLLM) else (component,):
        if one is not None and (known := _objects.get(id(one))) is not None and known[1]:
            return known[1][-1]
    for manager in _managers(component):
        for handler in getattr(manager, "handlers", ()):
            if isinstance(handler, PomlCallbackHandler):
                return handler
    return _everywhere[-1] if _everywhere else None


def _managers(component: Any) -> Iterator[Any]:
    """The callback managers that a component works with: its own, its models', and LlamaIndex's."""
    if component is not None:
        synthesizer = _held(component, "_response_synthesizer")
        agents = _held(component, "agents")
        workers = agents.values() if isinstance(agents, dict) else ()
        models = [_held(holder, name) for holder in (component, synthesizer, *workers) for name in ("llm", "_llm")]
        for holder in (component, synthesizer, *models):
            yield _held(holder, "callback_manager")
            yield _held(holder, "_callback_manager")
    yield Settings._callback_manager  # the property would make one


def _held(holder: Any, name: str) -> Any:
    # What is there, and nothing else: a property may load a model, or ask Settings for one.
    fields, private = getattr(holder, "__dict__", None), getattr(holder, "__pydantic_private__", None)
    found = fields.get(name) if fields else None
    return private.get(name) if found is None and private else found


def _forget(key: int, _: object) -> None:
    _objects.pop(key, None)  # the component is gone, and its id may come again


def _is_traceable(component: Any) -> bool:
    members = (member for kind in type(component).__mro__ for member in vars(kind).values())
    return isinstance(component, Workflow) or any(hasattr(member, DISPATCHER_SPAN_DECORATED_ATTR) for member in members)


def _is_installed() -> bool:
    # By identity: pydantic compares by value.
    return any(one is _spans for one in _ROOT.span_handlers) and any(one is _listener for one in _ROOT.event_handlers)


def _install() -> None:
    """Stand in LlamaIndex's dispatcher, once: before MLflow's handlers, which would end what streams."""
    set_sink("llama_index", trace_in_span)
    if not _is_installed():
        _uninstall()
        _ROOT.span_handlers = [_spans, *_ROOT.span_handlers]
        _ROOT.event_handlers = [_listener, *_ROOT.event_handlers]


def _uninstall() -> None:
    """Leave the dispatcher."""
    _ROOT.span_handlers = [one for one in _ROOT.span_handlers if one is not _spans]
    _ROOT.event_handlers = [one for one in _ROOT.event_handlers if one is not _listener]


def _uninstall_with_the_last() -> None:
    if not list(_handlers):  # what a handler traces keeps it alive, so nothing is open
        _uninstall()


_spans = Spans(_choose)
_listener = _Listener()
