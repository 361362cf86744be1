"""POML prompts for LangChain and LlamaIndex, rendered by long-lived Node processes, traced and registered in MLflow.

The prompt templates and callback handlers are in `pomlflow.langchain` and `pomlflow.llama_index`. Importing this
package imports neither a framework nor MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pomlflow import exceptions
from pomlflow._lazy import lazy_names
from pomlflow.api import arender, flush, poml, render
from pomlflow.autolog import autolog
from pomlflow.display import transcript
from pomlflow.exceptions import *  # noqa: F403 - all of them
from pomlflow.settings import configure, configured
from pomlflow.template.lint import Finding

if TYPE_CHECKING:
    from pomlflow._version import __version__
    from pomlflow.packaging import packaged
    from pomlflow.tracking.replay import Replay, replay
    from pomlflow.tracking.version_metrics import compare_versions

__all__ = [
    "Finding",
    "Replay",
    "__version__",
    "arender",
    "autolog",
    "compare_versions",
    "configure",
    "configured",
    "flush",
    "packaged",
    "poml",
    "render",
    "replay",
    "transcript",
]
__all__ += exceptions.__all__

# Imported on first use: replay and compare_versions import MLflow, __version__ reads the package's metadata.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Replay": "tracking.replay",
        "__version__": "_version",
        "compare_versions": "tracking.version_metrics",
        "packaged": "packaging",
        "replay": "tracking.replay",
    },
)
