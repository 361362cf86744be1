"""The handler that decides which LlamaIndex spans `SpanHandler` traces, and adds the POML spans."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final, Self

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

from pomlflow._arguments import refuse_arguments
from pomlflow._log import warn_once
from pomlflow.dispatch import Mask, RenderContext, check_mask, set_sink
from pomlflow.exceptions import ConfigurationError
from pomlflow.llama_index.binding import PomlLLM
from pomlflow.llama_index.llm import earlier_render
from pomlflow.llama_index.mlflow_tracer import autolog_handler, has_outlived_trace
from pomlflow.llama_index.span_handler import SpanHandler
from pomlflow.record import RenderRecord
from pomlflow.tracking.publish import publisher
from pomlflow.tracking.spans import log_render, nearest, prepare


class PomlCallbackHandler(BaseCallbackHandler):
    """Trace LlamaIndex and its POML prompts in MLflow.

    There are four ways to attach it:

    - ``handler.attach()``: everything, until ``handler.detach()``;
    - ``handler.attach(agent)``: everything that one existing agent, workflow, engine or model does;
    - ``with handler:``: everything that this thread or task begins in the block, and the tasks that it starts there.
      That is traced to its end, even if a stream is read or a run is awaited after the block. The block has no effect
      in threads of a ``ThreadPoolExecutor``, as it is a context variable. Attach the engine for those;
    - ``CallbackManager([handler])``, passed to ``Settings``, an engine or a model: everything that this component does,
      until ``manager.remove_handler(handler)``. `detach` does not change callback managers. LlamaIndex's
      ``CallbackManager([])`` uses the handlers of ``Settings``.

    If several handlers apply, only one of them traces: that of a ``with`` block, else that of the component, else that
    of its callback manager, else the one for everything. With ``mlflow.llama_index.autolog()`` on, MLflow makes the
    traces, and only the POML spans are added.

    Args:
        register: Whether to register each POML prompt in MLflow's registry and link its version to the trace;
            a template's own ``register=`` overrides it.
        mask: Returns what may be stored of a span's ``{"inputs": …, "outputs": …}``. It is called once for each span,
            with plain data, before anything is stored. The outputs of a failed span are ``{"error": …}``. With a mask,
            attributes with content (prompts, template variables) are not stored. Names, times, token counts and the
            model's settings are stored. It does not apply to the spans of MLflow's autolog.

    Raises:
        ConfigurationError: `mask` is not callable.

    Example:
        >>> with PomlCallbackHandler():
        ...     index.as_query_engine(text_qa_template=prompt).query("What is POML?")
    """

    def __init__(self, register: bool = True, mask: Mask | None = None, **unknown: Any) -> None:
        refuse_arguments(unknown, "PomlCallbackHandler")
        super().__init__(event_starts_to_ignore=list(CBEventType), event_ends_to_ignore=list(CBEventType))
        self.register = register
        self.mask = check_mask(mask)
        prepare()
        # Now, since a callback manager does not report that a handler is added to it, and a span can only be traced
        # from its start.
        _attachments.install()

    def attach(self, *components: Any) -> Self:
        """Trace everything, or some components.

        Args:
            *components: Agents, workflows, engines, retrievers, models …; none for everything.

        Returns:
            The handler itself.

        Raises:
            ConfigurationError: LlamaIndex does not trace such a component.
        """
        _attachments.attach(self, components)
        return self

    def detach(self, *components: Any) -> None:
        """Undo `attach`, for some components or for all. Spans that have begun are traced to their end.

        Args:
            *components: Components to which the handler was attached; none to undo all calls of `attach`.
        """
        _attachments.detach(self, components)

    def __enter__(self) -> Self:
        _scope.set((*_scope.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        # Without a token: the same handler may be entered in several tasks at the same time.
        _scope.set(_scope.get()[:-1])

    def __deepcopy__(self, memo: Any) -> Self:  # for copies of a model or engine whose callback manager contains it
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.register, self.mask)

    # A callback manager only marks what to trace. Its calls are ignored, since LlamaIndex's dispatcher reports more.

    def on_event_start(self, *_: Any, event_id: str = "", **__: Any) -> str:
        """Do nothing."""
        return event_id

    on_event_end = start_trace = end_trace = on_event_start  # type: ignore[assignment]


_scope: ContextVar[tuple[PomlCallbackHandler, ...]] = ContextVar("pomlflow_llama_index", default=())


class _EventHandler(BaseEventHandler):
    """The event handler in LlamaIndex's dispatcher; ``autolog()`` would take a subclass of MLflow's for its own."""

    @classmethod
    def class_name(cls) -> str:
        return "PomlEventHandler"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        try:
            _attachments.spans.on_event(event)
            if isinstance(event, (LLMChatStartEvent, LLMCompletionStartEvent)) and (record := earlier_render.get()):
                _link_earlier_render(event.span_id, record)
        except Exception as error:  # noqa: BLE001 - telemetry never raises, and the dispatcher would hide it
            warn_once("llama-index event", "A LlamaIndex event could not be traced: %r", error)


class _Attachments:
    """The handlers of this process, the components to which they are attached, and their hooks in the dispatcher."""

    def __init__(self) -> None:
        self._root = get_dispatcher()
        self._lock = threading.Lock()
        self._global: list[PomlCallbackHandler] = []
        self._by_component: dict[int, tuple[weakref.ref[Any], PomlCallbackHandler]] = {}
        self.spans = SpanHandler(self.choose)
        self._events = _EventHandler()

    def attach(self, handler: PomlCallbackHandler, components: tuple[Any, ...]) -> None:
        """Attach a handler to components, in place of an earlier one, or to everything."""
        if not components and handler not in self._global:
            self._global.append(handler)
        for component in components:
            if not _is_traceable(component):
                raise ConfigurationError(
                    f"LlamaIndex does not trace a {type(component).__name__}: attach the engine, agent or model that "
                    "uses it, or call attach() for everything"
                )
            key = id(component)
            # The id of a collected component may be used again.
            reference = weakref.ref(component, lambda _, key=key: self._by_component.pop(key, None))  # type: ignore[misc]
            self._by_component[key] = reference, handler

    def detach(self, handler: PomlCallbackHandler, components: tuple[Any, ...]) -> None:
        """Detach a handler from components, or from everything."""
        for key in [id(component) for component in components] or list(self._by_component):
            if key in self._by_component and self._by_component[key][1] is handler:
                del self._by_component[key]
        if not components and handler in self._global:
            self._global.remove(handler)

    def choose(self, component: Any) -> PomlCallbackHandler | None:
        """Return the handler that traces a span without a parent, or None; see `PomlCallbackHandler` for the order."""
        if scope := _scope.get():
            return scope[-1]
        # A handler that is attached to a model also traces the calls of a `PomlLLM` with that model.
        for one in (component, component.llm if isinstance(component, PomlLLM) else None):
            if one is not None and (attached := self._by_component.get(id(one))) is not None:
                return attached[1]
        for manager in _callback_managers(component):
            for handler in getattr(manager, "handlers", ()):
                if isinstance(handler, PomlCallbackHandler):
                    return handler
        return self._global[-1] if self._global else None

    def install(self) -> None:
        """Add our two handlers to LlamaIndex's dispatcher, once."""
        set_sink("llama_index", trace_in_span)
        with self._lock:
            if any(one is self.spans for one in self._root.span_handlers):  # pydantic's objects are equal by value
                return
            self.spans.start()
            self._root.add_span_handler(self.spans)
            self._root.add_event_handler(self._events)


