"""Everything that pomlflow raises on purpose.

::

    PomlError                      (also a RuntimeError, as poml.poml() raises)
    ├── TemplateNotFoundError      the .poml file does not exist (also a FileNotFoundError)
    ├── VariableError              a variable cannot be given to POML
    │   └── MissingVariableError   a variable that the template needs was not given (also a KeyError)
    ├── RenderError                POML refused the template: message, file, line, column, caret
    │   └── RenderTimeoutError     the render outlasted its limit (also a TimeoutError)
    ├── EngineError                the Node side failed, not the template
    │   ├── EngineBusyError        too many renders wait for a Node process
    │   ├── NodeNotFoundError      no Node.js to run (also a FileNotFoundError)
    │   └── WorkerDiedError        the Node process ended, or broke its protocol, in a render
    ├── SettingError               <runtime> says what the model does not take (also a ValueError)
    ├── ToolError                  a tool without a function, or a function without a tool (also a ValueError)
    │   └── ToolArgumentsError     a model called a tool with arguments that its schema refuses
    ├── SchemaError                a schema of the template is no JSON Schema (also a ValueError)
    ├── AnswerError                a model's answer is not as <output-schema> says (also a ValueError)
    ├── RegistryError              MLflow's registry does not give, or does not take, a prompt
    │   ├── PromptNotFoundError    it has no such prompt, version or alias (also a LookupError)
    │   └── NotPomlError           what it has is not POML
    ├── TraceNotFoundError         no such trace in MLflow's store (also a LookupError)
    └── ConfigurationError         a setting has a value that makes no sense

Catch `PomlError` to catch them all. Every message names the file where there is one, and the remedy.

What a render raises is never a ValueError or a TypeError: LlamaIndex's query engines (0.14) log those, and answer
"Empty Response".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AnswerError",
    "ConfigurationError",
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
    """Root of all errors that pomlflow raises; a RuntimeError, as `poml.poml()` raises for whatever fails in it."""


class TemplateNotFoundError(FileNotFoundError, PomlError):  # in this order: OSError reads errno and filename
    """A template's file does not exist or cannot be read."""


class VariableError(PomlError):
    """A variable has a name or a value that POML cannot take.

    Attributes:
        variable: The variable's name.
    """

    def __init__(self, message: str, variable: str) -> None:
        super().__init__(message)
        self.variable = variable

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.variable)


@dataclass(frozen=True)
class Problem:
    """One error that POML collected in a render.

    Attributes:
        message: What POML says.
        kind: POML's own class: ``ReadError``, ``WriteError``, ``SystemError`` …
        file: The file it stands in, ``None`` for inline markup. An included file where the error is there.
        line: From 1; None where POML gives no place.
        column: From 1, in characters (not UTF-16 units, nor bytes).
        text: The offending line.
        width: How many characters of that line are meant.
    """

    message: str
    kind: str = "ReadError"
    file: str | None = None
    line: int | None = None
    column: int | None = None
    text: str | None = None
    width: int = 1

    @property
    def place(self) -> str:
        """``file:line:column``, as far as it is known."""
        parts = [self.file or "<inline>", self.line, self.column]
        return ":".join(str(part) for part in parts if part is not None)

    def __str__(self) -> str:
        if self.text is None or self.column is None:
            return f"{self.place}: {self.message}"
        # Tabs stay tabs in the caret's line, so that the caret stands right at any tab width.
        indent = "".join(char if char == "\t" else " " for char in self.text[: self.column - 1])
        return f"{self.place}: {self.message}\n    {self.text}\n    {indent}{'^' * max(1, self.width)}"


class MissingVariableError(VariableError, KeyError):
    """A variable that the template needs was not given.

    Attributes:
        variable: The first that is missing.
        problem: The same as a `Problem`, with its place; None where it is unknown.
        file: The file that uses it first; None for inline markup.
        line: Of its first use, from 1; None where it is not found in the text.
        column: From 1, in characters.
    """

    __str__ = Exception.__str__  # KeyError's own shows repr(message), with quotes and escaped newlines

    def __init__(self, message: str, variable: str, problem: Problem | None = None) -> None:
        super().__init__(message, variable)
        self.problem = problem
        self.file = problem and problem.file
        self.line = problem and problem.line
        self.column = problem and problem.column

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.variable, self.problem)


