"""Check the variables that a template is given, and make errors that name the cause and its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from pomlflow import engine
from pomlflow.engine.errors import SCHEMA_REMEDY, characters
from pomlflow.exceptions import MissingVariableError, PomlError, Problem, RenderError, VariableError
from pomlflow.template.foreign import foreign_words, is_prose, quoted
from pomlflow.template.inference import loop_names
from pomlflow.template.javascript import analyse, bound_by
from pomlflow.template.markup import (
    ENTITIES,
    EXPRESSION,
    SCHEMAS,
    Document,
    Element,
    Fault,
    SourceText,
    parse,
    split_loop,
)
from pomlflow.template.source import Expression, Inference, Snapshot, Use

_NO_FILE = re.compile(r"ENOENT|file not found")
_NOT_EVALUATED = {
    "include": """write <include src="a.poml" if="which === 'a'"/> for each file""",
    "let": "name one file",
}
_NOT_DEFINED = re.compile(r"(\S+) is not defined")
_NO_LIST = "List is expected in for attribute."
_NO_LOOP = "item in list syntax is expected"
_OF = re.compile(r"(?:(?:let|const|var)\s++)?(.*\S)\s++of\s++([^{]+)")  # a loop of JavaScript
_IN_JSON = re.compile(r" at position (\d+) \(line \d+ column \d+\)$")  # the line is that in the element
_NO_VALUE = "Cannot read properties of undefined"
_ROWS = "records= takes rows: a list of dicts or of lists, or a DataFrame"
# Remedies by a pattern of POML's message.
_REMEDIES = {
    "without a list context$": "put the <item> into a <list>",
    "^EISDIR": "name a file, not a folder",
    r"\(reading 'def'\)$": "in a schema of zod each value is a type, such as z.string()",
    "unsupported image format|Input Buffer is empty": "base64= takes a text in base64; of bytes, write "
    "base64=\"{{x.toString('base64')}}\"",
    "Records must be an array|of Table: Error: Cannot determine parser": _ROWS,
    "of TableMarkup: .*undefined or null": f'{_ROWS}; to leave out an empty table, write if="rows.length"',
    "^Cannot use 'in' operator": "write x.includes(y) for a text or a list; in asks for a key of an object",
}

_SHOWN = 20  # the maximum number of names in a list of variables
_EXPLAINED = 100  # the maximum number of problems whose place is examined; an error's text has fewer
# Problems that no value of a variable can cause.
_STATIC = re.compile(r"Component \S+ not found|(?:Invalid or unexpected|Unexpected)(?! .*JSON)")
_SYNTAX = ("unexpected character", "Expecting")  # how the errors of POML's parser begin
_UNKNOWN = re.compile(r"Component (\S+) not found")
_TEXT = "value= is a JavaScript expression: put a text in quotes of its own, "
_ENTITY = re.compile(r"[&#]#?\w+;")
_DECODED = "is not decoded in an expression: write && as it is, a < b as b > a, and a quote as the other kind of quote"
_LOOP = 'POML has loops by an attribute: <p for="item in items">{{item}}</p>'
_CONDITION = 'POML has conditions by an attribute: <p if="condition">…</p>'
# Remedies for elements of other template languages, by the name of the element.
_INSTEAD = {
    **dict.fromkeys(("for", "foreach", "loop", "each"), _LOOP),
    **dict.fromkeys(("if", "else", "elif", "elseif", "when", "unless", "choose"), _CONDITION),
    "system": "a system message is <system-msg>…</system-msg>",
    **dict.fromkeys(("user", "human"), "a user's message is <human-msg>…</human-msg>"),
    **dict.fromkeys(("assistant", "ai"), "a model's message is <ai-msg>…</ai-msg>"),
    **dict.fromkeys(("var", "variable", "set"), 'a variable is set by <let name="x" value="…"/>'),
    "message": "messages are <system-msg>, <human-msg> and <ai-msg>",
}


def encode_variables(inference: Inference, variables: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Encode variables; leave out those without a form in JSON if the template does not use them."""
    try:
        return engine.encode(variables)
    except VariableError as error:
        name = error.variable
        if name in inference.variables or name in inference.optional or name not in variables:
            raise
        return encode_variables(inference, {other: value for other, value in variables.items() if other != name})