_autolog_handlers: Final[list[PomlCallbackHandler]] = []  # of `pomlflow.autolog`: one, or two during a replacement


def attach(register: bool, mask: Mask | None) -> None:
    """Attach a new handler, and detach the previous one afterwards, so that there is a handler for every span."""
    _autolog_handlers.append(PomlCallbackHandler(register, mask).attach())
    while len(_autolog_handlers) > 1:
        _autolog_handlers.pop(0).detach()


def detach() -> None:
    """Detach the handler of `attach`."""
    while _autolog_handlers:
        _autolog_handlers.pop().detach()


def trace_in_span(record: RenderRecord, context: RenderContext) -> bool:
    """Store a render in its LlamaIndex span; return whether it is handled (see `dispatch`).

    Outside of all spans, a render of a LlamaIndex prompt is stored if a ``with`` block, ``Settings`` or an `attach`
    without components sets a handler, or if MLflow's autolog is on. A render of another prompt is stored outside of all
    spans only in a ``with`` block.
    """
    span_id = active_span_id.get()
    span, owner = _attachments.spans.find(span_id)
    if context.framework != "llama_index" and span is None and not _scope.get():
        return False
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
    """Link the trace of a model's call to the version of the agent's prompt, which was rendered before the run."""
    span, owner = _attachments.spans.find(span_id)
    if span is None or owner is None:
        return
    register = owner.register if record.register is None else record.register
    version = publisher.link(record, span.trace_id, register=register)
    uri = {} if version is None else {"uri": version.uri}
    span.set_attribute("poml.prompts", [{"name": record.name, "digest": record.digest, **uri}])


def _callback_managers(component: Any) -> Iterator[Any]:
    """Yield the callback managers of a component and of its model, and that of ``Settings``."""
    # Fields, and no properties: these may load a model.
    fields = getattr(component, "__dict__", {})
    for holder in (fields, getattr(fields.get("llm"), "__dict__", {})):
        yield holder.get("callback_manager")
    yield vars(Settings).get("_callback_manager")  # the property would make one, which replaces those of models


def _is_traceable(component: Any) -> bool:
    """Return whether LlamaIndex makes spans for a component's methods."""
    members = (member for kind in type(component).__mro__ for member in vars(kind).values())
    return isinstance(component, Workflow) or any(hasattr(member, DISPATCHER_SPAN_DECORATED_ATTR) for member in members)


_attachments = _Attachments()
