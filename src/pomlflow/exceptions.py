"""The exceptions of pomlflow.

::

    PomlError                      (also a RuntimeError, as poml.poml() raises)
    ├── TemplateNotFoundError      the .poml file does not exist (also a FileNotFoundError)
    ├── VariableError              POML cannot accept a variable's name or value
    │   └── MissingVariableError   a variable that the template needs was not given (also a KeyError)
    ├── RenderError                POML refused the template, or could not render it
    │   └── RenderTimeoutError     the render took longer than its limit (also a TimeoutError)
    ├── EngineError                Node failed, not the template
    │   ├── EngineBusyError        too many renders wait for a Node process
    │   ├── NodeNotFoundError      there is no Node.js (also a FileNotFoundError)
    │   └── WorkerDiedError        the Node process ended, or broke its protocol, in a render
    ├── SettingError               an unsupported or repeated setting of <runtime> (also a ValueError)
    ├── ToolError                  a tool without a function, or a function without a tool (also a ValueError)
    │   └── ToolArgumentsError     a model called a tool with arguments that do not match its schema
    ├── SchemaError                a schema of the template is not a JSON Schema (also a ValueError)
    ├── AnswerError                a model's answer does not match <output-schema> (also a ValueError)
    ├── RegistryError              MLflow's registry cannot return or store a prompt
    │   ├── PromptNotFoundError    it has no such prompt, version or alias (also a LookupError)
    │   ├── NotPomlError           the prompt is not POML
    │   └── CandidateError         an optimiser's text has lost or added a part of the prompt, or is not POML
    ├── TraceNotFoundError         no such trace in MLflow's store (also a LookupError)
    ├── ConversionError            a prompt of a framework cannot be expressed in POML (also a ValueError)
    └── ConfigurationError         invalid configuration value

Catch `PomlError` to catch them all. Every message names the file where there is one, and the remedy.

No error of a render is a ValueError or a TypeError: LlamaIndex's query engines (0.14) only log those and return
"Empty Response".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "AnswerError",
    "CandidateError",
    "ConfigurationError",
    "ConversionError",
    "EngineBusyError",
    "EngineError",
    "MissingVariableError",
    "NodeNotFoundError",
    "NotPomlError",
    "PomlError",
    "Problem",
    "PromptNotFoundError",
    "RegistryError",
    "RenderError",
    "RenderTimeoutError",
    "SchemaError",
    "SettingError",
    "TemplateNotFoundError",
    "ToolArgumentsError",
    "ToolError",
    "TraceNotFoundError",
    "VariableError",
    "WorkerDiedError",
]


class PomlError(RuntimeError):
    """Root of pomlflow's own errors; a RuntimeError, since that is what `poml.poml()` raises for every failure."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[PomlError], args: tuple[Any, ...], attributes: Mapping[str, Any]) -> PomlError:
    """Restore a pickled error without its constructor, whose arguments may differ from the error's `args`."""
    base = OSError if issubclass(kind, OSError) else RuntimeError  # the built-in class that makes the object
    error: PomlError = base.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class TemplateNotFoundError(FileNotFoundError, PomlError):  # in this order: OSError reads errno and filename
    """A template's file does not exist or cannot be read.

    Attributes:
        errno: The operating system's error number.
        filename: The file.
    """


class VariableError(PomlError):
    """A variable has a name or a value that POML cannot accept.

    Attributes:
        variable: The variable's name.
    """

    def __init__(self, message: str, variable: str) -> None:
        super().__init__(limited_text(message))
        self.variable = variable


_MAX_LINES: Final = 25  # of an error's text
_MAX_CHARACTERS: Final = 2_000  # of an error's text
_MAX_SHOWN: Final = 160  # characters of an offending line


