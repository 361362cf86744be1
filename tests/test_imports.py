"""Who imports whom, and what an import brings with it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pomlflow"
LANGCHAIN = {"langchain_core", "langchain", "langchain_classic", "langgraph"}

PROMPT = {"autolog", "delivery", "sources", "snapshot", "template", "history", "settings", "record", "exceptions"}

# Room: the rooms of ours that it may import at all. A room is a module or a package right under pomlflow.
ROOMS = {
    "exceptions": set(),
    "settings": {"exceptions"},
    "history": {"exceptions"},
    "record": {"exceptions"},
    "frame": {"exceptions"},
    "roots": {"settings"},
    "engine": {"roots", "settings", "record", "exceptions"},
    "delivery": {"record", "exceptions"},
    "formats": {"frame", "record", "exceptions"},
    "markup": set(),
    "javascript": {"engine"},
    "variables": {"engine", "markup", "javascript", "exceptions"},
    "snapshot": {"variables", "record"},
    "naming": {"settings"},
    "arguments": {"engine", "javascript", "variables", "exceptions"},
    "template": {
        "arguments",
        "engine",
        "naming",
        "delivery",
        "snapshot",
        "variables",
        "history",
        "settings",
        "record",
        "exceptions",
    },
    "whitespace": {"template", "record"},
    "tracking": {
        "delivery",
        "naming",
        "formats",
        "template",
        "frame",
        "snapshot",
        "markup",
        "variables",
        "whitespace",
        "history",
        "roots",
        "settings",
        "record",
        "exceptions",
    },
    "sources": {"tracking", "snapshot", "template"},
    "langchain": {"tracking", "frame", "variables", *PROMPT},
    "llama_index": {"tracking", "frame", "variables", "whitespace", *PROMPT},
    "imports": set(),
    "takeover": {"api", "tracking", "formats", "delivery", "settings", "record"},
    "api": {"tracking", "formats", "delivery", "template", "engine", "settings", "record", "exceptions"},
}
ADAPTERS = {"langchain": {"langchain", "langchain_core", "langgraph"}, "llama_index": {"llama_index"}}
EVERYWHERE = {"__init__.py", "__main__.py", "autolog.py"}  # the doors, which import late, beside the command line


@cache
def modules() -> list[str]:
    return sorted(file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py"))


@cache
def imported(module: str) -> list[tuple[str, bool]]:
    """Each module that a module imports, anywhere in it, and whether that happens while it is imported itself."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name.name, id(node) not in late) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found += [(f"{node.module}.{name.name}", id(node) not in late) for name in node.names]
    return found


def file_of(name: str) -> str | None:
    """The file of ours, relative to the package, that an imported name comes from."""
    path = name.split(".")
    for parts in (path[1:], path[1:-1]):
        for file in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])):
            if path[0] == "pomlflow" and parts and (SOURCE / file).is_file():
                return file
    return None


@cache
def tracing() -> set[str]:
    """The modules of the adapters that import MLflow or `tracking`: callbacks.py, and what it is made of."""
    return {
        module
        for module in modules()
        if module.startswith(tuple(f"{adapter}/" for adapter in ADAPTERS))
        and any(name.split(".")[0] == "mlflow" or room(name) == "tracking" for name, _ in imported(module))
    }


def room(name: str) -> str | None:
    """The room of ours that a module's full name belongs to."""
    parts = name.split(".")
    known = {file.stem for file in SOURCE.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists()}
    return parts[1] if parts[0] == "pomlflow" and len(parts) > 1 and parts[1] in known - {"__init__"} else None


@pytest.mark.parametrize("module", modules())
def test_each_room_imports_only_what_the_design_allows(module: str) -> None:
    own = module.split("/", maxsplit=1)[0].removesuffix(".py")
    if own in ("__init__", "__main__", "autolog", "cli"):
        return
    assert own in ROOMS, f"{own} is a new room: say here what it may import"
    found = {room(name) for name, _ in imported(module)} - {None, own}
    assert found <= ROOMS[own]


@pytest.mark.parametrize("module", modules())
def test_frameworks_are_imported_by_their_adapters_only(module: str) -> None:
    for name, _ in imported(module):
        for adapter, packages in ADAPTERS.items():
            if name.split(".")[0] in packages:
                assert module.startswith(f"{adapter}/") or module in EVERYWHERE, f"{module} imports {name}"


@pytest.mark.parametrize("module", modules())
def test_mlflow_is_imported_by_tracking_and_callbacks_only(module: str) -> None:
    """What else stands in an adapter reaches `callbacks.py`, and what that is made of, when it is needed."""
    for name, at_once in imported(module):
        if name.split(".")[0] == "mlflow" or room(name) == "tracking":
            late = module in {"api.py", "sources.py", "takeover.py", *EVERYWHERE} or module.startswith("cli/")
            late = late and not at_once
            assert late or module.startswith("tracking/") or module in tracing(), f"{module} imports {name}"
        if file_of(name) in tracing() and module not in tracing():
            assert not at_once, f"{module} imports {name}, and with it MLflow, at once"


def test_prompts_do_not_trace() -> None:
    """The list of what traces is made from the sources: so these must never be in it."""
    rooms = [
        f"{adapter}/{name}.py" for adapter in ADAPTERS for name in ("__init__", "prompt", "messages", "model", "llm")
    ]
    assert tracing().isdisjoint({*rooms, "langchain/values.py", "langchain/middleware.py"})
    assert "langchain/callbacks.py" in tracing()


def brought(statement: str) -> set[str]:
    """The top-level modules that are there after a statement, in a fresh process."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


RENDER = "from pomlflow.template import Template; Template('<p>{{x}}</p>').render({'x': 1}).result()"
CHAIN = (
    "from pomlflow.langchain import PomlPromptTemplate; from langchain_core.runnables import RunnableLambda; "
    "(PomlPromptTemplate('<p>{{x}}</p>') | RunnableLambda(str)).invoke({'x': 1})"
)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pomlflow; pomlflow.flush()", {"mlflow", "numpy", "pydantic", "poml", "llama_index", *LANGCHAIN}),
        ("from pomlflow.cli import cli", {"mlflow", "numpy", "pydantic", "poml", "rich", "llama_index", *LANGCHAIN}),
        (RENDER, {"mlflow", "numpy", "llama_index", *LANGCHAIN}),
        ("import pomlflow.langchain", {"mlflow", "llama_index", *LANGCHAIN - {"langchain_core"}}),
        (CHAIN, {"mlflow", "llama_index", *LANGCHAIN - {"langchain_core"}}),
        ("import pomlflow.llama_index", {"mlflow", *LANGCHAIN}),
        ("import pomlflow.tracking.registry, pomlflow.tracking.loading", {"sqlalchemy", "llama_index", *LANGCHAIN}),
    ],
    ids=["import", "command line", "render", "langchain", "chain", "llama_index", "tracking"],
)
def test_what_nobody_asked_for_is_not_imported(statement: str, absent: set[str]) -> None:
    for package in ("langchain_core", "llama_index"):
        if f".{package.removesuffix('_core')}" in statement:
            pytest.importorskip(package)
    assert brought(statement) & absent == set()


def test_the_public_names_are_there() -> None:
    import pomlflow

    assert sorted(pomlflow.__all__) == pomlflow.__all__
    for name in pomlflow.__all__:
        assert getattr(pomlflow, name).__module__.startswith("pomlflow.")
