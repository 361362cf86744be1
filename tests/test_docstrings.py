"""The examples in docstrings run; those of modules that trace are left out, since they need a store."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pomlflow"
TRACING = (
    "tracking",
    "handler",
    "tracer",
    "mlflow_tracer",
    "span_handler",
    "spans",
    "streams",
)


def modules() -> list[str]:
    found = (file.relative_to(SOURCE).with_suffix("").parts for file in SOURCE.rglob("*.py"))
    parts = [path[:-1] if path[-1] == "__init__" else path for path in found if not set(path) & set(TRACING)]
    return sorted(".".join(("pomlflow", *path)) for path in parts)


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    framework = {"langchain": "langchain_core", "llama_index": "llama_index.core"}.get(f"{name}.".split(".")[1])
    if framework:
        pytest.importorskip(framework)
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_there_are_examples() -> None:
    """If no module were found, the test above would pass."""
    assert {"pomlflow.template.template", "pomlflow.langchain.prompt", "pomlflow.engine"} <= set(modules())
