"""The tools of a POML file as LlamaIndex tools."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata
from llama_index.core.tools.types import AsyncBaseTool
from llama_index.core.workflow import Context
from typing_extensions import override

from pomlflow.frame.tools import ToolSpec, check_arguments, check_functions, functions_by_name, with_docstring
from pomlflow.llama_index.structured import output_class


class _Metadata(ToolMetadata):
    """A tool's metadata with POML's whole schema. LlamaIndex's own class would keep only some keywords of it."""

    parameters: Mapping[str, Any]

    @override
    def get_parameters_dict(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(json.dumps(self.parameters))  # a copy, since LlamaIndex's OpenAI changes it
        return {"properties": {}, **read}  # clients read the key `properties` of every schema


def _metadata(spec: ToolSpec, *, return_direct: bool = False) -> ToolMetadata:
    fn_schema = output_class(spec.parameters)  # some clients read this class instead of the parameters
    made = _Metadata(spec.description, spec.name, fn_schema=fn_schema, return_direct=return_direct)
    made.parameters = spec.parameters
    return made


def describe_tool(spec: ToolSpec) -> BaseTool:
    """Return a tool that describes a definition to a model and cannot be called."""

    def not_callable(**_: Any) -> NoReturn:
        raise NotImplementedError(
            f"{spec.name} only describes a tool to the model: the caller of the model must call it"
        )

    return FunctionTool(not_callable, metadata=_metadata(spec))


def bind_tools(
    specs: list[ToolSpec], functions: Mapping[str, Any] | Iterable[Any] | None, label: str, *, exact: bool
) -> list[BaseTool]:
    """Return the tools of a POML file with their functions; a `ToolError` names those that do not match.

    With `exact`, each function must have a tool (see `check_functions`).
    """
    by_name = functions_by_name(functions or {})
    check_functions(specs, by_name, label, exact=exact)
    return [_bind_tool(spec, by_name[spec.name], label) for spec in specs]


def plain_tools(functions: Mapping[str, Any] | Iterable[Any] | None) -> list[BaseTool]:
    """Return functions as tools that describe themselves; tools of LlamaIndex are not changed."""
    return [
        function if isinstance(function, BaseTool) else FunctionTool.from_defaults(with_docstring(function), name=name)
        for name, function in functions_by_name(functions or {}).items()
    ]


def _bind_tool(spec: ToolSpec, function: Any, label: str) -> BaseTool:
    if not isinstance(function, BaseTool):
        return FunctionTool(_checked(spec, function, label), metadata=_metadata(spec))
    # LlamaIndex passes a context to a function whose signature has one.
    signature_of = function.real_fn if isinstance(function, FunctionTool) else function.__call__
    return FunctionTool(
        _checked(spec, function.__call__, label, signature_of),
        async_fn=_checked(spec, function.acall, label) if isinstance(function, AsyncBaseTool) else None,
        metadata=_metadata(spec, return_direct=function.metadata.return_direct),
        callback=lambda output: output,  # the tool's own output
    )


def _checked(
    spec: ToolSpec, function: Callable[..., Any], label: str, signature_of: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Wrap a function so that the schema checks its arguments, except contexts; `signature_of` gives the signature."""

    def checked(args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
        # LlamaIndex passes a single argument by position if the function has no parameter of its name.
        given = {**dict(zip(spec.parameters.get("properties") or (), args, strict=False)), **given}
        contexts = {name: value for name, value in given.items() if isinstance(value, Context)}
        arguments = {name: value for name, value in given.items() if name not in contexts}
        return {**check_arguments(spec, arguments, label), **contexts}

    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        @functools.wraps(function)
        async def acall(*args: Any, **given: Any) -> Any:
            return await function(**checked(args, given))

        return acall

    @functools.wraps(signature_of or function)
    def call(*args: Any, **given: Any) -> Any:
        return function(**checked(args, given))

    return call
