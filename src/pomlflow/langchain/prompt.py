"""A POML prompt wherever LangChain takes a chat prompt."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from typing_extensions import override

from pomlflow._log import warn_once
from pomlflow.dispatch import RenderContext, dispatch, set_sink
from pomlflow.frame import match, named, tool_specs
from pomlflow.langchain.batches import BatchedPromptTemplate
from pomlflow.langchain.binding import reach
from pomlflow.langchain.chain import PomlChain
from pomlflow.langchain.messages import MessageHistory
from pomlflow.langchain.model_arguments import changing_source, place_of
from pomlflow.langchain.prompt_value import prompt_value
from pomlflow.langchain.tools import PomlTool, as_tool
from pomlflow.record import RenderRecord
from pomlflow.template import Template
from pomlflow.template.inference import Inference
from pomlflow.template.source import Origin, Snapshot
from pomlflow.tracking.constructors import PromptConstructors, restore_origin

__all__ = ["PomlPromptTemplate"]


class PomlPromptTemplate(PromptConstructors, BatchedPromptTemplate):
    """A prompt written in POML, wherever LangChain takes a ``ChatPromptTemplate``.

    Its variables are found in the markup. A variable that is the ``messages`` of a ``<conversation>`` is a history:
    optional, and its messages reach the model as they are. A file is read again when it has changed.

    LangChain's `dumps` takes it; `loads` wants to be told of a class that is not LangChain's own:
    ``loads(text, allowed_objects=[PomlPromptTemplate], valid_namespaces=["pomlflow"])``.

    Args:
        template: The markup; never a path.
        path: The file, instead of markup (`from_file`).
        name: The prompt's name in MLflow's registry, and its run's name; by default the file's path relative to the
            prompt root.
        base_dir: The folder that relative sources in inline markup are resolved against.
        stylesheet: A POML stylesheet beside the markup's own.
        chat: Whether to give messages, or one text.
        register: Whether to register the prompt: yes, no, or as the handler is set.
        partial_variables: Values, or functions that give them, for some of the variables.
        output_parser: As LangChain's other prompts have it.
        metadata: For tracing.
        tags: For tracing.
        registry_origin: A prompt in MLflow's registry, instead of markup (`from_registry`).
        **kwargs: LangChain's other fields, and what it passes itself when it copies a prompt.

    Raises:
        TemplateNotFoundError: The file does not exist.
        TypeError: A keyword argument is none of ours and none of LangChain's.

    Example:
        >>> prompt = PomlPromptTemplate.from_template("<p>Tell me about {{topic}}.</p>")
        >>> prompt.invoke({"topic": "POML"}).to_messages()[0].content
        'Tell me about POML.'
    """

    # Frozen: a render goes by what the prompt was made of. `partial_variables` and LangChain's other fields may be set.
    template: str = Field(frozen=True)
    path: str | None = Field(default=None, frozen=True)
    base_dir: str | None = Field(default=None, frozen=True)
    stylesheet: dict[str, Any] | None = Field(default=None, frozen=True)
    chat: bool = Field(default=True, frozen=True)
    # `register` itself is taken: every class with ABCMeta has it, and pydantic warns.
    register_prompt: bool | None = Field(default=None, alias="register", frozen=True)
    registry_uri: str | None = Field(default=None, frozen=True)
    registry_refresh: float | None = Field(default=None, frozen=True)
    registry_origin: Any = Field(default=None, frozen=True, exclude=True, repr=False)  # for LangChain's copies

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    _core: Template = PrivateAttr()
    _seen: Snapshot = PrivateAttr()

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
        output_parser: BaseOutputParser[Any] | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
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
            "registry_origin": registry_origin,
            "registry_uri": None if registry_origin is None else registry_origin.uri,
            "registry_refresh": None if registry_origin is None else registry_origin.refresh,
            "template": now.source,
            "path": None if core.path is None else str(core.path),
            "name": name,
            "base_dir": None if core.base_dir is None else str(core.base_dir),
            "stylesheet": None if stylesheet is None else dict(stylesheet),
            "chat": chat,
            "register": register,
            "output_parser": output_parser,
            "metadata": metadata,
            "tags": tags,
            **_variables(now.inference, partial_variables or {}, kwargs.get("input_types") or {}),
        }
        super().__init__(**fields)
        self._core = core
        self._seen = now

    def __eq__(self, other: object) -> bool:
        # LangChain's input_types differ after a copy: their discriminators compare by identity.
        return type(self) is type(other) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]

    def _identity(self) -> tuple[Any, ...]:
        return self._core, dict(self.partial_variables), self.output_parser, self.metadata, self.tags

    @property
    def _prompt_type(self) -> str:
        return "poml"

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        """Where `loads` imports the class from."""
        return ["pomlflow", "langchain"]

    def validate(self, **variables: Any) -> None:  # type: ignore[override]  # pydantic 1's method, deprecated there
        """Say what is wrong, at start-up instead of in the first call. Nothing is traced.

        Args:
            **variables: What the template needs. Without any, what is said is wrong whatever they
                will be: faults of the markup, unknown components, missing files, the syntax of expressions.

        Raises:
            PomlError: As a render raises it.
        """
        if variables:
            self._render(variables)[0].result()
        elif (error := self._core.check(self._validate_input({}), history=MessageHistory()).error) is not None:
            raise error

    def bind_to(
        self,
        llm: Runnable[Any, Any],
        *,
        parse: bool = False,
        tools: Mapping[str, Any] | Iterable[Any] | None = None,
    ) -> PomlChain:
        """Make a chain to a model that hears all that the markup says: ``prompt | llm`` gives it the messages alone.

        At each call the tools, the output schema and ``<runtime>`` are given to the model in its own words. Tools that
        the model has already stay, where none of the same name is in the markup. What is bound to the chain
        (``chain.bind(temperature=0)``) reaches the model and wins. There is no span more than with ``prompt | llm``.

        Args:
            llm: A chat model; also one with tools bound, configurable, with fallbacks, or retried.
            parse: Whether to give the object that the answer holds, checked by the output schema, instead of the
                message. A stream gives the object as far as it is there.
            tools: The functions that stand for the markup's tools, by name, or under their own names. Each call checks
                that all are there; `tools` makes what runs them.

        Returns:
            The chain.

        Raises:
            TypeError: `llm` is no model.
            ToolError: Two functions have one name.

        A call raises `SettingError` where the model does not take a setting, `ToolError` where tools and functions do
        not match, and with `parse` `PomlOutputParserError`, which holds the answer.

        Example:
            >>> from langchain_core.language_models import FakeListChatModel
            >>> prompt = PomlPromptTemplate.from_template('<poml><runtime temperature="0"/><p>Hi {{name}}</p></poml>')
            >>> prompt.bind_to(FakeListChatModel(responses=["Hello!"])).invoke({"name": "Ada"}).content
            'Hello!'
        """
        functions = None if tools is None else list(named(tools))
        return PomlChain(self, reach(llm, parse=parse, functions=functions))

    def tools(self, functions: Mapping[str, Any] | Iterable[Any], **variables: Any) -> list[BaseTool]:
        """Tie the markup's tools to functions: for a ``ToolNode``, an agent's constructor, or a loop of your own.

        Args:
            functions: By name, or under their own names; functions, sync or async, or LangChain's tools.
            **variables: What the template needs.

        Returns:
            A tool for each definition, described as the markup does, whose arguments are checked by its schema.

        Raises:
            ToolError: A tool has no function, or a function no tool.
            PomlError: As a render raises it.

        Example:
            >>> markup = '<tool-definition name="add">z.object({ a: z.number(), b: z.number() })</tool-definition>'
            >>> prompt = PomlPromptTemplate.from_template(f"<poml>{markup}<p>Count.</p></poml>")
            >>> [add] = prompt.tools({"add": lambda a, b: a + b})
            >>> add.invoke({"a": 1, "b": 2})
            3
        """
        record, _ = self._render(variables)
        specs, given, place = tool_specs(record.result()), named(functions), place_of(record)
        match(specs, given, place, changing_source(record))
        return [PomlTool.of(as_tool(spec.name, given[spec.name]), spec, place) for spec in specs]

    # From here on: what LangChain calls.

    @override
    def _format_prompt_with_error_handling(
        self, inner_input: Any, run_manager: CallbackManagerForChainRun | None = None
    ) -> PromptValue:
        return self._format(inner_input, run_manager)

    @override
    async def _aformat_prompt_with_error_handling(
        self, inner_input: Any, run_manager: AsyncCallbackManagerForChainRun | None = None
    ) -> PromptValue:
        return await self._aformat(inner_input, run_manager)

    @override
    def format_prompt(self, **kwargs: Any) -> PromptValue:  # type: ignore[override]  # a string where chat is off
        """Render to a prompt value that carries the frame."""
        return self._format(kwargs, None)

    @override
    async def aformat_prompt(self, **kwargs: Any) -> PromptValue:  # type: ignore[override]
        """Render to a prompt value that carries the frame, without holding up the event loop."""
        return await self._aformat(kwargs, None)

    @override
    def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """Render to messages."""
        return self._format(kwargs, None).to_messages()

    @override
    async def aformat_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """Render to messages, without holding up the event loop."""
        return (await self._aformat(kwargs, None)).to_messages()

    @override
    def pretty_repr(self, html: bool = False) -> str:
        """Show the markup."""
        return self.source

    def __add__(self, other: Any) -> ChatPromptTemplate:
        # What is optional stays so outside: LangChain's agent constructors look for agent_scratchpad there.
        combined: ChatPromptTemplate = (
            ChatPromptTemplate([self], partial_variables=dict(self.partial_variables)) + other
        )
        return combined

    def _format(self, given: Any, run: CallbackManagerForChainRun | None) -> PromptValue:
        record, history = self._render(given)
        self._dispatch(record, run)
        return prompt_value(record, history.placed)

    async def _aformat(self, given: Any, run: AsyncCallbackManagerForChainRun | None) -> PromptValue:
        record, history = await self._arender(given)
        self._dispatch(record, run)
        return prompt_value(record, history.placed)

    def _dispatch(
        self, record: RenderRecord, run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun | None
    ) -> None:
        set_sink("langchain", _trace_in_run)
        dispatch(record, RenderContext("langchain", run, self._core.path))

    def _render(self, given: Any) -> tuple[RenderRecord, MessageHistory]:
        """Render, and tell nobody."""
        now, history = self._refreshed(), MessageHistory()
        return self._core.render(self._validate_input(given), history=history, snapshot=now), history

    async def _arender(self, given: Any) -> tuple[RenderRecord, MessageHistory]:
        now, history = self._refreshed(), MessageHistory()
        return await self._core.arender(self._validate_input(given), history=history, snapshot=now), history

    @override
    def _validate_input(self, inner_input: Any) -> dict[str, Any]:
        """Give all variables by name. A missing one is the render's to tell, so that it is traced."""
        partial = {name: value() if callable(value) else value for name, value in self.partial_variables.items()}
        if isinstance(inner_input, Mapping):
            return {**partial, **inner_input}
        names = self.input_variables or self.optional_variables
        if len(names) == 1:
            return {**partial, names[0]: inner_input}
        raise TypeError(
            f"a prompt with the variables {self.input_variables} takes a dict of them, "
            f"not a {type(inner_input).__name__}"
        )

    def _refreshed(self) -> Snapshot:
        """The template as its files are now, with the fields that others read after it."""
        now = self._core.current()
        if now is not self._seen:
            self._seen = now
            self.__dict__["template"] = now.source
            for field, value in _variables(now.inference, self.partial_variables, self.input_types).items():
                setattr(self, field, value)
            self.__dict__.pop("_serialized", None)  # LangChain's cached form of the old one
        return now


