"""Convert ``<tool-definition>`` for models, match tools with functions, and check the arguments of calls."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pomlflow.exceptions import ToolArgumentsError, ToolError
from pomlflow.frame.schema import problems, without_nulls


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a POML file defines it."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def openai(self) -> dict[str, Any]:
        """Return the tool in OpenAI's format, which LangChain and LlamaIndex translate for other providers."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def tool_specs(output: Mapping[str, Any]) -> list[ToolSpec]:
    """Return the tools of a record's output, in the markup's order."""
    return [
        ToolSpec(tool["name"], tool.get("description") or "", tool.get("parameters") or {"type": "object"})
        for tool in output.get("tools") or ()
    ]


def with_docstring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function; a ``functools.partial`` without a docstring of its own gets that of its function."""
    if not isinstance(function, functools.partial) or "__doc__" in vars(function):
        return function
    made = copy.copy(function)
    made.__doc__ = function.func.__doc__
    return made


def functions_by_name(functions: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Return functions by the names of their tools, from a dict of them or from functions that have these names."""
    if isinstance(functions, Mapping):
        pairs = list(functions.items())
    else:
        pairs = [(_name(function), function) for function in functions]
    found: dict[str, Any] = {}
    for name, function in pairs:
        if name in found:
            raise ToolError(f"two functions have the name {name!r}; pass them by name, {{name: function}}", name)
        if not isinstance(function, Callable) and not hasattr(function, "name"):  # type: ignore[arg-type]
            raise ToolError(f"the tool {name!r} needs a function, not a {type(function).__name__}", name)
        found[name] = function
    return found


def _name(function: Any) -> str:
    metadata = getattr(function, "metadata", None)  # LlamaIndex's tools have their name there
    name = getattr(function, "name", None) or getattr(metadata, "name", None) or getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ToolError(f"{function!r} has no name of its own; pass it by name, {{name: function}}", "")
    return name


def check_functions(
    specs: Sequence[ToolSpec], names: Iterable[str], label: str = "<inline>", *, exact: bool = True
) -> None:
    """Raise a `ToolError` if a tool has no function or, if `exact`, a function has no tool; the error names them all.

    Pass ``exact=False`` if the tools depend on variables: another render may define tools for the other functions.
    """
    known, given = [spec.name for spec in specs], list(names)
    without_function = [name for name in known if name not in given]
    without_tool = [name for name in given if name not in known] if exact else []
    if not without_function and not without_tool:
        return
    wrong = []
    if without_function:
        wrong.append(f"defines {_listed(without_function)} without a function (pass one under that name)")
    if without_tool:
        wrong.append(f"has no <tool-definition> for the function {_listed(without_tool)} (add one, or remove it)")
    raise ToolError(f"{label} {' and '.join(wrong)}", [*without_function, *without_tool][0])


def check_accepts(spec: ToolSpec, accepted: Iterable[str], label: str = "<inline>") -> None:
    """Raise a `ToolError` if a function does not accept an argument of its tool; frameworks would drop it silently."""
    names = set(accepted)
    if lacking := [name for name in spec.parameters.get("properties", ()) if name not in names]:
        raise ToolError(
            f"{label}: the function of <tool-definition> {spec.name!r} does not accept {_listed(lacking)}", spec.name
        )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def check_arguments(spec: ToolSpec, arguments: Mapping[str, Any], label: str = "<inline>") -> dict[str, Any]:
    """Return the arguments of a call without strict mode's nulls, or raise a `ToolArgumentsError` for the model."""
    checked: dict[str, Any] = without_nulls(dict(arguments), spec.parameters, label)
    if found := problems(checked, spec.parameters, label):
        raise ToolArgumentsError(f"{spec.name}: {'; '.join(found)} (by {label})", spec.name, arguments, found)
    return checked
