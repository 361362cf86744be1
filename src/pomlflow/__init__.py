"""POML prompts for LangChain and LlamaIndex, rendered warm, traced and registered in MLflow.

The prompt templates and callback handlers stand in `pomlflow.langchain` and `pomlflow.llama_index`. Importing this
package imports neither a framework nor MLflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pomlflow.api import arender, flush, poml, render
from pomlflow.autolog import autolog
from pomlflow.exceptions import (
    AnswerError,
    ConfigurationError,
    EngineBusyError,
    EngineError,
    MissingVariableError,
    NodeNotFoundError,
    NotPomlError,
    PomlError,
    Problem,
    PromptNotFoundError,
    RegistryError,
    RenderError,
    RenderTimeoutError,
    SchemaError,
    SettingError,
    TemplateNotFoundError,
    ToolArgumentsError,
    ToolError,
    TraceNotFoundError,
    VariableError,
    WorkerDiedError,
)
from pomlflow.settings import configure, configured
from pomlflow.template.lint import Finding

if TYPE_CHECKING:
    from pomlflow.tracking.replay import Replay, replay

__all__ = [
    "AnswerError",
    "ConfigurationError",
    "EngineBusyError",
    "EngineError",
    "Finding",
    "MissingVariableError",
    "NodeNotFoundError",
    "NotPomlError",
    "PomlError",
    "Problem",
    "PromptNotFoundError",
    "RegistryError",
    "RenderError",
    "RenderTimeoutError",
    "Replay",
    "SchemaError",
    "SettingError",
    "TemplateNotFoundError",
    "ToolArgumentsError",
    "ToolError",
    "TraceNotFoundError",
    "VariableError",
    "WorkerDiedError",
    "arender",
    "autolog",
    "configure",
    "configured",
    "flush",
    "poml",
    "render",
    "replay",
]

_LATE = {"Replay": "pomlflow.tracking.replay", "replay": "pomlflow.tracking.replay"}  # which import MLflow


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATE[name]), name)
    return value
