"""A POML file as what an agent of LangChain's is: its system prompt, examples, tools, settings and response format."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.tools import BaseTool
from pydantic import BaseModel
from typing_extensions import override

from pomlflow.exceptions import AnswerError, ConfigurationError
from pomlflow.frame import ToolSpec, checked_answer, match, named, response_format, tool_specs
from pomlflow.langchain.messages import media_after_tools
from pomlflow.langchain.model_arguments import (
    SCHEMA_SAID,
    Arguments,
    changing_source,
    explained,
    model_settings,
    place_of,
    speaks_chat_completions,
)
from pomlflow.langchain.output import PomlOutputParserError
from pomlflow.langchain.prompt import PomlPromptTemplate
from pomlflow.langchain.tools import PomlTool, as_tool
from pomlflow.record import RenderRecord

__all__ = ["PomlMiddleware"]

Variables = Callable[[Any, Any], Mapping[str, Any]]


class PomlMiddleware(AgentMiddleware[Any, Any]):
    """What an agent is, in a POML file, rendered anew at each call of its model.

    The variables are the agent's state (``messages`` among it) and its runtime context, by their own names, and what
    `variables` makes of them. Of each render,

    - system messages at its head are the agent's system prompt, before one that it has otherwise;
    - the other messages come before the conversation, as examples; where the markup places the conversation itself,
      ``<conversation messages="{{messages}}"/>``, they are all that the model gets;
    - tools are described as the markup does, and calls of them are checked by its schemas before they run;
    - ``<runtime>`` is the model's settings, ``<output-schema>`` the agent's response format. What other code has set
      wins over both.

    Each render is a span under the agent's model step, and its prompt version is linked to the trace. Nothing of it
    gets into the agent's state. Put it behind middleware that chooses the model (fallbacks), so that settings are in
    its words, and before middleware that is to see what it makes.

    Args:
        prompt: The prompt.
        tools: The functions of the markup's tools, by name, or under their own names. They need not be given to the
            agent as well. Tools of the agent that the markup does not define stay as they are.
        variables: From the agent's state and its runtime (``runtime.context``, ``runtime.store``) to more variables.

    Raises:
        ConfigurationError: `prompt` is no POML prompt.
        ToolError: Two functions have one name.

    A call of the agent raises `ToolError` where a tool is without a function or a function without a tool,
    `SettingError` where the model does not take a setting, and `PomlOutputParserError` for an answer that is not by the
    schema.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import GenericFakeChatModel
        >>> prompt = PomlPromptTemplate.from_template("<poml><system-msg>You serve {{crew}}.</system-msg></poml>")
        >>> agent = create_agent(
        ...     GenericFakeChatModel(messages=iter(["Aye."])),
        ...     middleware=[PomlMiddleware(prompt, variables=lambda state, runtime: {"crew": "the Ada"})],
        ... )
        >>> agent.invoke({"messages": [("user", "Ready?")]})["messages"][-1].content
        'Aye.'
    """

    def __init__(
        self,
        prompt: PomlPromptTemplate,
        *,
        tools: Mapping[str, Any] | Iterable[Any] | None = None,
        variables: Variables | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(prompt, PomlPromptTemplate):
            raise ConfigurationError(f"PomlMiddleware takes a PomlPromptTemplate, not a {type(prompt).__name__}")
        self.prompt = prompt
        self.variables = variables
        self.tools: list[BaseTool] = [as_tool(name, function) for name, function in named(tools or ()).items()]
        self._static: tuple[str, list[ToolSpec]] | None = None

    @property
    @override
    def name(self) -> str:
        """The prompt's name is in it: an agent's middlewares must differ by name."""
        return f"{type(self).__name__}[{self.prompt.name}]" if self.prompt.name else type(self).__name__

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        """Render, and call the model with it."""
        value = self.prompt.invoke(self._given(request.state, request.runtime, request.messages))
        call = _Call(self, request, value)
        with call.explained():
            return call.checked(handler(call.request))

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        """Render, and call the model with it."""
        value = await self.prompt.ainvoke(self._given(request.state, request.runtime, request.messages))
        call = _Call(self, request, value)
        with call.explained():
            return call.checked(await handler(call.request))

    @override
    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Let the tool check its arguments, which somebody may have edited since the model made them."""
        specs = self._known()
        if specs is None:
            specs = self._tools_of(self.prompt._render(self._given_for(request))[0])
        return handler(self._checking(request, specs))

    @override
    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Let the tool check its arguments, which somebody may have edited since the model made them."""
        specs = self._known()
        if specs is None:
            record, _ = await self.prompt._arender(self._given_for(request))
            specs = self._tools_of(record)
        return await handler(self._checking(request, specs))

    def _checking(self, request: Any, specs: Sequence[ToolSpec]) -> Any:
        """The request with a tool that checks: what stands between us and the tool may still change the call."""
        spec = next((spec for spec in specs if spec.name == request.tool_call["name"]), None)
        if spec is None or request.tool is None:
            return request
        place = self.prompt._core.relative or self.prompt.name or "<inline>"
        return request.override(tool=PomlTool.of(request.tool, spec, place))

    def _given(self, state: Any, runtime: Any, messages: Sequence[BaseMessage] | None = None) -> dict[str, Any]:
        """The variables: context, state, the conversation as other middleware has it, and what the user adds.

        Only those that the template names: a state may hold megabytes that would be sent to Node and stored in traces.
        """
        given = {**_fields(getattr(runtime, "context", None)), **_fields(state)}
        if messages is not None:
            given["messages"] = list(messages)
        given |= self.variables(state, runtime) if self.variables else {}
        takes = self.prompt._core.inference
        return {name: given[name] for name in (*takes.variables, *takes.optional) if name in given}

    def _given_for(self, request: Any) -> dict[str, Any]:
        """The variables of the model's call that a tool's call came of."""
        messages = list(_fields(request.state).get("messages") or ())
        for index, message in enumerate(messages):
            calls = message.tool_calls if isinstance(message, AIMessage) else ()
            if any(call["id"] == request.tool_call["id"] for call in calls):
                messages = messages[:index]
                break
        return self._given(request.state, request.runtime, messages)

    def _known(self) -> list[ToolSpec] | None:
        """The tools, where no variable changes them and a render has told them."""
        static = self._static
        return static[1] if static is not None and static[0] == self.prompt._core.digest else None

    def _tools_of(self, record: RenderRecord) -> list[ToolSpec]:
        specs = tool_specs(record.result())
        # Every name that POML has for a definition holds the word; where it is not there, there is none.
        if "tools" in record.static or "tool" not in record.source.lower():
            self._static = record.digest, specs
        return specs


class _Call:
    """One call of an agent's model, as POML has it."""

    def __init__(self, middleware: PomlMiddleware, request: ModelRequest[Any], value: PromptValue) -> None:
        record: RenderRecord = value._record  # type: ignore[attr-defined]
        output, place = record.result(), place_of(record)
        self.record, self.place = record, place
        self.said: Arguments = model_settings(request.model, output.get("runtime"), place)
        self.schema: Mapping[str, Any] | None = output.get("schema") if request.response_format is None else None
        specs = middleware._tools_of(record)
        completions = speaks_chat_completions(request.model)
        formats = self.schema is not None or not isinstance(request.response_format, ToolStrategy | None)
        strict = completions and formats
        overrides: dict[str, Any] = {
            "model": self.said.model,
            "model_settings": {**self.said.values, **request.model_settings},
            "tools": _described(record, specs, request.tools, middleware.tools, strict=strict),
        }
        if self.said.tool_choice is not None and request.tool_choice is None:
            overrides["tool_choice"] = self.said.tool_choice
        if self.schema is not None:
            overrides["response_format"] = _strategy(self.schema)
        rendered, asked = value.to_messages(), {id(message) for message in request.messages}
        placed = "messages" in middleware.prompt._core.inference.messages
        placed = placed or any(id(message) in asked for message in rendered)
        overrides |= _messages(rendered, request, placed=placed)
        if completions:
            overrides["messages"] = media_after_tools(overrides["messages"])
        self.request = request.override(**overrides)

    def explained(self) -> Any:
        """Name what a client refuses."""
        said = self.said.unknown if self.schema is None else {**self.said.unknown, **SCHEMA_SAID}
        return explained(said, self.said.model, self.place)

    def checked(self, response: Any) -> Any:
        """The model's response, its object checked by the schema."""
        inner = getattr(response, "model_response", response)
        found = getattr(inner, "structured_response", None)
        if self.schema is None or found is None:
            return response
        answer = next((message for message in reversed(inner.result) if isinstance(message, AIMessage)), None)
        text = "" if answer is None else str(answer.text)
        try:
            inner.structured_response = checked_answer(found, self.schema, text, self.place)
        except AnswerError as error:
            raise PomlOutputParserError(str(error), text, error.problems, answer) from error
        return response


