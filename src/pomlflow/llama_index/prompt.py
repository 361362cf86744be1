"""The prompt template for LlamaIndex."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

from llama_index.core import Settings
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.llms import LLM
from llama_index.core.prompts import PromptTemplate, RichPromptTemplate
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.prompts.prompt_type import PromptType
from llama_index.core.types import BaseOutputParser
from pydantic import Field, PrivateAttr
from typing_extensions import override

from pomlflow._arguments import refuse_foreign
from pomlflow.display import short
from pomlflow.llama_index.binding import PomlLLM, agent_kwargs
from pomlflow.llama_index.events import dispatch_render
from pomlflow.llama_index.messages import MessageHistory, Rendered, check_f_string, joined_text
from pomlflow.llama_index.providers import move_media_after_tools
from pomlflow.llama_index.structured import Answer, output_class
from pomlflow.record import RenderRecord
from pomlflow.template import Template
from pomlflow.template.source import Origin, Snapshot
from pomlflow.tracking.constructors import PromptConstructors, restore_origin, source_fields

_UNSET: Final[Any] = object()  # no model given; LlamaIndex gives llm=None when it measures a prompt


class PomlPromptTemplate(PromptConstructors, RichPromptTemplate, PromptTemplate):  # type: ignore[misc]  # `validate`
    r"""A prompt written in POML, for use wherever LlamaIndex takes a prompt.

    It is both a `RichPromptTemplate` and a `PromptTemplate`, because some of LlamaIndex's fields have one type and some
    the other. Its variables are inferred from the markup; LlamaIndex's nodes, messages and prompts are allowed as
    values. A variable that is the ``messages`` of a ``<conversation>`` is a history: it is optional, and its messages
    reach the model unchanged. A file is read again when it has changed.

    A text that the markup shows as ``{{context_str}}`` keeps its newlines and spaces, as in LlamaIndex's own prompts.
    POML collapses them if an expression computes with the text, and in attributes, JSON, YAML and tables.

    Args:
        template: The markup; never a path.
        path: The file, instead of markup (`from_file`).
        name: The prompt's name in MLflow's registry. By default, it is made from the file's path relative to the prompt
            root (``support.answer`` for ``support/answer.poml``).
        base_dir: The folder against which relative sources in inline markup are resolved.
        stylesheet: A POML stylesheet in addition to the markup's own.
        chat: Whether to render messages; if False, the render is one text.
        register: Whether to register the prompt; None for the handler's setting.
        prompt_type: As in LlamaIndex's prompts.
        output_parser: As in LlamaIndex's prompts.
        metadata: As in LlamaIndex's prompts.
        template_var_mappings: The markup's names of variables, by LlamaIndex's names.
        function_mappings: Functions that return the values of variables.
        registry_origin: A prompt in MLflow's registry, instead of markup (`from_registry`).
        **kwargs: Values for some of the variables, as for `partial_format`.

    Raises:
        TemplateNotFoundError: The file does not exist.

    Example:
        >>> prompt = PomlPromptTemplate("<task>Answer from this:</task><p>{{context_str}}</p><p>{{query_str}}</p>")
        >>> prompt.template_vars
        ['context_str', 'query_str']
        >>> prompt.format_messages(context_str="1 + 1\n= 2", query_str="Why?")[0].content
        '# Task\n\nAnswer from this:\n\n1 + 1\n= 2\n\nWhy?'
    """

    # The instance's __dict__ has the markup under this name, for dumps and hashes (`_set_snapshot`). The attribute is
    # the f-string, by the property that is set at the end of this module.
    template: str = Field(default="", exclude=True)
    kwargs: dict[str, Any]  # LlamaIndex declares the values as str, but passes any
    name: str | None = Field(default=None, frozen=True)
    path: str | None = Field(default=None, frozen=True)
    base_dir: str | None = Field(default=None, frozen=True)
    stylesheet: dict[str, Any] | None = Field(default=None, frozen=True)
    chat: bool = Field(default=True, frozen=True)
    # The argument is `register`. A field of that name would hide `ABCMeta.register`, and pydantic would warn.
    register_prompt: bool | None = Field(default=None, frozen=True)
    registry_uri: str | None = Field(default=None, frozen=True)
    registry_refresh: float | None = Field(default=None, frozen=True)

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
        prompt_type: str = PromptType.CUSTOM,
        output_parser: BaseOutputParser | None = None,
        metadata: Mapping[str, Any] | None = None,
        template_var_mappings: dict[str, Any] | None = None,
        function_mappings: dict[str, Callable[..., Any]] | None = None,
        registry_origin: Origin | None = None,
        **kwargs: Any,
    ) -> None:
        # A variable may have the name `messages`.
        refuse_foreign(kwargs.keys() - {"messages"}, type(self).__name__)
        if "template_str" in kwargs:  # the fields of a dump, by `model_validate`
            template, register, prompt_type = kwargs["template_str"], kwargs["register_prompt"], metadata["prompt_type"]  # type: ignore[index]
            if kwargs["registry_uri"] is not None:
                uri, refresh = kwargs["registry_uri"], kwargs["registry_refresh"]
                registry_origin = restore_origin(uri, refresh, template, base_dir)
            kwargs, function_mappings = kwargs["kwargs"], None  # a dump has only the functions' names
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
        fields: dict[str, Any] = {
            "kwargs": kwargs,
            "metadata": {**(metadata or {}), "prompt_type": prompt_type},
            "output_parser": output_parser,
            "template_var_mappings": template_var_mappings,
            "function_mappings": function_mappings,
            "name": name,
            "template_str": core.source,
            "template_vars": [],
        }
        # Not the constructors of the direct bases, which expect templates in their own syntax.
        BasePromptTemplate.__init__(self, **fields, **source_fields(core))
        self._core = core
        self._set_snapshot(core.current())

    def _set_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.template_str = snapshot.source
        content = f"{snapshot.source}<!-- {snapshot.digest} -->" if snapshot.files else snapshot.source
        # Some components store and hash a prompt by the fields of PromptTemplate, or of BasePromptTemplate.
        self.__dict__["template"] = content
        self.metadata = {**self.metadata, "poml": content}
        self.template_vars = [*snapshot.inference.variables, *snapshot.inference.optional]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self._core)] = self._core  # copies may share the template, since only its file can change it
        return super().__deepcopy__(memo)

    @property
    @override
    def is_chat_template(self) -> bool:
        """Whether the markup has messages with speakers; otherwise all of it is one user message."""
        return self.chat and self._core.inference.has_speakers

    def bind_to(self, llm: LLM, /, **llm_kwargs: Any) -> PomlLLM:
        """Bind a model to the prompt, so that each call passes messages, tools, schema and settings to the model.

        Args:
            llm: The model.
            **llm_kwargs: Arguments of the model's chat or completion, which override the file's ``<runtime>``.

        Returns:
            An object with the model's methods (``chat``, ``predict``, ``structured_predict``, their streaming and
            async forms), which take the prompt's variables.

        Example:
            >>> from llama_index.core.llms import MockLLM
            >>> prompt = PomlPromptTemplate("<runtime max-tokens='3'/><p>{{topic}}</p>")
            >>> prompt.bind_to(MockLLM()).predict(topic="POML")
            'text text text'
        """
        return PomlLLM(self, llm, **llm_kwargs)

    def agent_kwargs(
        self, llm: LLM | None = None, /, *, tools: Any = None, llm_kwargs: Mapping[str, Any] | None = None, **given: Any
    ) -> dict[str, Any]:
        """Render once, and return the arguments of an agent: ``FunctionAgent(**prompt.agent_kwargs(llm, tools=[…]))``.

        Args:
            llm: The agent's model; by default LlamaIndex's ``Settings.llm``.
            tools: The functions of the file's tools: a dict by the tools' names, or a list if the functions have these
                names. If the file defines no tool at all, the functions describe themselves.
            llm_kwargs: Arguments of the model's chat, which override the file's ``<runtime>``.
            **given: The variables.

        Returns:
            ``system_prompt``, the text of the system messages, or of a prompt that is one text; ``tools``, described
            and checked by the file; ``llm``, which adds the settings, and the other messages as examples, to each call;
            ``initial_tool_choice``, if there is a tool choice and the model calls functions; and ``output_cls``, if
            the file has a schema.

        Raises:
            ToolError: A tool has no function, or a function has no tool although the file defines some.
            SettingError: The model does not support a setting.
        """
        rendered, defined = self.render(given), "tools" in self._snapshot.inference.fields
        return agent_kwargs(rendered, llm or Settings.llm, tools, llm_kwargs or {}, defined=defined)

    def output_cls(self, **variables: Any) -> type[Answer]:
        """Return a pydantic class for ``<output-schema>``, for use wherever LlamaIndex takes one.

        Args:
            **variables: The variables on which the schema depends.

        Returns:
            A subclass of `Answer`, whose instances the schema validates.

        Raises:
            ConfigurationError: There is no schema, or it does not describe an object.
        """
        found = self._refreshed().inference
        if "schema" in found.static_fields or "schema" not in found.fields:  # no variable is needed
            variables = {**dict.fromkeys(self._open_variables(), ""), **variables}
        rendered = self.render(variables, quiet=True)
        return output_class(rendered.record.result().get("schema"), rendered.record.label)

    def render(self, variables: Mapping[str, Any], /, *, quiet: bool = False) -> Rendered:
        """Render once, to messages and a text. With `quiet`, the render is not dispatched and so not traced."""
        prepared, history, snapshot = self._prepared(variables)
        record = self._core.render(prepared, history=history, snapshot=snapshot, keep_whitespace=True)
        return self._rendered(record, history, quiet=quiet)

    async def arender(self, variables: Mapping[str, Any], /) -> Rendered:
        """Render once without blocking the event loop; otherwise like `render`."""
        prepared, history, snapshot = self._prepared(variables)
        record = await self._core.arender(prepared, history=history, snapshot=snapshot, keep_whitespace=True)
        return self._rendered(record, history)

    # Below: methods that LlamaIndex calls, and what they share.

    @override
    def partial_format(self, **kwargs: Any) -> Self:
        """Return a new prompt with values for some of the variables."""
        made = self.model_copy()
        made.kwargs = {**self.kwargs, **kwargs}
        made.metadata = dict(self.metadata)
        return made

    @override
    def get_template(self, llm: BaseLLM | None = None) -> str:
        """Return the markup, as a string whose `format` renders and whose ``+`` uses the f-string (`PromptText`)."""
        return PromptText.of(self.source, self, is_markup=True)

    @override
    def format_messages(self, llm: BaseLLM | None = _UNSET, **kwargs: Any) -> list[ChatMessage]:
        """Render to new messages.

        Args:
            llm: The model that gets the messages. Some providers accept media only in user messages.
            **kwargs: The variables.

        Raises:
            PomlError: The render failed; a missing variable raises `MissingVariableError`.
        """
        if llm is None and self._is_empty(kwargs):
            return [ChatMessage(role="user", content=self._text_to_measure())]
        return move_media_after_tools(llm, self.render(kwargs).format_messages())

    async def aformat_messages(self, **kwargs: Any) -> list[ChatMessage]:
        """Render to messages without blocking the event loop; LlamaIndex itself never calls it."""
        return (await self.arender(kwargs)).format_messages()

    @override
    def format(  # type: ignore[override]  # the bases differ
        self,
        llm: BaseLLM | None = _UNSET,
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None = None,
        completion_to_prompt: Callable[[str], str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Render to a text.

        Args:
            llm: The model that gets the text.
            messages_to_prompt: Converts several messages, or one that is not the user's, to a text.
            completion_to_prompt: Wraps the text of a single user message.
            **kwargs: The variables. Without any, the text keeps them in braces, as `PromptTemplate` does.

        Raises:
            PomlError: The render failed; a missing variable raises `MissingVariableError`.
        """
        empty = self._is_empty(kwargs)
        if llm is None and empty:  # LlamaIndex measures a prompt by format(llm=None, name="", …)
            return self._text_to_measure()
        for_model = llm not in (None, _UNSET) or messages_to_prompt is not None or completion_to_prompt is not None
        if not for_model and not kwargs and self._open_variables():
            return self.f_string(quiet=True)
        # LlamaIndex measures the prompts in a SelectorPromptTemplate without a model: that render is not dispatched.
        rendered = self.render(kwargs, quiet=empty and not for_model)
        return rendered.format(messages_to_prompt, completion_to_prompt)

    def _is_empty(self, given: Mapping[str, Any]) -> bool:
        """Return whether each open variable is given as an empty text, as LlamaIndex does to measure a prompt."""
        names = [name for name in given if name not in self.kwargs]
        filled = self._map_template_vars(dict.fromkeys(names))
        empty = all(isinstance(given[name], str) and not given[name] for name in names)
        return bool(names) and empty and {*self._open_variables()} <= filled.keys()

    def _text_to_measure(self) -> str:
        """Return a text of about the prompt's length, without a render: a query measures its prompts several times."""
        return "\n".join([self._refreshed().source, *map(str, self.kwargs.values())])

    def f_string(self, *, quiet: bool = False) -> PromptText:
        """Return the prompt's text with its open variables in braces."""
        label, snapshot = self.path or "<inline>", self._refreshed()
        names = {to: name for name, to in (self.template_var_mappings or {}).items()}
        filled = self._map_template_vars(self.kwargs)
        open_ = [name for name in snapshot.inference.variables if name not in filled]
        check_f_string(snapshot.inference.uses, open_, label)
        shown = {name: f"{{{names.get(name, name)}}}" for name in open_}
        history = MessageHistory()
        record = self._core.render({**filled, **shown}, history=history, snapshot=snapshot, keep_whitespace=True)
        # Outside of all spans, open variables mean that a component is being created: nothing is sent to a model.
        quiet = quiet or (bool(open_) and active_span_id.get() is None)
        text = joined_text(
            self._rendered(record, history, quiet=quiet).messages, f"{label}: a component reads this prompt as a text"
        )
        return PromptText.of(text, self)

    def _open_variables(self) -> list[str]:
        """Return the required variables that have no value yet, by the names in the markup."""
        filled = self._map_template_vars({**self.kwargs, **(self.function_mappings or {})})
        return [name for name in self._snapshot.inference.variables if name not in filled]

    def _prepared(self, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], MessageHistory, Snapshot]:
        snapshot = self._refreshed()
        merged = {**self.kwargs, **given}
        context = merged.get("context_str")
        if isinstance(context, list) and all(isinstance(text, str) for text in context):
            # upstream: llama-index-core 0.14: SimpleSummarize passes its text in a list
            merged["context_str"] = "\n\n".join(context)
        return self._map_all_vars(merged), MessageHistory(), snapshot

    def _rendered(self, record: RenderRecord, history: MessageHistory, *, quiet: bool = False) -> Rendered:
        if not quiet:
            dispatch_render(record, self._core.path)
        return Rendered.of(record, history, self.output_parser)

    @override
    def __repr__(self) -> str:
        named = {"name": self.registry_name, "template_vars": self.template_vars, "template": self.source}
        shown = [f"{name}={value!r}" for name, value in named.items() if value is not None]
        return short(f"{type(self).__name__}({', '.join(shown)})")


