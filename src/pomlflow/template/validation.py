"""What a template is given, against what it takes: before Node sees it, and told with its place in the markup."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pomlflow import engine
from pomlflow.exceptions import MissingVariableError, Problem, VariableError
from pomlflow.template.inference import Inference
from pomlflow.template.javascript import analyse

__all__ = ["admitted", "checked", "encoded"]

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Where an expression may stand: in braces, or as all of an attribute.
_BRACED = re.compile(r"\{\{\s*(.+?)\s*\}\}(?!\})")
_ATTRIBUTE = re.compile(r"""\b(for|if|value)\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)


def admitted(inference: Inference, variables: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Leave out what no expression can name, and what POML (0.0.8) refuses although no expression needs it.

    Args:
        inference: What the template takes.
        variables: What it is given.

    Returns:
        The variables, without names that are no strings, and without extra ones of the name of a loop's or a
        ``<let>``'s pattern, ``[key, value]``: POML makes both parameters of one function.
    """
    extra = inference.patterns - {*inference.variables, *inference.optional}
    if not any(not isinstance(name, str) or name in extra for name in variables):
        return variables
    return {name: value for name, value in variables.items() if isinstance(name, str) and name not in extra}


def encoded(inference: Inference, variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Encode, leaving out extra variables without a form in JSON: an agent's state holds much that no prompt names.

    Args:
        inference: What the template takes.
        variables: What it is given.

    Returns:
        As `pomlflow.engine.serialize` gives it.

    Raises:
        VariableError: A variable that the template takes has no form in JSON.
    """
    try:
        return engine.encode(variables)
    except VariableError as refused:
        name = refused.variable
        if name in inference.variables or name in inference.optional or name not in variables:
            raise
        return encoded(inference, {other: value for other, value in variables.items() if other != name})


def checked(
    inference: Inference, variables: Mapping[str, Any], stand_ins: Collection[str], source: str, place: str | None
) -> None:
    """Refuse what expressions cannot name but try to, and what is missing.

    Args:
        inference: What the template takes.
        variables: What it is given.
        stand_ins: The names of what it need not be given.
        source: The markup.
        place: Its file, or what stands for it in errors; None for inline markup.

    Raises:
        MissingVariableError: A variable is missing.
        VariableError: An expression tries to name what it cannot.
    """
    for name in variables:
        if not engine.is_identifier(name) and _names(inference.expressions, name):
            raise VariableError(
                f"{place or '<inline>'}: the variable {name!r} is no plain JavaScript identifier, so no expression can "
                f"name it: rename it, to {re.sub(r'[^A-Za-z0-9_$]+', '_', name).strip('_')}_ for example",
                name,
            )
    missing = [name for name in inference.variables if name not in variables and name not in stand_ins]
    if missing:
        given = [name for name, value in variables.items() if not (name in inference.messages and _is_empty(value))]
        raise _missing(missing, given, [(source, place), *_included(inference.includes)])


def _is_empty(history: Any) -> bool:
    """Whether a history may be a default, which nobody gave."""
    return isinstance(history, list | tuple) and not history


def _missing(
    missing: list[str], variables: Iterable[str], texts: Sequence[tuple[str, str | None]]
) -> MissingVariableError:
    first, given = missing[0], sorted(variables)
    near = difflib.get_close_matches(first, given, 1)
    found = ((use, file) for text, file in texts if (use := _first_use(text, first)) is not None)
    at, file = next(found, (None, texts[0][1]))
    guard = f"typeof {first} === 'undefined' ? {'[]' if at and at.loop else repr('')} : {first}"
    why = (
        f"the template needs the variable{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
        f"given: {', '.join(given) or 'none'}. {f'Did you mean {near[0]!r}? ' if near else ''}"
        f"Pass it, or guard it in the template: {guard if at and at.loop else f'{{{{ {guard} }}}}'}"
    )
    if at is None:
        problem = Problem(why, file=file)
    else:
        problem = Problem(why, "MissingVariable", file, at.line, at.column, at.text, len(first))
    return MissingVariableError(str(problem), first, problem)


class _Use(NamedTuple):
    line: int
    column: int
    text: str
    loop: bool


def _first_use(markup: str, name: str) -> _Use | None:
    """Where an expression first needs a name; what only looks like an expression may be taken for one."""
    seen = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), markup)
    places = (start for start, code in sorted(_expressions(seen)) for start in _uses(code, start, name))
    word = re.search(rf"(?<![\w$.]){re.escape(name)}(?![\w$])", seen)  # a schema in JavaScript
    at = next(places, word.start() if word else None)
    if at is None:
        return None
    begin = markup.rfind("\n", 0, at) + 1
    loop = re.search(r"\bfor\s*=\s*([\"'])(?:(?!\1).)*\sin\s+$", markup[:at], re.IGNORECASE | re.DOTALL) is not None
    line = markup[begin:].split("\n", 1)[0].rstrip("\r")
    return _Use(markup.count("\n", 0, at) + 1, at - begin + 1, line, loop)


def _expressions(markup: str) -> Iterator[tuple[int, str]]:
    for found in _BRACED.finditer(markup):
        yield found.start(1), found[1]
    for found in _ATTRIBUTE.finditer(markup):
        group = 2 if found[2] is not None else 3
        code, start = found[group], found.start(group)
        if "{{" in code:
            continue
        if found[1].lower() == "for":
            pattern, _, code = code.partition(" in ")
            start += len(pattern) + len(" in ")
        yield start, code


def _uses(code: str, start: int, name: str) -> Iterator[int]:
    if any(name == used for used, _ in analyse(code).uses):
        found = re.search(rf"(?<![\w$.]){re.escape(name)}(?![\w$])", code)
        if found:
            yield start + found.start()


def _included(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        with suppress(OSError, ValueError):
            yield file.read_bytes().decode("utf-8", "replace"), str(file)


def _names(expressions: tuple[str, ...], name: str) -> bool:
    """Whether an expression names such a variable, or tries to."""
    if name.isidentifier():  # a reserved word; `in` and `new` are honest parts of other expressions
        named = re.compile(rf"\s*{re.escape(name)}\s*(?:[.\[?]|$)")
        return any(named.match(expression) for expression in expressions)
    named = re.compile(rf"(?<![\w$]){re.escape(name)}(?![\w$])")
    return any(named.search(expression) for expression in expressions)