def _messages(rendered: list[BaseMessage], request: ModelRequest[Any], *, placed: bool) -> dict[str, Any]:
    """The system prompt and the messages of a request; the markup may have placed the conversation already."""
    head = 0
    while head < len(rendered) and isinstance(rendered[head], SystemMessage):
        head += 1
    rest = rendered[head:]
    messages: list[AnyMessage] = [*rest] if placed else [*rest, *request.messages]  # type: ignore[list-item]
    if not head:
        return {"messages": messages}
    modern = hasattr(request, "system_message")  # langchain 1.0 has only the text
    before: Any = request.system_message if modern else request.system_prompt
    contents: list[Any] = [message.content for message in rendered[:head]]
    contents += [] if before is None else [before.content if modern else before]
    if all(isinstance(content, str) for content in contents):
        text = "\n\n".join(filter(None, contents))
        return {
            "messages": messages,
            **({"system_message": SystemMessage(text)} if modern else {"system_prompt": text}),
        }
    blocks = [block for content in contents for block in ([content] if isinstance(content, str) else content)]
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]
    return {"messages": messages, "system_message": SystemMessage(blocks)}


def _described(
    record: RenderRecord,
    specs: Sequence[ToolSpec],
    offered: Sequence[BaseTool | dict[str, Any]],
    own: Sequence[BaseTool],
    *,
    strict: bool,
) -> list[BaseTool | dict[str, Any]]:
    """The tools that the model is offered, each as the markup defines it, where it does."""
    place, by_name, ours = place_of(record), {spec.name: spec for spec in specs}, {tool.name for tool in own}
    others = [tool.name for tool in offered if isinstance(tool, BaseTool) and tool.name in by_name]
    match(specs, [*ours, *others], place, changing_source(record))
    told: list[BaseTool | dict[str, Any]] = []
    for tool in offered:
        if isinstance(tool, BaseTool) and tool.name in by_name:
            told.append(PomlTool.of(tool, by_name[tool.name], place, strict=strict))
        elif isinstance(tool, dict) or tool.name not in ours:  # ours that this render does not define stay away
            told.append(tool)
    return told


def _strategy(schema: Mapping[str, Any]) -> ProviderStrategy[Any]:
    said = response_format(schema)["json_schema"]
    titled = {**said["schema"], "title": said["name"]}  # LangChain names it by the title, else by a random word
    if "strict" in ProviderStrategy.__init__.__annotations__:
        return ProviderStrategy(titled, strict=said["strict"])
    return ProviderStrategy(titled)  # langchain 1.0


def _fields(holder: Any) -> dict[str, Any]:
    """What a state or a context holds, by name."""
    if holder is None:
        return {}
    if isinstance(holder, Mapping):
        return {str(name): value for name, value in holder.items()}
    if isinstance(holder, BaseModel):
        return {name: getattr(holder, name) for name in type(holder).model_fields}
    if dataclasses.is_dataclass(holder):
        return {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
    return dict(vars(holder)) if hasattr(holder, "__dict__") else {}