def check_values(snapshot: Snapshot, variables: Mapping[str, Any]) -> None:
    """Raise a `VariableError` for a value from which POML silently makes an empty table.

    An element under an ``if`` or a ``for`` may not be rendered with this value, so its values are not checked.
    """
    for use in snapshot.inference.uses:
        expression, value = use.expression, variables.get(use.name)
        if expression.attribute != "records" or not use.alone or use.conditional or value is None:
            continue
        if not _has_no_rows(value):
            continue
        kind = f"is of the type {type(value).__name__}"
        why = f"{use.name} {kind} and has no rows; {_ROWS}; for a Series, pass series.reset_index()"
        problem = snapshot.problem(why, "VariableError", expression.source, use.offset, len(use.name))
        raise VariableError(str(problem), use.name)


def _has_no_rows(value: Any) -> bool:
    """Return whether the first value of a list, an array or a Series is no row: neither an object nor a list."""
    if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) != 1:
        return False
    # Encode only the first row, as {"row":…}: the byte at index 7 is the first one of the row's JSON.
    return any(engine.encode({"row": row})[0][7:8] not in {b"{", b"["} for row in islice(value, 1))


def missing_names(error: RenderError, inference: Inference, given: Iterable[str]) -> tuple[str, ...]:
    """Return the variables that expressions needed in a failed render and that were not given."""
    takes = {use.name for use in inference.uses} - set(given)
    return tuple(dict.fromkeys(name for problem in error.problems if (name := _undefined(problem)) in takes))


def _undefined(problem: Problem) -> str:
    found = _NOT_DEFINED.fullmatch(problem.message)
    return found[1] if found else ""


def explained(
    error: RenderError, snapshot: Snapshot, variables: Mapping[str, Any], missing: Sequence[str], retry: object
) -> PomlError:
    """Return the error of a failed render with its cause.

    `retry` is the outcome of a second render, with placeholders for the `missing` variables.
    """
    unrelated = _unrelated_problems(error, missing, retry) if isinstance(retry, RenderError) else []
    if missing and not unrelated:
        return _missing_variables(missing, error, snapshot, variables)
    problems = dict.fromkeys([*unrelated, *error.problems])
    return _with_causes(RenderError(problems, error.hint), snapshot, variables, unrelated or problems)


def _unrelated_problems(error: RenderError, names: Sequence[str], retry: RenderError) -> list[Problem]:
    """Return the problems that missing variables did not cause."""
    unrelated: list[Problem] = []
    before, missing = set(error.problems), set(names)
    for problem in retry.problems:
        also_before = problem in before and _undefined(problem) not in missing
        if also_before or _STATIC.match(problem.message) or _undefined(problem) in ENTITIES:
            unrelated.append(problem)
    return unrelated


def _missing_variables(
    names: Sequence[str], error: RenderError, snapshot: Snapshot, variables: Iterable[str]
) -> MissingVariableError:
    """Return the error for missing variables, with the place where an expression needed the first of them."""
    first, given = names[0], sorted(set(variables) - set(snapshot.inference.messages))
    reported = next(problem for problem in error.problems if _undefined(problem) == first)
    use = _use_of(first, reported, snapshot)
    why = (
        f"the template needs the variable{'s' if len(names) > 1 else ''} {_listed(names)}; "
        f"given: {_listed(given) or 'none'}. {_remedy_of_missing(first, use, given)}"
    )
    problem = snapshot.problem(why, "MissingVariable", use.expression.source, use.offset, len(first))
    return MissingVariableError(str(problem), first, problem)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_SHOWN])} and {more} more"


def _remedy_of_missing(name: str, use: Use, given: Sequence[str]) -> str:
    kind, code = use.expression.kind, use.expression.code
    foreign = next((found for found in foreign_words(code) if found.word == name), None)
    if foreign is not None:
        return f"{name!r} is {foreign.language}, and an expression is JavaScript: write {foreign.instead}"
    if "-" in code and code.strip() in given:
        return f"{code.strip()!r} is a subtraction in JavaScript: give the variable a name without a hyphen"
    near = difflib.get_close_matches(name, given, 1)
    guard = f"typeof {name} === 'undefined' ? {'[]' if kind == 'for' else repr('')} : {name}"
    remedy = f"Pass it, or guard it in the template: {guard if kind == 'for' else f'{{{{ {guard} }}}}'}"
    if kind == "value" and use.expression.source.text[use.offset - 1] in "\"'" and is_prose(code):
        remedy += f". If it is a text, put it in quotes of its own: value=\"'{code}'\""
    elif kind == "schema":
        remedy = f"Pass it, or write a schema: {SCHEMA_REMEDY}"
    return f"The given {near[0]!r} may be a misspelling of {name!r}. {remedy}" if near else remedy


def _use_of(name: str, reported: Problem, snapshot: Snapshot) -> Use:
    """Return the use that a problem is about: the first one in its file that is not before its place."""
    uses = [use for use in snapshot.inference.uses if use.name == name]
    source, offset = _place(reported, snapshot) or (None, 0)
    here = [use for use in uses if use.expression.source == source]
    after = [use for use in here if use.offset >= offset]
    return min(after or here or uses, key=lambda use: use.offset)


