"""Checks of the variables that a template is given, and errors that name the true fault and its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pomlflow import engine
from pomlflow.exceptions import MissingVariableError, Problem, RenderError, VariableError
from pomlflow.template.files import decode, read_file
from pomlflow.template.javascript import analyse
from pomlflow.template.markup import Element, Passage, SourceText, parse_markup
from pomlflow.template.source import Inference, Snapshot, Use

__all__ = [
    "check_names",
    "encode_variables",
    "missing_names",
    "missing_variables",
    "nameable",
    "own_problems",
    "with_hint",
]

_NOT_DEFINED = re.compile(r"(\S+) is not defined")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos);")
_SHOWN = 20  # names in a message

_ESCAPES = "in text, write #amp; for & and #lt; for <"
_EXPRESSION = (
    'an expression in text cannot hold & or <: name its value first, <let name="both" value="a && b"/>, or write it '
    "in an if=; turn a < b round: b > a"
)
_ATTRIBUTE = "in an attribute, write #lt; for <; in an expression, turn a < b round: b > a"
_TEXT = "value= is a JavaScript expression: put a text in quotes of its own, "
_DECODED = "&amp; and &lt; are not decoded in an expression: write && as it is, and turn a < b round: b > a"


def nameable(inference: Inference, variables: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Leave out variables that no expression can name, and those that POML (0.0.8) refuses though none needs them.

    The latter have the name of a loop's or a ``<let>``'s pattern, ``[key, value]``: POML makes both parameters of one
    function.
    """
    extra = inference.patterns - {*inference.variables, *inference.optional}
    if not any(not isinstance(name, str) or name in extra for name in variables):
        return variables
    return {name: value for name, value in variables.items() if isinstance(name, str) and name not in extra}


