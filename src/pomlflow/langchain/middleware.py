"""Middleware that defines a LangChain agent in a POML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputValidationError, ToolStrategy
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.tools import BaseTool
from typing_extensions import override

from pomlflow.exceptions import AnswerError, ConfigurationError
from pomlflow.frame.answers import checked_answer
from pomlflow.frame.schema import response_format
from pomlflow.frame.tools import ToolSpec, check_functions, functions_by_name, tool_specs
from pomlflow.langchain.messages import move_media_after_tools
from pomlflow.langchain.model_arguments import ModelArguments, model_settings, uses_chat_completions
from pomlflow.langchain.output import PomlOutputParserError, parse_message, raise_refusal
from pomlflow.langchain.prompt import PomlPromptTemplate
from pomlflow.langchain.tools import PomlTool, as_tool
from pomlflow.record import RenderRecord

Variables = Callable[[Any, Any], Mapping[str, Any]]


class PomlMiddleware(AgentMiddleware[Any, Any]):
    """Define an agent in a POML file, which is rendered before each call of its model.

    The variables are the agent's state (including ``messages``), its runtime context, and the result of `variables`.
    A render is used as follows:

    - System messages at its start become the agent's system prompt, followed by the prompt that the agent already has.
    - The other messages precede the conversation, as examples. If the markup contains the conversation,
      ``<conversation messages="{{messages}}"/>``, its messages are all that the model gets.
    - Tools are described by the markup, and the arguments of their calls are checked by its schemas.
    - ``<runtime>`` sets the model's settings and ``<output-schema>`` the agent's response format, unless other code has
      set them.

    Each render is a span under the agent's model step, with its prompt version linked to the trace. The agent's state
    is not changed. In the agent's list of middleware, put it after middleware that selects the model (fallbacks), so
    that settings are translated for that model, and before middleware that reads the request.

    Args:
        prompt: The prompt.
        tools: The functions of the markup's tools: a dict by the tools' names, or a list if the functions have these
            names. They need not be passed to the agent as well. Tools of the agent that the markup does not define are
            not changed, nor are these functions if the markup defines no tool at all.
        variables: A function from the agent's state and runtime (``runtime.context``, ``runtime.store``) to further
            variables.

    Raises:
        ConfigurationError: `prompt` is not a `PomlPromptTemplate`.
        ToolError: Two functions have one name.

    A call of the agent raises `ToolError` if tools and functions do not match, `SettingError` if the model does not
    support a setting, `PomlOutputParserError` if the answer does not match the schema, and `PomlRefusalError`
    if the model refused to answer.

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
        functions = functions_by_name(tools or ())
        self.tools: list[BaseTool] = [as_tool(name, function) for name, function in functions.items()]
        self._static: tuple[str, list[ToolSpec]] | None = None  # the content's digest and its tools

    @property
    @override
    def name(self) -> str:
        """Return a name that contains the prompt's, since the names of an agent's middlewares must differ."""
        return f"{type(self).__name__}[{self.prompt.name}]" if self.prompt.name else type(self).__name__

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        """Render the prompt and call the model with it."""
        value = self.prompt.invoke(self._variables(request.state, request.runtime, request.messages))
        call = _AgentCall(self, request, value)
        with call.explain_wrong_answers():
            return call.checked(handler(call.request))

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        value = await self.prompt.ainvoke(self._variables(request.state, request.runtime, request.messages))
        call = _AgentCall(self, request, value)
        with call.explain_wrong_answers():
            return call.checked(await handler(call.request))

    @override
    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Check the tool's arguments, which a person or other middleware may have edited."""
        specs = self._static_tools()
        if specs is None:
            specs = self.remember_tools(self.prompt.render_record(self._variables_for(request))[0])
        return handler(self._checking(request, specs))

    @override
    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        specs = self._static_tools()
        if specs is None:
            record, _ = await self.prompt.arender_record(self._variables_for(request))
            specs = self.remember_tools(record)
        return await handler(self._checking(request, specs))

    def _checking(self, request: Any, specs: Sequence[ToolSpec]) -> Any:
        """Return the request with a tool that checks its arguments when it is called.

        The check is not made here, since later middleware may change the arguments.
        """
        spec = next((spec for spec in specs if spec.name == request.tool_call["name"]), None)
        if spec is None or request.tool is None:
            return request
        label = self.prompt.core.trace_path or self.prompt.name or "<inline>"
        return request.override(tool=PomlTool.of(request.tool, spec, label))

    def _variables(self, state: Any, runtime: Any, messages: Sequence[BaseMessage] | None = None) -> dict[str, Any]:
        """Return the values that the template takes, and no others: a state may contain megabytes."""
        given = {**_fields(getattr(runtime, "context", None)), **_fields(state)}
        if messages is not None:
            given["messages"] = list(messages)
        given |= self.variables(state, runtime) if self.variables else {}
        takes = self.prompt.core.inference
        return {name: given[name] for name in (*takes.variables, *takes.optional) if name in given}

    def _variables_for(self, request: Any) -> dict[str, Any]:
        """Return the variables of the model call that requested a tool call."""
        messages = list(_fields(request.state).get("messages") or ())
        for index, message in enumerate(messages):
            calls = message.tool_calls if isinstance(message, AIMessage) else ()
            if any(call["id"] == request.tool_call["id"] for call in calls):
                messages = messages[:index]
                break
        return self._variables(request.state, request.runtime, messages)

    def _static_tools(self) -> list[ToolSpec] | None:
        """Return the tools of an earlier render of this content, or None if they depend on variables."""
        static = self._static
        return static[1] if static is not None and static[0] == self.prompt.core.digest else None

    def remember_tools(self, record: RenderRecord) -> list[ToolSpec]:
        """Return the tools of a render, and remember them if they depend on no variable."""
        specs = tool_specs(record.result())
        if "tools" in record.static_fields or "tools" not in self.prompt.core.inference.fields:
            self._static = record.digest, specs
        return specs


