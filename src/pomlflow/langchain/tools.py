"""The user's functions as LangChain tools, described and checked by the tool definitions of a POML file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import override

from pomlflow.exceptions import ToolArgumentsError
from pomlflow.frame.schema import strict_form
from pomlflow.frame.tools import ToolSpec, check_accepts, check_arguments, with_docstring

_ANY_OBJECT = {"type": "object", "properties": {}}


class PomlTool(StructuredTool):
    """A tool with the description and schema of its definition in a POML file.

    Arguments that do not match the schema raise pydantic's `ValidationError`, as in LangChain's own tools, so that
    `ToolNode` and agents report it to the model. Its cause is a `ToolArgumentsError`.
    """

    spec: ToolSpec
    label: str = "<inline>"
    strict: bool = False  # whether the model gets the schema in the form of OpenAI's strict mode
    injected: frozenset[str] = frozenset()  # the arguments that LangChain passes, such as the state

    @classmethod
    def of(cls, tool: BaseTool, spec: ToolSpec, label: str, *, strict: bool = False) -> PomlTool:
        """Return the tool, described and checked by a definition."""
        inner = tool if isinstance(tool, StructuredTool) and (tool.func or tool.coroutine) else _structured(tool)
        if (accepted := _accepted(inner)) is not None:
            check_accepts(spec, accepted, label)
        fields = {"spec": spec, "label": label, "strict": strict, "injected": _injected(inner)}
        return cls.model_construct(**{**inner.__dict__, "description": spec.description or inner.description, **fields})

    @property
    @override
    def tool_call_schema(self) -> Any:
        """Return the schema that is sent to the model."""
        return strict_form(self.spec.parameters) if self.strict else dict(self.spec.parameters)

    @override
    def _parse_input(self, tool_input: str | dict[str, Any], tool_call_id: str | None) -> str | dict[str, Any]:
        if isinstance(tool_input, dict):
            arguments = {name: value for name, value in tool_input.items() if name not in self.injected}
            injected = {name: value for name, value in tool_input.items() if name in self.injected}
            try:
                tool_input = {**check_arguments(self.spec, arguments, self.label), **injected}
            except ToolArgumentsError as error:
                raise _validation_error(error) from error
        return super()._parse_input(tool_input, tool_call_id)


def as_tool(name: str, function: Callable[..., Any] | BaseTool) -> BaseTool:
    """Return a function or a tool as a LangChain tool of that name."""
    if isinstance(function, BaseTool):
        return function if function.name == name else function.model_copy(update={"name": name})
    asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that is called
    )
    return StructuredTool.from_function(
        func=None if asynchronous else function,
        coroutine=function if asynchronous else None,
        name=name,
        description=inspect.getdoc(with_docstring(function)) or name,
        args_schema=None if _has_typed_signature(function) else dict(_ANY_OBJECT),
    )


def _has_typed_signature(function: Callable[..., Any]) -> bool:
    """Return whether LangChain can make a schema from a function's signature."""
    if not inspect.isroutine(function):
        return False
    try:
        get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError):  # an annotation that only type checkers import, or a function in C
        return False
    return all(parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) for parameter in parameters)


def _structured(tool: BaseTool) -> StructuredTool:
    """Return a tool of another class as a `StructuredTool`."""
    return StructuredTool(
        name=tool.name,
        description=tool.description,
        args_schema=dict(_ANY_OBJECT),
        return_direct=tool.return_direct,
        func=lambda **arguments: tool.invoke(arguments),
        coroutine=lambda **arguments: tool.ainvoke(arguments),
    )


def _accepted(tool: StructuredTool) -> list[str] | None:
    """Return the names of the arguments that a tool takes, or None if it takes any."""
    schema = tool.args_schema
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)) or schema.model_config.get("extra") == "allow":
        return None
    fields = schema.model_fields.items()
    return [spelling for name, field in fields for spelling in (name, field.alias or name)]


def _injected(tool: StructuredTool) -> frozenset[str]:
    """Return the names of the arguments that LangChain injects."""
    found = {*getattr(tool, "_injected_args_keys", ()), *(tool.injected if isinstance(tool, PomlTool) else ())}
    whole, described = tool.args_schema, tool.tool_call_schema
    if isinstance(whole, type) and issubclass(whole, BaseModel) and isinstance(described, type):
        found |= set(whole.model_fields) - set(getattr(described, "model_fields", whole.model_fields))
    return frozenset(found)


def _validation_error(error: ToolArgumentsError) -> ValidationError:
    """Return pydantic's error with the problems that a `ToolArgumentsError` lists."""
    lines = []
    for problem in error.problems:
        place, _, message = problem.removeprefix("$").removeprefix(".").partition(": ")
        kind = PydanticCustomError("poml_schema", "{message}", {"message": message})
        # upstream: langgraph 1.2: ToolNode leaves out errors without a location.
        lines.append(InitErrorDetails(type=kind, loc=(place or error.tool,), input=error.arguments))
    return ValidationError.from_exception_data(error.tool, lines)