class PromptText(str):
    """A prompt's markup or f-string, for components that format or join strings.

    Its `format` renders the prompt, so that this render is traced too. ``+`` uses the f-string in place of the markup.
    """

    __slots__ = ("is_markup", "prompt")
    is_markup: bool
    prompt: PomlPromptTemplate

    @classmethod
    def of(cls, text: str, prompt: PomlPromptTemplate, *, is_markup: bool = False) -> Self:
        """Make the string of a prompt's markup or f-string."""
        made = cls(text)
        made.prompt, made.is_markup = prompt, is_markup
        return made

    @override
    def format(self, *_: object, **variables: Any) -> str:
        """Render the prompt to a text with these variables. Positional arguments are ignored."""
        return self.prompt.format(**variables)

    @override
    def __add__(self, other: str) -> str:
        text: str = self.prompt.template if self.is_markup else self
        return str(text) + other

    # By these three methods, a workflow's context stores the object as JSON.

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which a context knows the object."""
        return "poml_prompt_text"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {"text": str(self), "is_markup": self.is_markup, "prompt": self.prompt.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the object that `to_dict` stored."""
        return cls.of(data["text"], PomlPromptTemplate.model_validate(data["prompt"]), is_markup=data["is_markup"])


# Set here, because pydantic would take a property in the class for the field's default.
type.__setattr__(PomlPromptTemplate, "template", property(PomlPromptTemplate.f_string))