class _AgentCall:
    """One call of an agent's model; `request` is the agent's request with the render applied."""

    def __init__(self, middleware: PomlMiddleware, request: ModelRequest[Any], value: PromptValue) -> None:
        record: RenderRecord = value.record  # type: ignore[attr-defined]
        output, label = record.result(), record.label
        self.record, self.label = record, label
        settings: ModelArguments = model_settings(request.model, output.get("runtime"), label)
        self.schema: Mapping[str, Any] | None = output.get("schema") if request.response_format is None else None
        specs = middleware.remember_tools(record)
        completions = uses_chat_completions(request.model)
        # Whether the provider has structured output: a `ToolStrategy` is a tool.
        has_format = self.schema is not None or not isinstance(request.response_format, ToolStrategy | None)
        # If the markup defines no tool, the functions describe themselves, like the agent's own tools.
        own = middleware.tools if "tools" in middleware.prompt.core.inference.fields else ()
        overrides: dict[str, Any] = {
            "model": settings.model,
            "model_settings": {**settings.values, **request.model_settings},
            "tools": _described(record, specs, request.tools, own, strict=completions and has_format),
        }
        if settings.tool_choice is not None and request.tool_choice is None:
            overrides["tool_choice"] = settings.tool_choice
        if self.schema is not None:
            overrides["response_format"] = _strategy(self.schema)
        rendered, requested = value.to_messages(), {id(message) for message in request.messages}
        has_conversation = "messages" in middleware.prompt.core.inference.messages
        has_conversation = has_conversation or any(id(message) in requested for message in rendered)
        overrides |= _messages(rendered, request, has_conversation=has_conversation)
        if completions:
            overrides["messages"] = move_media_after_tools(overrides["messages"])
        self.request = request.override(**overrides)

    @contextmanager
    def explain_wrong_answers(self) -> Iterator[None]:
        """Replace LangChain's parse error by a `PomlOutputParserError`, or by a `PomlRefusalError` for a refusal."""
        try:
            yield
        except StructuredOutputValidationError as error:
            try:
                raise_refusal(error.ai_message, self.label)
                if self.schema is not None:
                    parse_message(error.ai_message, self.record)
            except PomlOutputParserError as ours:
                raise ours from error
            raise

    def checked(self, response: Any) -> Any:
        """Return the model's response, with its structured answer checked by the schema."""
        inner = getattr(response, "model_response", response)
        found = getattr(inner, "structured_response", None)
        if self.schema is None or found is None:
            return response
        answer = next((message for message in reversed(inner.result) if isinstance(message, AIMessage)), None)
        text = "" if answer is None else str(answer.text)
        try:
            inner.structured_response = checked_answer(found, self.schema, text, self.label)
        except AnswerError as error:
            raise PomlOutputParserError(str(error), text, error.problems, answer) from error
        return response


def _messages(rendered: list[BaseMessage], request: ModelRequest[Any], *, has_conversation: bool) -> dict[str, Any]:
    """Return the system prompt and messages of a request, without its conversation if the render contains that."""
    head = list(takewhile(lambda message: isinstance(message, SystemMessage), rendered))
    rest = rendered[len(head) :]
    messages: list[AnyMessage] = [*rest] if has_conversation else [*rest, *request.messages]  # type: ignore[list-item]
    if not head:
        return {"messages": messages}
    own = [] if request.system_message is None else [request.system_message]
    contents: list[Any] = [message.content for message in (*head, *own)]
    if all(isinstance(content, str) for content in contents):
        return {"messages": messages, "system_message": SystemMessage("\n\n".join(filter(None, contents)))}
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
    """Return the tools of a request; those that the markup defines get its descriptions and schemas."""
    label, by_name, ours = record.label, {spec.name: spec for spec in specs}, {tool.name for tool in own}
    others = [tool.name for tool in offered if isinstance(tool, BaseTool) and tool.name in by_name]
    check_functions(specs, [*ours, *others], label, exact="tools" in record.static_fields)
    described: list[BaseTool | dict[str, Any]] = []
    for tool in offered:
        if isinstance(tool, BaseTool) and tool.name in by_name:
            described.append(PomlTool.of(tool, by_name[tool.name], label, strict=strict))
        # The middleware's own functions are left out if this render does not define their tools.
        elif isinstance(tool, dict) or tool.name not in ours:
            described.append(tool)
    return described


def _strategy(schema: Mapping[str, Any]) -> ProviderStrategy[Any]:
    output = response_format(schema)["json_schema"]
    # LangChain uses the title as the schema's name; without a title, the name would be random.
    return ProviderStrategy({**output["schema"], "title": output["name"]}, strict=output["strict"])


def _fields(holder: Any) -> dict[str, Any]:
    """Return the fields of a state or a context, by name."""
    if isinstance(holder, Mapping):
        return dict(holder)
    if dataclasses.is_dataclass(holder):  # it may have slots, and then no `__dict__`
        return {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
    return dict(getattr(holder, "__dict__", {}))