class RegistryError(PomlError):
    """MLflow's registry does not give, or does not take, a prompt: it is away, refuses it, or was changed by hand.

    Attributes:
        uri: The prompt's, ``prompts:/support@production``.
    """

    def __init__(self, message: str, uri: str) -> None:
        super().__init__(message)
        self.uri = uri

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.uri)


class PromptNotFoundError(RegistryError, LookupError):
    """The registry has no such prompt, version or alias."""


class NotPomlError(RegistryError):
    """The registry's version is plain text or a chat, not POML."""


class TraceNotFoundError(PomlError, LookupError):
    """A trace is not in the store that MLflow is set to."""


class ConfigurationError(PomlError):
    """A setting has a value that makes no sense."""


class SettingError(PomlError, ValueError):
    """``<runtime>`` says what the model does not take.

    Attributes:
        setting: The setting, as it is written in POML's frame.
    """

    def __init__(self, message: str, setting: str) -> None:
        super().__init__(message)
        self.setting = setting

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.setting)


class SchemaError(PomlError, ValueError):
    """A schema of the template is no JSON Schema; POML takes any."""


class ToolError(PomlError, ValueError):
    """The tools of a template and the functions given for them do not match.

    Attributes:
        tool: The first of those that are without the other.
    """

    def __init__(self, message: str, tool: str) -> None:
        super().__init__(message)
        self.tool = tool

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.tool)


class ToolArgumentsError(ToolError):
    """A model called a tool with arguments that the tool's schema refuses.

    Attributes:
        tool: The tool.
        arguments: What it was called with.
        problems: What is wrong, each with its place.
    """

    def __init__(self, message: str, tool: str, arguments: Mapping[str, Any], problems: Iterable[str]) -> None:
        super().__init__(message, tool)
        self.arguments = dict(arguments)
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.tool, self.arguments, self.problems)


class AnswerError(PomlError, ValueError):
    """A model's answer is not as ``<output-schema>`` says.

    Attributes:
        answer: The answer, as the model gave it.
        problems: What is wrong by the schema, each with its place; none where the answer is no JSON at all.
    """

    def __init__(self, message: str, answer: str, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.answer = answer
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.answer, self.problems)


class EngineError(PomlError):
    """The Node side failed for a reason that is not the template's."""


class EngineBusyError(EngineError):
    """More renders wait for a Node process than `pomlflow.configure` allows with ``max_queue``."""


class NodeNotFoundError(EngineError, FileNotFoundError):
    """There is no Node.js to run POML with."""


class WorkerDiedError(EngineError):
    """The Node process ended, or broke its protocol, while it rendered.

    Attributes:
        returncode: The process's exit code, negative for a signal; None where it is not known.
        stderr: The last lines that the process printed.
    """

    def __init__(self, message: str, returncode: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.returncode, self.stderr)


class RenderError(PomlError):
    """POML refused the template or could not render it with these variables.

    Its text is the first problem with its place, the offending line and a caret, then the others, a line each.

    Attributes:
        problems: All that POML collected, in its order; the first is the one told by the attributes below.
        message: What POML says.
        file: The file, an included one where the error is there; None for inline markup.
        line: From 1, or None.
        column: From 1, or None.

    Example:
        >>> error = RenderError([Problem("x is not defined", file="a.poml", line=2, column=6)])
        >>> error.line, str(error)
        (2, 'a.poml:2:6: x is not defined')
    """

    def __init__(self, problems: Iterable[Problem], hint: str | None = None) -> None:
        self.problems = tuple(problems)
        self.hint = hint
        first = self.problems[0]
        self.message, self.file, self.line, self.column = first.message, first.file, first.line, first.column
        # One mistake is often collected at several places of one expression: say each line once.
        others = dict.fromkeys(f"{p.place}: {p.message}" for p in self.problems[1:])
        others.pop(f"{first.place}: {first.message}", None)
        lines = [str(first), *(f"also {other}" for other in others), *([hint] if hint else [])]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.hint)


class RenderTimeoutError(RenderError, TimeoutError):
    """A render outlasted its limit; its Node process was ended, the next render gets a new one."""