def _with_causes(
    error: RenderError, snapshot: Snapshot, variables: Mapping[str, Any], unrelated: Iterable[Problem]
) -> RenderError:
    """Return an error with its cause as the first problem, with remedies and the reasons for missing files."""
    unset = _unset_names(error, snapshot) - {use.name for use in snapshot.inference.uses}
    causes = [one for one in error.problems if _undefined(one) not in unset] or error.problems
    first = [_clarified(one, snapshot, variables) for one in causes[:_EXPLAINED]]
    problems = [replace(one, remedy=one.remedy or _remedy_of(one, snapshot)) for one in first]
    problems += causes[_EXPLAINED:]
    fault = _cause(problems[0], snapshot)
    problems = [fault, *problems] if fault is not None else _in_order(problems, unrelated)
    hints = [None if problems[0].remedy else error.hint]
    hints += [why for file, why in snapshot.missing if file in str(error)]
    return RenderError(problems, "\n".join(dict.fromkeys(filter(None, hints))) or None)


def _unset_names(error: RenderError, snapshot: Snapshot) -> set[str]:
    """Return the names that each ``<let>`` and loop with a problem in its tag would have set: their uses fail too."""
    places = [place for one in error.problems[:_EXPLAINED] if (place := _place(one, snapshot))]
    names: set[str] = set()
    for source in dict.fromkeys(source for source, _ in places):
        offsets = [offset for other, offset in places if other == source]
        for element in parse(*source).elements:
            if any(element.start <= offset < element.end for offset in offsets):
                names.update(loop_names(element.find("for").text))
                names.update(bound_by(element.find("name").text) if element.kind == "let" else ())
    return names


def _in_order(problems: Sequence[Problem], unrelated: Iterable[Problem]) -> list[Problem]:
    """Sort problems by file and place; those that a missing variable may have caused come last."""
    places, files = {one.place for one in unrelated}, list(dict.fromkeys(one.file for one in problems))

    def key(one: Problem) -> tuple[bool, int, int, int]:
        # An undefined name with a remedy is a word of another language.
        is_unrelated = one.place in places or (bool(_undefined(one)) and one.remedy is not None)
        return not is_unrelated, files.index(one.file), one.line or 0, one.column or 0

    return sorted(problems, key=key)


def _clarified(problem: Problem, snapshot: Snapshot, variables: Mapping[str, Any]) -> Problem:
    """Return a problem with a clearer message or a remedy if it is about an entity, a loop or an empty history."""
    if (entity := _undefined(problem)) in ENTITIES:
        return replace(problem, message=f"&{entity}; is not decoded in an expression")
    if found := _IN_JSON.search(problem.message):
        return _with_line_in_file(problem, found, snapshot)
    place = _place(problem, snapshot) if problem.message.startswith((_NO_LIST, _NO_VALUE)) else None
    expression = _expression_at(*place, snapshot)[0] if place else None
    if expression is None:
        return problem
    for use in snapshot.inference.uses:
        name, value = use.name, variables.get(use.name)
        if use.expression != expression:
            continue
        if problem.message == _NO_LIST and use.alone:
            kind = "None" if value is None else f"of the type {type(value).__name__}"
            pairs = f'; the pairs of a dict are for="[key, value] in Object.entries({name})"'
            remedy = f"pass a list as {name}{pairs if isinstance(value, Mapping) else ''}"
            return replace(problem, message=f"{_NO_LIST[:-1]}: {name} is {kind}", remedy=remedy)
        is_empty = isinstance(value, list | tuple) and not value
        if problem.message != _NO_LIST and is_empty and name in snapshot.inference.messages:
            remedy = f'{name} has no messages in this render: write {name}[0]?.content, or if="{name}.length"'
            return replace(problem, remedy=remedy)
    return problem


def _with_line_in_file(problem: Problem, found: re.Match[str], snapshot: Snapshot) -> Problem:
    """Return a problem in the JSON of a schema with its line in the file, or without a line if that is unknown."""
    place = _place(problem, snapshot)
    if place is None or (element := _element_at(*place)).kind not in SCHEMAS:
        return problem
    body, message = element.text(), problem.message[: found.start()]
    json = body.text.lstrip()
    if "{{" not in json and len(body.pieces) == 1:
        at = body.at(len(body.text) - len(json) + characters(json, int(found[1])))
        message += f", in line {place[0].locate(at)[0]}"
    return replace(problem, message=message)


