"""The tools of a POML file as LlamaIndex's."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NoReturn

from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata
from llama_index.core.tools.types import AsyncBaseTool
from llama_index.core.workflow import Context
from typing_extensions import override

from pomlflow.frame import ToolSpec, check_arguments, match, named
from pomlflow.llama_index.structured import output_class

__all__ = ["described", "tied"]


class _Metadata(ToolMetadata):
    """What a model is told of a tool: POML's schema, of which LlamaIndex would keep some keywords only."""

    parameters: Mapping[str, Any]

    @override
    def get_parameters_dict(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(json.dumps(self.parameters))  # LlamaIndex's OpenAI writes into it
        return {"properties": {}, **read}  # it is looked for there


def _metadata(spec: ToolSpec, *, return_direct: bool = False) -> ToolMetadata:
    fn_schema = output_class(spec.parameters)  # for those who look there
    made = _Metadata(spec.description, spec.name, fn_schema=fn_schema, return_direct=return_direct)
    made.parameters = spec.parameters
    return made


def described(spec: ToolSpec) -> BaseTool:
    """A tool that a model is told of, and that nobody calls."""
    return _described(spec.name, spec.description, json.dumps(spec.parameters))


@lru_cache(maxsize=256)
def _described(name: str, description: str, parameters: str) -> BaseTool:
    def uncalled(**_: Any) -> NoReturn:
        raise NotImplementedError(f"{name} is told to the model; who called the model calls it")

    return FunctionTool(uncalled, metadata=_metadata(ToolSpec(name, description, json.loads(parameters))))


def tied(
    specs: list[ToolSpec], functions: Mapping[str, Any] | Iterable[Any] | None, place: str = "<inline>"
) -> list[BaseTool]:
    """Tie the tools of a POML file to functions.

    Args:
        specs: The tools.
        functions: By the tool's name; or several, each a function or one of LlamaIndex's tools, under their own names.
        place: The template, for errors.

    Returns:
        LlamaIndex's tools. The model is told what the file says of them, and their arguments are checked by it: a call
        that the schema refuses is an error that tells the model what to do better, and the function is not called.

    Raises:
        ToolError: A tool is without a function, or a function without a tool.

    Example:
        >>> (tool,) = tied([ToolSpec("add", "Adds.", {"required": ["a"]})], {"add": lambda a, b=1: a + b})
        >>> tool(a=2).raw_output
        3
    """
    by_name = named(functions or {})
    match(specs, by_name, place)
    return [_tied(spec, by_name[spec.name], place) for spec in specs]


def _tied(spec: ToolSpec, function: Any, place: str) -> BaseTool:
    if isinstance(function, FunctionTool):
        return FunctionTool(
            _checked(spec, function.real_fn, place, frozenset(function.partial_params)),
            metadata=_metadata(spec, return_direct=function.metadata.return_direct),
            callback=function._callback,
            async_callback=function._async_callback,
            partial_params=function.partial_params,
        )
    if isinstance(function, BaseTool):
        call = function.acall if isinstance(function, AsyncBaseTool) else function.__call__
        metadata = _metadata(spec, return_direct=function.metadata.return_direct)
        return FunctionTool(_checked(spec, call, place), metadata=metadata, callback=lambda output: output)
    return FunctionTool(_checked(spec, function, place), metadata=_metadata(spec))


def _checked(
    spec: ToolSpec, function: Callable[..., Any], place: str, aside: frozenset[str] = frozenset()
) -> Callable[..., Any]:
    """The function, called only with what the schema allows, and with what the model knows nothing of."""
    properties = spec.parameters.get("properties") or {}

    def checked(args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
        # llama-index-core before 0.14.8 gives a single argument by place.
        given = {**dict(zip(properties, args, strict=False)), **given}
        unseen = {name: value for name, value in given.items() if name in aside or isinstance(value, Context)}
        arguments = {name: value for name, value in given.items() if name not in unseen}
        return {**check_arguments(spec, arguments, place), **unseen}

    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        @functools.wraps(function)
        async def acall(*args: Any, **given: Any) -> Any:
            return await function(**checked(args, given))

        return acall

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        return function(**checked(args, given))

    return call