def encode_variables(inference: Inference, variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Encode as `pomlflow.engine.encode`, without extra variables that have no form in JSON, as an agent's state has.

    Raises:
        VariableError: A variable that the template takes has no form in JSON.
    """
    try:
        return engine.encode(variables)
    except VariableError as refused:
        name = refused.variable
        if name in inference.variables or name in inference.optional or name not in variables:
            raise
        return encode_variables(inference, {other: value for other, value in variables.items() if other != name})


def check_names(inference: Inference, variables: Mapping[str, Any], place: str | None) -> None:
    """Raise a `VariableError` for a variable that an expression tries to name and cannot, as ``{{ my-key }}``."""
    for name in variables:
        if not engine.is_identifier(name) and _names(inference.expressions, name):
            raise VariableError(
                f"{place or '<inline>'}: the variable {name!r} is not a plain JavaScript identifier, so no expression "
                f"can name it: rename it, to {re.sub(r'[^A-Za-z0-9_$]+', '_', name).strip('_')}_ for example",
                name,
            )


def _names(expressions: tuple[str, ...], name: str) -> bool:
    if name.isidentifier():  # a reserved word; `in` and `new` are valid parts of other expressions
        named = re.compile(rf"\s*{re.escape(name)}\s*(?:[.\[?]|$)")
        return any(named.match(expression) for expression in expressions)
    named = re.compile(rf"(?<![\w$]){re.escape(name)}(?![\w$])")
    return any(named.search(expression) for expression in expressions)


def missing_names(error: RenderError, inference: Inference, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The template's variables that expressions needed in a failed render, and that were not given."""
    takes = {use.name for use in inference.uses} - given.keys()
    return tuple(dict.fromkeys(name for problem in error.problems if (name := _undefined(problem)) in takes))


def _undefined(problem: Problem) -> str:
    found = _NOT_DEFINED.fullmatch(problem.message)
    return found[1] if found else ""


def own_problems(error: RenderError, names: Sequence[str], again: RenderError | None) -> list[Problem]:
    """The problems that are not due to missing variables.

    Args:
        error: The failed render's.
        names: The missing variables.
        again: That of a render with placeholders for them; None where it had none.
    """
    again_problems = again.problems if again else ()
    return [problem for problem in error.problems if _undefined(problem) not in names and problem in again_problems]


def missing_variables(
    names: Sequence[str], error: RenderError, snapshot: Snapshot, place: str | None, given: Mapping[str, Any]
) -> MissingVariableError:
    """Make the error of missing variables, with the place where an expression needed the first of them."""
    inference, first = snapshot.inference, names[0]
    reported = next(problem for problem in error.problems if _undefined(problem) == first)
    use = _use_of(first, reported, inference.uses, place)
    shown = sorted(name for name, value in given.items() if not (name in inference.messages and _is_empty(value)))
    near = difflib.get_close_matches(first, shown, 1)
    guard = f"typeof {first} === 'undefined' ? {'[]' if use and use.kind == 'for' else repr('')} : {first}"
    why = (
        f"the template needs the variable{'s' if len(names) > 1 else ''} {_listed(names)}; "
        f"given: {_listed(shown) or 'none'}. {f'Did you mean {near[0]!r}? ' if near else ''}"
        f"Pass it, or guard it in the template: {guard if use and use.kind == 'for' else f'{{{{ {guard} }}}}'}"
    )
    if use is None:
        line, column, text, width = reported.line, reported.column, reported.text, reported.width
    else:
        (line, column, text), width = use.source.place(use.offset), len(first)
    problem = Problem(why, "MissingVariable", reported.file, line, column, text, width)
    return MissingVariableError(str(problem), first, problem)


def _use_of(name: str, reported: Problem, uses: Iterable[Use], place: str | None) -> Use | None:
    """The use that a problem is about: the first in its file that is not before its place."""
    here = [use for use in uses if use.name == name and (str(use.file) if use.file else place) == reported.file]
    start = reported.line or 1, reported.column or 1
    after = [use for use in here if (use.line, use.column) >= start]
    return min(after or here, key=lambda use: use.offset, default=None)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_empty(history: Any) -> bool:
    """Whether a history may be a default."""
    return isinstance(history, list | tuple) and not history


def with_hint(error: RenderError, snapshot: Snapshot, place: str | None) -> RenderError:
    """Add to an error what to do about its first problem, and why files that it names do not exist."""
    text = str(error)
    hints = [_hint(error.problems[0], snapshot, place) or error.hint]
    hints += [why for file, why in snapshot.missing if file in text]
    found = "\n".join(dict.fromkeys(filter(None, hints)))
    return RenderError(error.problems, found) if found and found != error.hint else error


def _hint(problem: Problem, snapshot: Snapshot, place: str | None) -> str | None:
    source = _source_of(problem, snapshot, place)
    if source is None or problem.line is None or problem.column is None:
        return None
    offset, root = source.offset(problem.line, problem.column), parse_markup(source.text)
    element, value = _at(root, offset)
    if problem.message.startswith("unexpected character"):
        if offset in element.unquoted:
            return _unquoted(source.text, offset)
        return _ATTRIBUTE if value else _in_text(source.text, offset)
    if problem.message.startswith("Expecting"):
        before = _at(root, offset - 1, texts=True)[1]
        return _in_text(source.text, offset - 1) if before and "<" in before.text else None
    return None if value is None else _in_value(element, value)


def _in_value(element: Element, value: Passage) -> str | None:
    if _ENTITY.search(value.text):
        return _DECODED
    is_text = value.text.replace(" ", "").isalnum() and analyse(value.text).broken
    return f"{_TEXT}value=\"'{value.text}'\"" if element.name == "let" and is_text else None


def _unquoted(text: str, offset: int) -> str:
    end = text.find("}}", offset) + 2 if text.startswith("{{", offset) else 1
    return f'put the value of an attribute in quotes: ="{text[offset:end] if end > 1 else "…"}"'


def _in_text(text: str, offset: int) -> str:
    return _EXPRESSION if text.rfind("{{", 0, offset + 1) > text.rfind("}}", 0, offset) else _ESCAPES


def _source_of(problem: Problem, snapshot: Snapshot, place: str | None) -> SourceText | None:
    if problem.file == place:
        return SourceText(snapshot.source)
    file = Path(problem.file or "")
    content = read_file(file) if file in snapshot.inference.includes else None
    return None if content is None else SourceText(decode(content, str(file))[0], file)


def _at(root: Element, offset: int, *, texts: bool = False) -> tuple[Element, Passage | None]:
    """The element that an offset stands in, and the attribute's value there; or, of `texts`, the text."""
    for element in root.walk():
        children = [child for child in element.children if isinstance(child, Passage)]
        values = children if texts else [value for _, value in element.attributes]
        here = next((value for value in values if value.at(0) - 1 <= offset <= value.at(0) + len(value.text)), None)
        if here is not None or element.start <= offset < element.end:
            return element, here
    return root, None
