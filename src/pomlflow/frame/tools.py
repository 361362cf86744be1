"""``<tool-definition>``: what a model is told of a tool, the function that it stands for, and the call's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pomlflow.exceptions import ToolArgumentsError, ToolError
from pomlflow.frame.schema import strict_form
from pomlflow.frame.validation import problems, without_nulls
from pomlflow.template.markup import parse_markup

__all__ = ["ToolSpec", "check_accepts", "check_arguments", "match", "named", "tool_specs"]

_TOOLS = frozenset({"tool", "tool-def", "tooldef", "tool-definition"})


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a POML file defines it.

    Attributes:
        name: Its name.
        description: What it is for.
        parameters: The JSON Schema of its arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def openai(self, *, strict: bool = False) -> dict[str, Any]:
        """OpenAI's shape, which every client of LangChain's and LlamaIndex's translates from.

        Args:
            strict: Whether to say ``strict``, which the OpenAI SDK wants of each tool beside a ``response_format``
                (openai 2: "`weather` is not strict. Only `strict` function tools can be auto-parsed"); the
                parameters are then in `strict_form`, and `check_arguments` undoes what that changed.
        """
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        function["parameters"] = strict_form(self.parameters) if strict else dict(self.parameters)
        return {"type": "function", "function": {**function, "strict": True} if strict else function}


def tool_specs(output: Mapping[str, Any]) -> list[ToolSpec]:
    """Read the tools of a render.

    Args:
        output: The record's output, which has ``tools`` where the markup has them.

    Returns:
        In the markup's order.

    Example:
        >>> tool_specs({"tools": [{"type": "function", "name": "now", "parameters": {"type": "object"}}]})
        [ToolSpec(name='now', description='', parameters={'type': 'object'})]
    """
    return [
        ToolSpec(tool["name"], tool.get("description") or "", tool.get("parameters") or {"type": "object"})
        for tool in output.get("tools") or ()
    ]


def named(functions: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Give functions by the name of the tool that each stands for.

    Args:
        functions: By name; or several, each a function or a framework's tool, under their own names (``name``, else
            ``metadata.name``, else ``__name__``).

    Returns:
        By name.

    Raises:
        ToolError: One has no name, is not to be called, or two have the same name.
    """
    if isinstance(functions, Mapping):
        pairs = list(functions.items())
    else:
        pairs = [(_name(function), function) for function in functions]
    found: dict[str, Any] = {}
    for name, function in pairs:
        if name in found:
            raise ToolError(
                f"two functions are given for the tool {name!r}: give them by name, {{name: function}}", name
            )
        if not isinstance(function, Callable) and not hasattr(function, "name"):  # type: ignore[arg-type]
            raise ToolError(f"the tool {name!r} takes a function, not a {type(function).__name__}", name)
        found[name] = function
    return found


def _name(function: Any) -> str:
    metadata = getattr(function, "metadata", None)  # LlamaIndex's tools have their name there
    name = getattr(function, "name", None) or getattr(metadata, "name", None) or getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ToolError(f"{function!r} has no name of its own: give it by name, {{name: function}}", "")
    return name


def match(specs: Sequence[ToolSpec], names: Iterable[str], place: str = "<inline>", source: str | None = None) -> None:
    """Check that each tool has a function and each function a tool.

    Args:
        specs: The tools of a render.
        names: Those of the functions.
        place: The template, for errors.
        source: The markup, where variables decide what it defines: a function that it names is then allowed to be
            without a tool in this render.

    Raises:
        ToolError: One is without the other; it names them all.
    """
    known, given = [spec.name for spec in specs], list(names)
    without_function = [name for name in known if name not in given]
    without_tool = [name for name in given if name not in known and not _may_define(source, name)]
    if not without_function and not without_tool:
        return
    wrong = []
    if without_function:
        wrong.append(f"defines {_listed(without_function)} without a function (give one under that name)")
    if without_tool:
        wrong.append(f"has no <tool-definition> for the function {_listed(without_tool)} (add one, or take it away)")
    raise ToolError(f"{place} {' and '.join(wrong)}", [*without_function, *without_tool][0])


def _may_define(source: str | None, name: str) -> bool:
    """Whether markup may define a tool of that name for other variables."""
    if source is None:
        return False
    tools = (element for element in parse_markup(source).walk() if element.name in _TOOLS)
    names = [element.find("name").text for element in tools]
    return any(written == name or "{{" in written for written in names)  # an expression may give any name


def check_accepts(spec: ToolSpec, accepted: Iterable[str], place: str = "<inline>") -> None:
    """Check that a function takes what its tool's definition has, before a model fills it in and it is dropped.

    Args:
        spec: The tool.
        accepted: The names of the function's arguments.
        place: The template, for errors.

    Raises:
        ToolError: The function lacks an argument; it names them all.
    """
    names = set(accepted)
    if lacking := [name for name in spec.parameters.get("properties", ()) if name not in names]:
        raise ToolError(
            f"{place}: the <tool-definition> {spec.name!r} has {_listed(lacking)}, and its function does not take that",
            spec.name,
        )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def check_arguments(spec: ToolSpec, arguments: Mapping[str, Any], place: str = "<inline>") -> dict[str, Any]:
    """Check the arguments of a call by the tool's own schema.

    Args:
        spec: The tool.
        arguments: What the model calls it with.
        place: The template, for errors.

    Returns:
        The arguments, without the nulls that strict mode puts in the place of optional ones.

    Raises:
        ToolArgumentsError: They are not as the schema says. Its text tells a model what to do better.
        SchemaError: The schema itself is wrong.

    Example:
        >>> check_arguments(ToolSpec("now", parameters={"type": "object", "required": ["zone"]}), {})
        Traceback (most recent call last):
            ...
        pomlflow.exceptions.ToolArgumentsError: now: $: 'zone' is a required property (by <inline>)
    """
    checked: dict[str, Any] = without_nulls(dict(arguments), spec.parameters, place)
    if found := problems(checked, spec.parameters, place):
        raise ToolArgumentsError(f"{spec.name}: {'; '.join(found)} (by {place})", spec.name, arguments, found)
    return checked
