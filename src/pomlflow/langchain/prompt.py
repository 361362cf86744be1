"""A POML prompt wherever LangChain takes a chat prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, BaseCallbackHandler, CallbackManagerForChainRun
from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.prompts.chat import BaseChatPromptTemplate
from langchain_core.runnables.config import var_child_runnable_config
from poml.api import PomlFrame
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import Self, override

from pomlflow.langchain.messages import from_poml, take_histories
from pomlflow.record import RenderRecord
from pomlflow.template import Template

__all__ = ["PomlChatPromptValue", "PomlPromptTemplate", "PomlStringPromptValue"]

# Seconds that a render waits for its prompt's registration, so that a first trace is linked when it is exported. An
# event loop never waits.
_WAIT = 0.005


class PomlChatPromptValue(ChatPromptValue):
    """Messages, with all else that the POML frame says.

    To LangChain, its serialisation and its checkpoints it is a plain `ChatPromptValue`.
    """

    _record: RenderRecord = PrivateAttr()

    @property
    def frame(self) -> PomlFrame:
        """The frame: ``messages``, ``output_schema``, ``tools``, ``runtime``."""
        return self._record.frame

    @classmethod
    def lc_id(cls) -> list[str]:
        """The identity of `ChatPromptValue`: `loads` knows that class, and not this one."""
        return ChatPromptValue.lc_id()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatPromptValue) and list(self.messages) == list(other.messages)

    __hash__ = None  # type: ignore[assignment]  # as of every mutable pydantic model


class PomlStringPromptValue(StringPromptValue):
    """One text, with all else that the POML frame says; what a prompt with ``chat=False`` gives."""

    _record: RenderRecord = PrivateAttr()
    _messages: list[BaseMessage] = PrivateAttr(default_factory=list)

    @property
    def frame(self) -> PomlFrame:
        """The frame: ``messages`` (one, the human's), ``output_schema``, ``tools``, ``runtime``."""
        return self._record.frame

    @override
    def to_messages(self) -> list[BaseMessage]:
        """One human message; pictures and other media, which a text cannot hold, are in it."""
        return list(self._messages) or super().to_messages()

    @classmethod
    def lc_id(cls) -> list[str]:
        """The identity of `StringPromptValue`."""
        return StringPromptValue.lc_id()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StringPromptValue) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]


