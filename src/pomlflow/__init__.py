"""POML prompts for LangChain and LlamaIndex, rendered warm, traced and registered in MLflow.

The prompt templates and callback handlers stand in `pomlflow.langchain` and `pomlflow.llama_index`. Importing this
package imports neither a framework nor MLflow.
"""

from __future__ import annotations

from pomlflow.api import arender, flush, poml, render
from pomlflow.autolog import autolog
from pomlflow.exceptions import (
    AnswerError,
    ConfigurationError,
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
    SettingError,
    TemplateNotFoundError,
    ToolArgumentsError,
    ToolError,
    VariableError,
    WorkerDiedError,
)
from pomlflow.settings import configure

__all__ = [
    "AnswerError",
    "ConfigurationError",
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
    "SettingError",
    "TemplateNotFoundError",
    "ToolArgumentsError",
    "ToolError",
    "VariableError",
    "WorkerDiedError",
    "arender",
    "autolog",
    "configure",
    "flush",
    "poml",
    "render",
]