def _refuse_unknown(cls: type[BaseModel], given: Iterable[str]) -> None:
    # A copy gets all that the instance holds in its __dict__, LangChain's cached `_serialized` too.
    known = {"register", *cls.model_fields}
    for name in given:
        if name not in known and not hasattr(cls, name) and not name.startswith("_"):
            near = difflib.get_close_matches(name, [field for field in known if field != "register_prompt"], 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument {name!r}{meant}")


def _variables(found: Inference, partial: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """LangChain's fields about variables, from the markup."""
    # An optional history stands in optional_variables and, with a default, in partial_variables: LangChain's own agent
    # constructors look for agent_scratchpad there.
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


def _trace_in_run(record: RenderRecord, context: RenderContext) -> bool:
    """Sink: store the render in the run that it is part of, where one of ours or MLflow's handlers traces it.

    A chain without such a handler does not import MLflow.
    """
    around = context.run or (var_child_runnable_config.get() or {}).get("callbacks")
    handlers = getattr(around, "handlers", ())
    if not any(hasattr(handler, "on_poml_render") or hasattr(handler, "_run_span_mapping") for handler in handlers):
        return False
    try:
        from pomlflow.langchain.handler import trace_in_run
    except Exception as error:  # noqa: BLE001 - an unsupported version of MLflow fails in any way
        warn_once("langchain handler", "POML renders are not traced: %s", error, exc_info=error)
        return True
    return trace_in_run(record, context)
