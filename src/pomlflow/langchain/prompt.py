"""The prompt template for LangChain."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Never, cast

from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.prompts.chat import BaseChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from typing_extensions import override

from pomlflow._arguments import refuse_arguments, refuse_foreign
from pomlflow.dispatch import RenderContext, dispatch, set_sink
from pomlflow.frame.tools import check_functions, functions_by_name, tool_specs
from pomlflow.langchain.binding import PomlModel, wrap_models
from pomlflow.langchain.messages import MessageHistory, PomlPromptValue, prompt_value
from pomlflow.langchain.tools import PomlTool, as_tool
from pomlflow.record import RenderRecord
from pomlflow.settings import settings
from pomlflow.template import Template
from pomlflow.template.source import Inference, Origin, Snapshot
from pomlflow.tracking.constructors import PromptConstructors, restore_origin, source_fields

# Renders of one batch that are queued for each worker: enough to keep it busy, few enough not to delay other callers.
_RENDERS_PER_WORKER = 8


class PomlPromptTemplate(PromptConstructors, BaseChatPromptTemplate):  # type: ignore[misc]  # pydantic 1's `validate`
    """A prompt written in POML, for use wherever LangChain takes a ``ChatPromptTemplate``.

    Its variables are inferred from the markup. A variable that is the ``messages`` of a ``<conversation>`` is a
    history: it is optional, and its messages reach the model unchanged. A file is read again when it has changed.

    LangChain's `dumps` serialises it. `loads` accepts only LangChain's own classes unless it gets others:
    ``loads(text, allowed_objects=[PomlPromptTemplate], valid_namespaces=["pomlflow"])``.

    Args:
        template: The markup; never a path.
        path: The file, instead of markup (`from_file`).
        name: The prompt's name in MLflow's registry, and the name of its runs. By default, the name in the registry is
            made from the file's path relative to the prompt root (``support.answer`` for ``support/answer.poml``).
        base_dir: The folder against which relative sources in inline markup are resolved.
        stylesheet: A POML stylesheet in addition to the markup's own.
        chat: Whether to render messages; if False, the render is one text.
        register: Whether to register the prompt; None for the handler's setting.
        partial_variables: Values, or functions that return them, for some of the variables.
        registry_origin: A prompt in MLflow's registry, instead of markup (`from_registry`).
        **kwargs: LangChain's other fields (``output_parser``, ``metadata``, ``tags``), and fields of its copies.

    Raises:
        TemplateNotFoundError: The file does not exist.
        TypeError: A keyword argument is unknown.

    Example:
        >>> prompt = PomlPromptTemplate.from_template("<p>Tell me about {{topic}}.</p>")
        >>> prompt.invoke({"topic": "POML"}).to_messages()[0].content
        'Tell me about POML.'
    """

    # Frozen, since a render uses the template that the constructor made. LangChain's own fields may be set.
    template: str = Field(frozen=True)
    path: str | None = Field(default=None, frozen=True)
    base_dir: str | None = Field(default=None, frozen=True)
    stylesheet: dict[str, Any] | None = Field(default=None, frozen=True)
    chat: bool = Field(default=True, frozen=True)
    # The argument is `register`. A field of that name would hide `ABCMeta.register`, and pydantic would warn, so dumps
    # and copies have this name, and the constructor takes it from them.
    register_prompt: bool | None = Field(default=None, alias="register", frozen=True)
    registry_uri: str | None = Field(default=None, frozen=True)
    registry_refresh: float | None = Field(default=None, frozen=True)
    registry_origin: Any = Field(default=None, frozen=True, exclude=True, repr=False)  # for LangChain's copies

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    _core: Template = PrivateAttr()
    _snapshot: Snapshot = PrivateAttr()

    def __init__(
        self,
        template: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        name: str | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        stylesheet: Mapping[str, Any] | None = None,
        chat: bool = True,
        register: bool | None = None,
        partial_variables: Mapping[str, Any] | None = None,
        registry_origin: Origin | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_unknown(type(self), kwargs)
        register = kwargs.pop("register_prompt", register)
        if registry_origin is None and kwargs.get("registry_uri") is not None:  # in LangChain's `loads`
            registry_origin = restore_origin(kwargs["registry_uri"], kwargs["registry_refresh"], template, base_dir)
        core = Template(
            template,
            path=path,
            name=name,
            base_dir=base_dir,
            stylesheet=stylesheet,
            chat=chat,
            register=register,
            origin=registry_origin,
        )
        now = core.current()
        fields = {
            **kwargs,
            **source_fields(core),
            "registry_origin": registry_origin,
            "template": now.source,
            "name": name,
            **_variable_fields(now.inference, partial_variables or {}, kwargs.get("input_types") or {}),
        }
        super().__init__(**fields)
        self._core = core
        self._snapshot = now

    def __eq__(self, other: object) -> bool:
        # LangChain's input_types differ after a copy: their discriminators compare by identity.
        return type(self) is type(other) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]

    def _identity(self) -> tuple[Any, ...]:
        return self._core, dict(self.partial_variables), self.output_parser, self.metadata, self.tags

    @property
    def core(self) -> Template:
        """The template, which does not depend on a framework."""
        return self._core

    @property
    def _prompt_type(self) -> str:
        return "poml"

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        """Return the module from which `loads` imports the class."""
        return ["pomlflow", "langchain"]

    def bind_to(
        self,
        llm: Runnable[Any, Any],
        *,
        parse: bool = False,
        tools: Mapping[str, Any] | Iterable[Any] | None = None,
        **unknown: Never,
    ) -> RunnableSequence[Any, Any]:
        """Make a chain that passes the messages, tools, output schema and runtime settings to a model.

        ``prompt | llm`` passes only the messages. Each call translates the rest to the model's own parameters. Tools
        that are bound to the model are kept unless the markup defines one of the same name. Arguments bound to the
        chain (``chain.bind(temperature=0)``) reach the model and override the file. The trace has the same spans as
        ``prompt | llm``.

        Args:
            llm: A model, or a runnable made from one: with bound tools, with retries, with fallbacks, or configurable.
            parse: Whether to return the object in the answer, checked by the output schema, instead of the message. A
                stream yields the object as it grows.
            tools: The functions of the markup's tools: a dict by the tools' names, or a list if the functions have
                these names. If the markup defines no tool, they describe themselves. Each call checks that they match
                the markup; the chain does not run them. The method `tools` makes tools that run them.
            **unknown: No other argument is accepted.

        Returns:
            The chain.

        Raises:
            TypeError: `llm` is not a model, or a keyword argument is unknown.
            ToolError: Two functions have one name.

        A call raises `SettingError` if the model does not support a setting, and `ToolError` if it takes no tools, or
        if tools and functions do not match. With `parse`, it raises `PomlOutputParserError`, which contains the answer,
        if that does not match the schema.

        Example:
            >>> from langchain_core.language_models import FakeListChatModel
            >>> prompt = PomlPromptTemplate.from_template('<poml><runtime temperature="0"/><p>Hi {{name}}</p></poml>')
            >>> prompt.bind_to(FakeListChatModel(responses=["Hello!"])).invoke({"name": "Ada"}).content
            'Hello!'
        """
        setting = "; for a model's setting, use bind_to(…).bind({}=…) or the file's <runtime>"
        refuse_arguments(unknown, "bind_to", ["parse", "tools"], remedy=setting)
        functions = None if tools is None else functions_by_name(tools)
        names, described = None if functions is None else list(functions), []
        if functions and "tools" not in self._core.inference.fields:
            names, described = None, [convert_to_openai_tool(as_tool(*found)) for found in functions.items()]
        return RunnableSequence(
            self, wrap_models(llm, partial(PomlModel, parse=parse, function_names=names, own_tools=described))
        )

    def tools(self, functions: Mapping[str, Any] | Iterable[Any], **variables: Any) -> list[BaseTool]:
        """Return the markup's tools with functions, for a ``ToolNode``, an agent's constructor, or a loop of your own.

        Args:
            functions: Functions, sync or async, or LangChain's tools: a dict by the tools' names, or a list if the
                functions have these names.
            **variables: The variables of the template.

        Returns:
            A tool for each definition, with its description and its schema, which checks the arguments. If the markup
            defines no tool at all, the functions describe themselves.

        Raises:
            ToolError: A tool has no function, or a function has no tool although the markup defines tools.
            PomlError: The error that a render would raise.

        Example:
            >>> markup = '<tool-definition name="add">z.object({ a: z.number(), b: z.number() })</tool-definition>'
            >>> prompt = PomlPromptTemplate.from_template(f"<poml>{markup}<p>Count.</p></poml>")
            >>> [add] = prompt.tools({"add": lambda a, b: a + b})
            >>> add.invoke({"a": 1, "b": 2})
            3
        """
        record, _ = self.render_record(variables)
        specs, given, label = tool_specs(record.result()), functions_by_name(functions), record.label
        if "tools" not in self._core.inference.fields:
            return [as_tool(name, function) for name, function in given.items()]
        check_functions(specs, given, label, exact="tools" in record.static_fields)
        return [PomlTool.of(as_tool(spec.name, given[spec.name]), spec, label) for spec in specs]

    # Below: methods that LangChain calls, and what they share.

    @override
    def invoke(self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> PomlPromptValue:
        """Render to a prompt value with the frame."""
        value = cast("PomlPromptValue", super().invoke(input, config))
        # upstream: langchain-core 1.4-1.8: RunnableSequence passes bound arguments to its first step.
        value.arguments.update(kwargs)
        return value

    @override
    async def ainvoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> PomlPromptValue:
        """Render to a prompt value with the frame, without blocking the event loop."""
        value = cast("PomlPromptValue", await super().ainvoke(input, config))
        value.arguments.update(kwargs)
        return value

    @override
    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Render for each input, some at a time. LangChain would start them all and might fill the engine's queue."""
        limits = settings()
        most = max(1, min(_RENDERS_PER_WORKER * limits.workers, limits.max_queue))
        configs = get_config_list(config, len(inputs))
        limited = [{**each, "max_concurrency": min(each.get("max_concurrency") or most, most)} for each in configs]
        return await super().abatch(inputs, cast("Any", limited), **kwargs)

    @override
    def format_prompt(self, /, **kwargs: Any) -> PomlPromptValue:  # type: ignore[override]  # a text if chat is off
        """Render to a prompt value with the frame."""
        record, history = self.render_record(kwargs)
        self._dispatch(record)
        return prompt_value(record, history.placed)

    @override
    async def aformat_prompt(self, /, **kwargs: Any) -> PomlPromptValue:  # type: ignore[override]
        """Render to a prompt value with the frame, without blocking the event loop."""
        record, history = await self.arender_record(kwargs)
        self._dispatch(record)
        return prompt_value(record, history.placed)

    @override
    def format_messages(self, /, **kwargs: Any) -> list[BaseMessage]:
        """Render to messages."""
        return self.format_prompt(**kwargs).to_messages()

    @override
    async def aformat_messages(self, /, **kwargs: Any) -> list[BaseMessage]:
        """Render to messages, without blocking the event loop."""
        return (await self.aformat_prompt(**kwargs)).to_messages()

    @override
    def pretty_repr(self, html: bool = False) -> str:
        """Return the markup."""
        return self.source

    def __add__(self, other: Any) -> ChatPromptTemplate:
        # Keep optional variables optional: LangChain's agent constructors look for agent_scratchpad among them.
        combined: ChatPromptTemplate = (
            ChatPromptTemplate([self], partial_variables=dict(self.partial_variables)) + other
        )
        return combined

    def _dispatch(self, record: RenderRecord) -> None:
        set_sink("langchain", _trace)
        dispatch(record, RenderContext("langchain", self._core.path))

    def render_record(self, given: Mapping[str, Any]) -> tuple[RenderRecord, MessageHistory]:
        """Render without dispatching the record; for this package."""
        variables, history, now = self._prepared(given)
        return self._core.render(variables, history=history, snapshot=now), history

    async def arender_record(self, given: Mapping[str, Any]) -> tuple[RenderRecord, MessageHistory]:
        """Render without dispatching the record and without blocking the event loop; for this package."""
        variables, history, now = self._prepared(given)
        return await self._core.arender(variables, history=history, snapshot=now), history

    @override
    def _prepared(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], MessageHistory, Snapshot]:
        now = self._refreshed()
        partial = {name: value() if callable(value) else value for name, value in self.partial_variables.items()}
        return {**partial, **given}, MessageHistory(), now

    @override
    def _validate_input(self, inner_input: Any) -> dict[str, Any]:
        """Return the given variables by name. Missing ones are left to the render, so that their error is traced."""
        if isinstance(inner_input, Mapping):
            return {str(name): value for name, value in inner_input.items()}
        self._refreshed()
        names = self.input_variables or self.optional_variables
        if len(names) == 1:
            return {names[0]: inner_input}
        expected = f"a dict of its variables {names}" if names else "{}, since it has no variables"
        raise TypeError(f"this prompt takes {expected}, not a {type(inner_input).__name__}")

    def _set_snapshot(self, now: Snapshot) -> None:
        self._snapshot = now
        self.__dict__["template"] = now.source
        for field, value in _variable_fields(now.inference, self.partial_variables, self.input_types).items():
            setattr(self, field, value)
        self.__dict__.pop("_serialized", None)  # LangChain's cache of the old template's serialised form