class PomlPromptTemplate(BaseChatPromptTemplate):
    """A prompt written in POML, wherever LangChain takes a ``ChatPromptTemplate``.

    Its variables are found in the markup. A variable that is the ``messages`` of a ``<conversation>`` is a history:
    optional, and its messages reach the model as they are. A file is read again when it has changed.

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
        **kwargs: What LangChain itself passes when it copies a prompt.

    Raises:
        TemplateNotFoundError: The file does not exist.

    Example:
        >>> prompt = PomlPromptTemplate.from_template("<p>Tell me about {{topic}}.</p>")
        >>> prompt.invoke({"topic": "POML"}).to_messages()[0].content
        'Tell me about POML.'
    """

    template: str
    path: str | None = None
    base_dir: str | None = None
    stylesheet: dict[str, Any] | None = None
    chat: bool = True
    # `register` itself is taken: every class with ABCMeta has it, and pydantic warns.
    register_prompt: bool | None = Field(default=None, alias="register")

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    _core: Template = PrivateAttr()
    _seen: object = PrivateAttr(default=None)

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
        **kwargs: Any,
    ) -> None:
        register = kwargs.pop("register_prompt", register)
        core = Template(
            template, path=path, name=name, base_dir=base_dir, stylesheet=stylesheet, chat=chat, register=register
        )
        fields = {
            **kwargs,
            "template": core.source,
            "path": None if core.path is None else str(core.path),
            "name": name,
            "base_dir": None if core.base_dir is None else str(core.base_dir),
            "stylesheet": None if stylesheet is None else dict(stylesheet),
            "chat": chat,
            "register": register,
            "output_parser": output_parser,
            "metadata": metadata,
            "tags": tags,
            **_variables(core, partial_variables or {}, kwargs.get("input_types") or {}),
        }
        super().__init__(**fields)
        self._core = core
        self._seen = core.current()

    @classmethod
    def from_template(cls, template: str, **kwargs: Any) -> Self:
        """Make a prompt of markup.

        Args:
            template: The markup; never a path.
            **kwargs: As the class takes them.

        Returns:
            The prompt.
        """
        return cls(template, **kwargs)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Make a prompt of a file.

        Args:
            path: The ``.poml`` file.
            **kwargs: As the class takes them.

        Returns:
            The prompt.

        Raises:
            TemplateNotFoundError: The file does not exist.
        """
        return cls(path=path, **kwargs)

    def __eq__(self, other: object) -> bool:
        # LangChain's input_types differ after a copy: their discriminators compare by identity.
        return type(self) is type(other) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]

    def _identity(self) -> tuple[Any, ...]:
        return self._core, dict(self.partial_variables), self.output_parser, self.metadata, self.tags

    @property
    def source(self) -> str:
        """The markup as it is now."""
        return self._core.source

    @property
    def _prompt_type(self) -> str:
        return "poml"

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        """Where `loads` imports the class from."""
        return ["pomlflow", "langchain"]

    def validate(self, **variables: Any) -> None:  # type: ignore[override]  # pydantic 1's method, deprecated there
        """Render once and say what is wrong, at start-up instead of in the first call.

        Args:
            **variables: What the template needs.

        Raises:
            PomlError: As a render raises it.
        """
        self._core.render(self._merge_partial_and_user_variables(**variables)).result()

    # From here on: what LangChain calls.

    @override
    def _validate_input(self, inner_input: Any) -> dict[str, Any]:
        """Take a bare value for the only variable. A missing variable is the render's to tell, so that it is traced."""
        self._refresh()
        if isinstance(inner_input, Mapping):
            return dict(inner_input)
        names = self.input_variables or self.optional_variables
        if len(names) == 1:
            return {names[0]: inner_input}
        raise TypeError(
            f"a prompt with the variables {self.input_variables} takes a dict of them, "
            f"not a {type(inner_input).__name__}"
        )

    @override
    def _format_prompt_with_error_handling(
        self, inner_input: Any, run_manager: CallbackManagerForChainRun | None = None
    ) -> PromptValue:
        return self._format(self._validate_input(inner_input), run_manager)

    @override
    async def _aformat_prompt_with_error_handling(
        self, inner_input: Any, run_manager: AsyncCallbackManagerForChainRun | None = None
    ) -> PromptValue:
        return await self._aformat(self._validate_input(inner_input), run_manager)

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
        return self.format_prompt(**kwargs).to_messages()

    @override
    async def aformat_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """Render to messages, without holding up the event loop."""
        return (await self.aformat_prompt(**kwargs)).to_messages()

    @override
    def pretty_repr(self, html: bool = False) -> str:
        """Show the markup."""
        return self.source

    def __add__(self, other: Any) -> ChatPromptTemplate:
        combined: ChatPromptTemplate = ChatPromptTemplate(messages=[self]) + other
        return combined

    def _format(self, variables: Mapping[str, Any], run: CallbackManagerForChainRun | None) -> PromptValue:
        merged, history = self._take(variables)
        record = self._core.render(merged, history=history)
        _deliver(record, run, _WAIT)
        return _value(record, history.placed if history else {})

    async def _aformat(self, variables: Mapping[str, Any], run: AsyncCallbackManagerForChainRun | None) -> PromptValue:
        merged, history = self._take(variables)
        record = await self._core.arender(merged, history=history)
        _deliver(record, run, 0)
        return _value(record, history.placed if history else {})

    def _take(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        merged = self._merge_partial_and_user_variables(**variables)
        return take_histories(merged, self._core.inference.messages if self.chat else ())

    def _refresh(self) -> None:
        """Follow a file that has changed, in the fields that others read."""
        current = self._core.current()
        if current is self._seen:
            return
        self._seen = current
        self.template = current.source
        for field, value in _variables(self._core, self.partial_variables, self.input_types).items():
            setattr(self, field, value)
        self.__dict__.pop("_serialized", None)  # LangChain's cached form of the old one


def _variables(core: Template, partial: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """LangChain's fields about variables, from the markup."""
    found = core.inference
    # An optional history stands in optional_variables and, with a default, in partial_variables: LangChain's own agent
    # constructors look for agent_scratchpad there.
    partial = {**{name: [] for name in found.messages if name in found.optional}, **partial}
    required = [name for name in found.variables if name not in partial]
    any_value = dict.fromkeys((*found.variables, *found.optional), Any)
    histories = dict.fromkeys(found.messages, list[AnyMessage])
    return {
        "input_variables": required,
        "optional_variables": [name for name in found.optional if name not in required],
        "partial_variables": partial,
        "input_types": {**any_value, **histories, **types},
    }


def _value(record: RenderRecord, natives: Mapping[int, BaseMessage]) -> PromptValue:
    output = record.result()
    if record.chat:
        value = PomlChatPromptValue(messages=from_poml(output["messages"], natives))
        value._record = record
        return value
    content = output["messages"]
    parts = [content] if isinstance(content, str) else content
    text = PomlStringPromptValue(text="".join(part for part in parts if isinstance(part, str)))
    text._record = record
    if not isinstance(content, str):
        text._messages = from_poml([{"speaker": "human", "content": content}])
    return text


def _deliver(
    record: RenderRecord, run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun | None, wait: float
) -> None:
    """Give the record to the handlers that trace it: out of the prompt's own run, or of the run around this call."""
    handlers: Sequence[BaseCallbackHandler] = ()
    run_id: UUID | None = None
    if run is not None:
        handlers, run_id = run.handlers, run.run_id
    elif config := var_child_runnable_config.get():
        around = config.get("callbacks")
        handlers, run_id = getattr(around, "handlers", ()), getattr(around, "parent_run_id", None)
    # Ours, or MLflow's own tracer. Others get nothing, so that no content reaches who did not ask for it, and a chain
    # without such a handler does not import MLflow.
    if any(hasattr(handler, "on_poml_render") or hasattr(handler, "_run_span_mapping") for handler in handlers):
        from pomlflow.langchain.callbacks import deliver

        deliver(record, handlers, run_id, wait=wait)
