"""The errors: the tree in the module's docstring is the real one, and each is pickled with its attributes."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest

from pomlflow import exceptions
from pomlflow.exceptions import PomlError, Problem

PROBLEM = Problem("a", file="f.poml", line=1, column=2)
ERRORS = [
    exceptions.AnswerError("m", "answer", ["p"]),
    exceptions.CandidateError("m", "prompts:/x"),
    exceptions.ConfigurationError("m"),
    exceptions.ConversionError("m", "x"),
    exceptions.EngineBusyError("m"),
    exceptions.EngineError("m"),
    exceptions.MissingVariableError("m", "x", PROBLEM),
    exceptions.NodeNotFoundError("m"),
    exceptions.NotPomlError("m", "prompts:/x"),
    exceptions.PomlError("m"),
    exceptions.PromptNotFoundError("m", "prompts:/x"),
    exceptions.RegistryError("m", "prompts:/x"),
    exceptions.RenderError([PROBLEM, Problem("b")], "hint"),
    exceptions.RenderTimeoutError([PROBLEM]),
    exceptions.SchemaError("m"),
    exceptions.SettingError("m", "topK"),
    exceptions.TemplateNotFoundError(2, "m", "f.poml"),
    exceptions.ToolArgumentsError("m", "tool", {"a": 1}, ["p"]),
    exceptions.ToolError("m", "tool"),
    exceptions.TraceNotFoundError("m"),
    exceptions.VariableError("m", "x"),
    exceptions.WorkerDiedError("m", -9, "stderr"),
]


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for indent, name in re.findall(r"^ {4}([│├└─ ]*)([A-Z]\w+Error)\b", str(exceptions.__doc__), re.MULTILINE):
        above[len(indent) // 4 :] = [name]
        drawn[name] = above[-2] if len(above) > 1 else "RuntimeError"
    real = {
        name: next(base.__name__ for base in getattr(exceptions, name).__mro__[1:] if issubclass(base, RuntimeError))
        for name in exceptions.__all__
        if name != "Problem"
    }
    assert drawn == real
    assert sorted(real) == [type(error).__name__ for error in ERRORS]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_an_error_keeps_its_text_attributes_and_notes(error: PomlError, again: Any) -> None:
    error.add_note("in a chain")
    made = again(error)
    assert (type(made), str(made), vars(made)) == (type(error), str(error), vars(error))
    assert getattr(made, "filename", None) == getattr(error, "filename", None)