def _element_at(source: SourceText, offset: int) -> Element:
    return [one for one in parse(*source).elements if one.start <= offset][-1]


def _cause(problem: Problem, snapshot: Snapshot) -> Problem | None:
    """Return the cause of a syntax error as a problem of its own, or None if it is not known."""
    is_syntax = problem.message.startswith(_SYNTAX)
    place = _place(problem, snapshot) if is_syntax or _STATIC.match(problem.message) else None
    if place is None:
        return None
    source, offset = place
    document = parse(*source)
    fault = document.cause(offset) if is_syntax else _in_loop(document, offset)
    if fault is None:
        return None
    return snapshot.problem(fault.message, "MarkupError", source, fault.offset, fault.width, fault.remedy)


def _in_loop(document: Document, offset: int) -> Fault | None:
    """Return the fault of the outermost loop around an offset that binds no valid names."""
    for element in document.elements:
        passage = element.find("for")
        if element.start <= offset < element.content_end and "{{" not in passage.text and _binds_badly(passage.text):
            why = f"for= binds one name, or a pattern: {passage.text}"
            return Fault(passage.at(0), len(passage.text), why, 'write for="item in items"; the index is loop.index')
    return None


def _binds_badly(loop: str) -> bool:
    parts = split_loop(loop)
    return parts is not None and (parts[0].startswith("(") or analyse(f"({parts[0]}) => 0").broken)


def _remedy_of(problem: Problem, snapshot: Snapshot) -> str | None:
    """Return the remedy for a problem, or None if it is not known."""
    message = problem.message
    if unknown := _UNKNOWN.match(message):
        return _INSTEAD.get(unknown[1].lower())
    if message.startswith("POML version"):
        return f"poml {engine.poml_version()} is installed: change the version, or remove it"
    if fixed := next((remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, message)), None):
        return fixed
    place = None if message.startswith(_SYNTAX) else _place(problem, snapshot)
    if place is None:
        return None
    source, offset = place
    if message.startswith(_NO_LOOP) or _NO_FILE.search(message):
        return _remedy_in(_element_at(source, offset), message, snapshot)
    expression, before = _expression_at(source, offset, snapshot)
    # If text is in between, the expression is not that of the problem.
    is_far = len(before) > problem.width and before.strip("{ \t\r\n")
    return None if expression is None or expression.kind == "schema" or is_far else _remedy(expression, before)


def _remedy_in(element: Element, message: str, snapshot: Snapshot) -> str | None:
    """Return the remedy for a malformed loop or a missing file in an element."""
    if message.startswith(_NO_LOOP):
        loop = _OF.fullmatch(element.find("for").text.strip())
        return f"write {loop[1]} in {loop[2]}" if loop else 'write for="item in items"'
    if "{{" in message and element.kind in _NOT_EVALUATED:
        return f"the src of <{element.name}> is not evaluated: {_NOT_EVALUATED[element.kind]}"
    if snapshot.uri is not None:
        return None
    return f"a path is relative to {'the folder of the .poml file' if snapshot.path else snapshot.folder}"


def _expression_at(source: SourceText, offset: int, snapshot: Snapshot) -> tuple[Expression | None, str]:
    """Return the first expression that is not before an offset, and the text between the offset and the expression."""
    after = [one for one in snapshot.inference.expressions if one.source.file == source.file and one.offset >= offset]
    expression = min(after, key=lambda one: one.offset, default=None)
    return expression, source.text[offset : expression.offset] if expression else ""


def _remedy(expression: Expression, before: str) -> str | None:
    """Return the remedy for an expression that cannot be evaluated, or None; `before` is the text in front of it."""
    code, kind = expression.code, expression.kind
    if entity := _ENTITY.search(code):
        return EXPRESSION if kind == "text" else f"{entity[0]} {_DECODED}"
    if kind == "for" and "{{" in before + code:
        return 'for= takes no braces: for="item in items"'
    if kind in {"text", "attribute"} and code.find("{{") > 0:
        return "close the first {{ with }}"
    if kind == "value" and is_prose(code) and analyse(code).broken:
        return f'{_TEXT}value="{quoted(code)}"'
    found = next(foreign_words(code), None)
    return found and f"an expression is JavaScript, and {found.word!r} is {found.language}: write {found.instead}"


def _place(problem: Problem, snapshot: Snapshot) -> tuple[SourceText, int] | None:
    """Return the text of a problem's file and the problem's offset there; None if one of them is unknown."""
    for source in snapshot.inference.sources:
        if snapshot.file_of(source) == problem.file and problem.line is not None and problem.column is not None:
            return source, source.offset(problem.line, problem.column)
    return None