def _refuse_unknown(cls: type[BaseModel], given: Iterable[str]) -> None:
    # LangChain's copies pass everything in the instance's __dict__, including its cached `_serialized`.
    fields = cls.model_fields
    unknown = [name for name in given if name not in fields and not hasattr(cls, name) and not name.startswith("_")]
    refuse_foreign(unknown, cls.__name__)
    refuse_arguments(unknown, cls.__name__, {"register", *fields} - {"register_prompt"})


def _variable_fields(found: Inference, partial: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields in which LangChain describes variables."""
    # An optional history is in optional_variables and, with an empty list, in partial_variables, because LangChain's
    # own agent constructors look for agent_scratchpad there.
    partial = {**{name: [] for name in found.messages if name in found.optional}, **partial}
    required = [name for name in found.variables if name not in partial]
    any_value = dict.fromkeys((*found.variables, *found.optional), Any)
    histories = dict.fromkeys(found.messages, list[AnyMessage])
    return {
        "input_variables": required,
        "optional_variables": list(found.optional),
        "partial_variables": partial,
        "input_types": {**any_value, **histories, **types},
    }


def _trace(record: RenderRecord, context: RenderContext) -> bool:
    """Store a render in its LangChain run. No run is traced unless MLflow's tracer has been imported."""
    if "mlflow.langchain.langchain_tracer" not in sys.modules:
        return False
    from pomlflow.langchain.handler import trace_in_run

    return trace_in_run(record, context)