def limited_text(first: str, others: Sequence[str] = (), remedy: str | None = None) -> str:
    """Return an error's text: the first problem, the others that fit, how many were left out, and the remedy."""
    end = [_cut(remedy, _MAX_LINES // 3, _MAX_CHARACTERS // 2)] if remedy else []
    count = "and 1000000 more problems"  # space is reserved for this line
    characters = _MAX_CHARACTERS - len("\n".join([count, *end])) - 1
    lines = _MAX_LINES - "\n".join([count, *end]).count("\n") - 1
    text, left_out = _cut(first, _MAX_LINES // 2, characters), len(others)
    for other in others:
        longer = f"{text}\n{other}"
        if len(longer) > characters or longer.count("\n") >= lines:
            break
        text, left_out = longer, left_out - 1
    more = [f"and {left_out} more problem{'s' if left_out > 1 else ''}"] if left_out else []
    return "\n".join([text, *more, *end])


def _cut(text: str, lines: int, characters: int) -> str:
    """Remove the middle of a text that is too long: an error begins with its place and ends with its remedy."""
    rows = text.split("\n")
    if len(rows) > lines:
        rows[lines // 2 : len(rows) - (lines - lines // 2 - 1)] = ["…"]
        text = "\n".join(rows)
    if len(text) > characters:
        end = characters // 3
        text = f"{text[: characters - end - 1]}…{text[-end:]}"
    return text


@dataclass(frozen=True)
class Problem:
    """One error of a template, reported by POML or found by pomlflow, with its place.

    Attributes:
        message: The message.
        kind: POML's error class (``ReadError``, ``WriteError``, ``SystemError`` …), or pomlflow's own: ``MarkupError``,
            ``EncodingError``, ``Timeout`` …
        file: The file with the error, which may be an included one; None for inline markup.
        line: The line, from 1; None if POML reports no place.
        column: The column, from 1, in characters (neither UTF-16 units nor bytes).
        text: The offending line.
        width: The number of offending characters in that line.
        remedy: The remedy, or None.
    """

    message: str
    kind: str = "ReadError"
    file: str | None = None
    line: int | None = None
    column: int | None = None
    text: str | None = None
    width: int = 1
    remedy: str | None = None

    @property
    def place(self) -> str:
        """The place, ``file:line:column``, without the parts that are unknown."""
        parts = [self.file or "<inline>", self.line, self.column]
        return ":".join(str(part) for part in parts if part is not None)

    def __str__(self) -> str:
        message = f"{self.place}: {_cut(self.message, _MAX_LINES // 3, _MAX_CHARACTERS // 3)}"
        if self.text is None or self.column is None:
            return message
        start = max(0, self.column - 1 - _MAX_SHOWN // 2) if len(self.text) > _MAX_SHOWN else 0
        shown, begin = self.text[start : start + _MAX_SHOWN], "…" if start else ""
        end = "…" if start + _MAX_SHOWN < len(self.text) else ""
        # Tabs stay tabs in the caret's line, so that the caret is aligned at any tab width.
        indent = "".join(char if char == "\t" else " " for char in begin + shown[: self.column - 1 - start])
        width = max(1, min(self.width, len(shown) - (self.column - 1 - start)))
        return f"{message}\n    {begin}{shown}{end}\n    {indent}{'^' * width}"


class MissingVariableError(VariableError, KeyError):
    """A variable that the template needs was not given.

    Attributes:
        variable: The first missing variable.
        problem: The error as a `Problem` with its place; None if the place is unknown.
        file: The file with its first use; None for inline markup.
        line: The line of its first use, from 1; None if the place is unknown.
        column: The column, from 1, in characters.
    """

    __str__ = Exception.__str__  # KeyError.__str__ returns repr(message), with quotes and escaped newlines

    def __init__(self, message: str, variable: str, problem: Problem | None = None) -> None:
        super().__init__(message, variable)
        self.problem = problem
        self.file = None if problem is None else problem.file
        self.line = None if problem is None else problem.line
        self.column = None if problem is None else problem.column


class RegistryError(PomlError):
    """MLflow's registry cannot return or store a prompt: it is unreachable, refuses it, or was changed by hand.

    Attributes:
        uri: The prompt's URI, for example ``prompts:/support@production``.
    """

    def __init__(self, message: str, uri: str) -> None:
        super().__init__(message)
        self.uri = uri


class PromptNotFoundError(RegistryError, LookupError):
    """The registry has no such prompt, version or alias."""


class NotPomlError(RegistryError):
    """The requested version in the registry is plain text or a chat, not POML."""


class CandidateError(RegistryError):
    """An optimiser's candidate is not POML, or differs from the prompt in more than its wording."""


class TraceNotFoundError(PomlError, LookupError):
    """A trace is not in MLflow's current store."""


class ConfigurationError(PomlError):
    """Invalid configuration value."""


class ConversionError(PomlError, ValueError):
    """A prompt of a framework cannot be expressed in POML.

    Attributes:
        part: The variable, message or field that POML cannot express.
    """

    def __init__(self, message: str, part: str) -> None:
        super().__init__(message)
        self.part = part


class SettingError(PomlError, ValueError):
    """A setting of ``<runtime>`` is not supported by the model, or is given twice under different names.

    Attributes:
        setting: The setting's name in POML's frame.
    """

    def __init__(self, message: str, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


class SchemaError(PomlError, ValueError):
    """A schema of the template is not a JSON Schema; POML accepts any object."""


class ToolError(PomlError, ValueError):
    """The tools of a template and the functions given for them do not match.

    Attributes:
        tool: The first tool without a function, or function without a tool.
    """

    def __init__(self, message: str, tool: str) -> None:
        super().__init__(message)
        self.tool = tool


class ToolArgumentsError(ToolError):
    """A model called a tool with arguments that do not match the tool's schema.

    Attributes:
        tool: The tool.
        arguments: The arguments of the call.
        problems: The mismatches, each with its place.
    """

    def __init__(self, message: str, tool: str, arguments: Mapping[str, Any], problems: Iterable[str]) -> None:
        super().__init__(message, tool)
        self.arguments = dict(arguments)
        self.problems = tuple(problems)


class AnswerError(PomlError, ValueError):
    """A model's answer does not match ``<output-schema>``.

    Attributes:
        answer: The model's answer.
        problems: The mismatches, each with its place; none if the answer is not JSON.
    """

    def __init__(self, message: str, answer: str, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.answer = answer
        self.problems = tuple(problems)


class EngineError(PomlError):
    """Node failed for a reason other than the template."""


class EngineBusyError(EngineError):
    """More renders wait for a Node process than `pomlflow.configure` allows with ``max_queue``."""


class NodeNotFoundError(EngineError, FileNotFoundError):
    """Node.js is not installed."""


class WorkerDiedError(EngineError):
    """The Node process ended or broke its protocol while it rendered, or was killed twice while it started.

    Attributes:
        returncode: The process's exit code, negative for a signal; None if it is unknown.
        stderr: The end of what the process wrote to stderr.
    """

    def __init__(self, message: str, returncode: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr


class RenderError(PomlError):
    """POML refused the template or could not render it with these variables.

    The text is the first problem with its place, the offending line and a caret; then the other problems, one per line,
    each with its remedy; then the remedy of the first one. It has at most 25 lines and 2,000 characters.

    Attributes:
        problems: The problems that POML collected, without repeats; the attributes below describe the first.
        hint: The remedy of the first problem, and what concerns all of them, or None.
        message: The message of the first problem.
        file: The file with the error, which may be an included one; None for inline markup.
        line: The line, from 1, or None.
        column: The column, from 1, or None.

    Example:
        >>> error = RenderError([Problem("x is not defined", file="a.poml", line=2, column=6)])
        >>> error.line, str(error)
        (2, 'a.poml:2:6: x is not defined')
    """

    def __init__(self, problems: Iterable[Problem], hint: str | None = None) -> None:
        # POML often reports one mistake several times.
        self.problems = _distinct(problems)
        first = self.problems[0]
        self.hint = "\n".join(dict.fromkeys(filter(None, (first.remedy, hint)))) or None
        self.message, self.file, self.line, self.column = first.message, first.file, first.line, first.column
        others = [_cut(_summary(problem), 4, 300) for problem in self.problems[1:]]
        with_place = first.remedy and first.kind != "MarkupError" and len(self.problems) > 1
        remedy = f"line {first.line}, column {first.column}: {self.hint}" if with_place else self.hint
        super().__init__(limited_text(str(first), others, remedy))


def _summary(problem: Problem) -> str:
    remedy = f": {problem.remedy}" if problem.remedy else ""
    return f"also {problem.place}: {problem.message}{remedy}"


def _distinct(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    found: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        found.setdefault((problem.place, problem.message), problem)
    return tuple(found.values())


class RenderTimeoutError(RenderError, TimeoutError):
    """A render took longer than its limit, while it waited or while it ran.

    In the latter case its Node process was killed, and the next render gets a new one.
    """
