"""A POML prompt wherever LlamaIndex takes a prompt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.generic_utils import messages_to_prompt as default_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate, RichPromptTemplate
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.prompts.prompt_type import PromptType
from llama_index.core.types import BaseOutputParser
from pydantic import Field, PrivateAttr
from typing_extensions import override

from pomlflow.llama_index.messages import MessageHistory
from pomlflow.llama_index.providers import for_provider
from pomlflow.llama_index.rendered import Rendered
from pomlflow.llama_index.text_views import Name, PromptText, fenced, markdown
from pomlflow.llama_index.unfilled import as_f_string, histories, is_measured, measure, open_variables
from pomlflow.template import Template
from pomlflow.template.source import Origin, Snapshot
from pomlflow.template.whitespace import protect, restore
from pomlflow.tracking.constructors import PromptConstructors

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

    from pomlflow.llama_index.llm import PomlLLM
    from pomlflow.llama_index.structured import Answer

__all__ = ["PomlPromptTemplate"]

Hidden = tuple[str, ...]


_SCHEMA = re.compile(r"<output-?schema\b", re.IGNORECASE)
_MESSAGES = re.compile(r"<(?:(?:system|human|ai)-?(?:msg|message)|conversation)\b|\bspeaker\s*=", re.IGNORECASE)


class PomlPromptTemplate(PromptConstructors, RichPromptTemplate, PromptTemplate):
    r"""A prompt written in POML, wherever LlamaIndex takes a prompt.

    It is both a `RichPromptTemplate` and a `PromptTemplate`, because some of LlamaIndex's fields are typed the one and
    some the other. Its variables are found in the markup; LlamaIndex's nodes, messages and prompts may be among their
    values. A variable that is the ``messages`` of a ``<conversation>`` is a history: optional, and its messages reach
    the model as they are. A file is read again when it has changed.

    A text that the markup shows as ``{{context_str}}`` keeps its newlines and blanks, as LlamaIndex's own prompts keep
    them; where an expression computes with it, and in attributes, JSON, YAML and tables, POML collapses them.

    Args:
        template: The markup; never a path.
        path: The file, instead of markup (`from_file`).
        name: The prompt's name in MLflow's registry; by default the file's path relative to the prompt root.
        base_dir: The folder that relative sources in inline markup are resolved against.
        stylesheet: A POML stylesheet beside the markup's own.
        chat: Whether to give messages, or one text.
        register: Whether to register the prompt: yes, no, or as the handler is set.
        prompt_type: As LlamaIndex's prompts have it.
        output_parser: As LlamaIndex's prompts have it.
        metadata: As LlamaIndex's prompts have it.
        template_var_mappings: LlamaIndex's names of variables to those of the markup.
        function_mappings: Functions that give the values of variables.
        registry_origin: A prompt in MLflow's registry, instead of markup (`from_registry`).
        **kwargs: Values for some of the variables, as `partial_format` takes them.

    Raises:
        TemplateNotFoundError: The file does not exist.

    Example:
        >>> prompt = PomlPromptTemplate("<task>Answer from this:</task><p>{{context_str}}</p><p>{{query_str}}</p>")
        >>> prompt.template_vars
        ['context_str', 'query_str']
        >>> prompt.format_messages(context_str="1 + 1\n= 2", query_str="Why?")[0].content
        '# Task\n\nAnswer from this:\n\n1 + 1\n= 2\n\nWhy?'
    """

    # `template` is not among what an instance holds: it is made when somebody reads it, see __getattr__.
    template: str = Field(default="", exclude=True)
    kwargs: dict[str, Any]  # LlamaIndex says str, and passes what it likes
    name: str | None = Field(default=None, frozen=True)
    path: str | None = Field(default=None, frozen=True)
    base_dir: str | None = Field(default=None, frozen=True)
    stylesheet: dict[str, Any] | None = Field(default=None, frozen=True)
    chat: bool = Field(default=True, frozen=True)
    # `register` itself is taken: every class with ABCMeta has it, and pydantic warns.
    register_prompt: bool | None = Field(default=None, frozen=True)

    _core: Template = PrivateAttr()
    _seen: Snapshot = PrivateAttr()
    _blanks: dict[str, list[ChatMessage]] = PrivateAttr(default_factory=dict)

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
        fields: dict[str, Any] = {
            "template_str": now.source,
            "template_vars": [],
            "kwargs": kwargs,
            "metadata": {**(metadata or {}), "prompt_type": prompt_type},
            "output_parser": output_parser,
            "template_var_mappings": template_var_mappings,
            "function_mappings": function_mappings,
            "name": name,
            "path": None if core.path is None else str(core.path),
            "base_dir": None if core.base_dir is None else str(core.base_dir),
            "stylesheet": core.stylesheet,
            "chat": chat,
            "register_prompt": register,
        }
        BasePromptTemplate.__init__(self, **fields)  # neither base's own: each knows one kind of template
        del self.__dict__["template"]
        self._core = core
        self._take(now)

    def _take(self, now: Snapshot) -> None:
        self._seen = now
        self.template_str = now.source
        self.template_vars = [Name(name) for name in (*now.inference.variables, *now.inference.optional)]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]  # as of every mutable pydantic model

    def _identity(self) -> tuple[Any, ...]:
        mappings = self.template_var_mappings or {}, self.function_mappings or {}
        return self._core, self.kwargs, self.metadata, self.output_parser, *mappings

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for shared in (self._core, self._blanks):  # nothing but its file changes a template
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "template":
                return as_f_string(self)
            return super().__getattr__(name)

    @property
    @override
    def is_chat_template(self) -> bool:
        """Whether the markup speaks of messages; else all of it is the user's."""
        return self.chat and _MESSAGES.search(self.source) is not None

    def validate(self, **variables: Any) -> None:  # type: ignore[override]  # pydantic 1's method, deprecated there
        """Say what is wrong, at start-up instead of in the first call.

        Args:
            **variables: What the template needs beside what `partial_format` gave. Without any, what is said is wrong
                whatever they will be: faults of the markup, unknown components, missing files, expressions' syntax.

        Raises:
            PomlError: As a render raises it.
        """
        if variables:
            self.format_messages(**variables)
            return
        prepared, _, history, _ = self._prepared({})
        if (error := self._core.check(prepared, history=history).error) is not None:
            raise error

    def bind_to(self, llm: LLM, /, **llm_kwargs: Any) -> PomlLLM:
        """Bind a model to the prompt, so that all that the file says reaches the model with each call.

        Args:
            llm: The model.
            **llm_kwargs: Arguments of the model's chat, which win over the file's ``<runtime>``.

        Returns:
            What has the model's verbs (``chat``, ``complete``, ``predict``, ``structured_predict``, their streams and
            async forms), and takes the prompt's variables.

        Example:
            >>> from llama_index.core.llms import MockLLM
            >>> prompt = PomlPromptTemplate("<runtime max-tokens='3'/><p>{{topic}}</p>")
            >>> prompt.bind_to(MockLLM()).predict(topic="POML")
            'text text text'
        """
        from pomlflow.llama_index.llm import PomlLLM

        return PomlLLM(self, llm, **llm_kwargs)

    def agent_kwargs(
        self, llm: LLM | None = None, /, *, tools: Any = None, llm_kwargs: Mapping[str, Any] | None = None, **given: Any
    ) -> dict[str, Any]:
        """Render once, and give what an agent is built of: ``FunctionAgent(**prompt.agent_kwargs(llm, tools=[…]))``.

        Args:
            llm: The agent's model; by default LlamaIndex's ``Settings.llm``.
            tools: The functions of the file's tools, by name, or several under their own names.
            llm_kwargs: Arguments of the model's chat, which win over the file's ``<runtime>``.
            **given: The variables.

        Returns:
            ``system_prompt``, the system's messages, or the text where that is all; ``tools``, described and checked by
            the file; ``llm``, which adds the settings, and the other messages as examples, to each call; and
            ``output_cls``, where the file has a schema.

        Raises:
            ToolError: A tool is without a function, or a function without a tool.
            SettingError: The model does not take a setting.
        """
        from llama_index.core import Settings

        from pomlflow.llama_index.agents import agent_kwargs

        return agent_kwargs(self._render(given), llm or Settings.llm, tools, llm_kwargs or {})

    def output_cls(self, **variables: Any) -> type[Answer]:
        """Give a pydantic class for what ``<output-schema>`` asks for, wherever LlamaIndex takes one.

        Args:
            **variables: The prompt's; none where the schema depends on none.

        Raises:
            ConfigurationError: There is no schema of an object.
        """
        from pomlflow.llama_index.structured import output_class

        now = self._refreshed()
        if "schema" in now.inference.static or not _SCHEMA.search(now.source):
            variables = {**dict.fromkeys(open_variables(self), ""), **variables}
        rendered = self._render(variables, quiet=True)
        return output_class(rendered.record.result().get("schema"), rendered.place)

    # From here on: what LlamaIndex calls.

    @override
    def partial_format(self, **kwargs: Any) -> Self:
        """Give a prompt that has values for some of the variables.

        Args:
            **kwargs: The values.

        Returns:
            A new prompt.
        """
        made = self.model_copy()
        made.kwargs = {**self.kwargs, **kwargs}
        made.metadata = dict(self.metadata)
        return made

    @override
    def get_template(self, llm: BaseLLM | None = None) -> str:
        """Give the markup.

        Args:
            llm: Ignored.

        Returns:
            The markup; a component that formats it or joins it to a text gets what `format` and `template` give.
        """
        return PromptText(self.source, self)

    @override
    def format_messages(self, llm: BaseLLM | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Render to messages.

        Args:
            llm: The model that it is for, as far as its provider takes media in some messages only.
            **kwargs: The variables.

        Returns:
            New messages.

        Raises:
            PomlError: What is wrong; a missing variable is a `MissingVariableError`.
        """
        if is_measured(kwargs):
            return measure(self)
        return for_provider(llm, self._render(kwargs).chat(self.output_parser))

    async def aformat_messages(self, **kwargs: Any) -> list[ChatMessage]:
        """Render to messages, without holding up the event loop; LlamaIndex itself has no such method to call."""
        return (await self._arender(kwargs)).chat(self.output_parser)

    @override
    def format(  # type: ignore[override]  # the bases differ
        self,
        llm: BaseLLM | None = None,
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None = None,
        completion_to_prompt: Callable[[str], str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Render to a text.

        Args:
            llm: The model that it is for; None outside a call of one.
            messages_to_prompt: What makes a text of several messages, or of one that is not the user's.
            completion_to_prompt: What is done to the text of a single user's message.
            **kwargs: The variables. Without any, the text keeps them in braces, as `PromptTemplate` does.

        Returns:
            The text.

        Raises:
            PomlError: What is wrong; a missing variable is a `MissingVariableError`.
        """
        if is_measured(kwargs):
            return "\n".join(message.content or "" for message in measure(self))
        aside = llm is None and messages_to_prompt is None and completion_to_prompt is None
        if aside and not kwargs and open_variables(self):
            return as_f_string(self, quiet=True)
        # Every variable empty, and no model: a SelectorPromptTemplate is measured.
        quiet = aside and bool(kwargs) and all(kwargs.get(name) == "" for name in open_variables(self))
        rendered = self._render(kwargs, quiet=quiet)
        to_prompt = messages_to_prompt or default_messages_to_prompt
        return rendered.completion(self.output_parser, to_prompt, completion_to_prompt)

    def _render(self, given: Mapping[str, Any], *, quiet: bool = False) -> Rendered:
        variables, hidden, history, now = self._prepared(given)
        record = restore(self._core.render(variables, history=history, snapshot=now), hidden)
        return Rendered.of(record, history, self._core.path, quiet=quiet)

    async def _arender(self, given: Mapping[str, Any]) -> Rendered:
        variables, hidden, history, now = self._prepared(given)
        record = restore(await self._core.arender(variables, history=history, snapshot=now), hidden)
        return Rendered.of(record, history, self._core.path)

    def _prepared(self, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], Hidden, MessageHistory, Snapshot]:
        now = self._refreshed()
        merged = {**self.kwargs, **given}
        context = merged.get("context_str")
        if isinstance(context, list) and all(isinstance(text, str) for text in context):
            merged["context_str"] = "\n\n".join(context)  # SimpleSummarize (0.14.25) gives its text in a list
        variables = {**histories(now), **self._map_all_vars(merged)}
        return *protect(variables, now, self.stylesheet), MessageHistory(), now

    def _refreshed(self) -> Snapshot:
        """The template as its files are now, with the fields that others read after it."""
        now = self._core.current()
        if now is not self._seen:
            self._take(now)
        return now

    def _repr_markdown_(self) -> str:
        """Show the messages in a notebook, with the open variables' names for their values; else the markup."""
        title = self.name or self._core.name or "POML"
        try:
            shown = {name: f"{{{name}}}" for name in open_variables(self)}
            return markdown(title, self._render(shown, quiet=True).messages)
        except Exception:  # noqa: BLE001 - a function mapping may raise anything, and a display nothing
            return f"**{title}**\n\n{fenced(self.source, 'xml')}"
