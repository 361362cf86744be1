"""The structure of the package: the direction of imports, what an import loads, and sizes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pomlflow"
# Each part of the package may import its own layer and those below; the frameworks' adapters never each other.
LAYERS = [
    {
        "content",
        "exceptions",
        "settings",
        "_arguments",
        "_lazy",
        "_log",
        "_version",
        "types",
        "display",
    },
    {"_frame"},
    {"record"},
    {"engine"},
    {"template"},
    {"frame", "dispatch"},
    {"tracking"},
    {"langchain", "llama_index"},
    {"api", "packaging", "_poml_patch", "autolog", "cli"},
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
OWNERS = {
    "langchain": {"langchain"},
    "langchain_core": {"langchain"},
    "langgraph": {"langchain"},
    "llama_index": {"llama_index"},
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_GLOBAL_STATEMENTS = 400, 50, 5
LANGCHAIN = {"langchain_core", "langchain", "langchain_classic", "langgraph"}
# The public modules: nothing of the package imports from them, and they may import everything.
ENTRY_POINTS = {"__init__.py", "__main__.py", "langchain/__init__.py", "llama_index/__init__.py"}


@cache
def imports() -> dict[str, set[str]]:
    """For each file of the package, all modules that it imports, also inside functions."""
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        names = found[file.relative_to(SOURCE).as_posix()] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(name: str) -> str | None:
    """The part of the package that a full module name belongs to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pomlflow" and len(parts) > 1 and parts[1] in LAYER else None


def file_of(name: str) -> str | None:
    """The file that a full name is imported from."""
    path = name.split(".")
    for parts in (path[1:], path[1:-1]):
        for file in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])):
            if path[0] == "pomlflow" and parts and (SOURCE / file).is_file():
                return file
    return None


def wrong_directions() -> Iterator[str]:
    for file, names in imports().items():
        own = file.split("/")[0].removesuffix(".py")
        if file in ENTRY_POINTS:
            continue
        assert own in LAYER, f"{own} is in no layer"
        for name in names:
            owners = OWNERS.get(name.split(".")[0])
            if owners is not None and own not in owners:
                yield f"{file} imports {name}"
            part = part_of(name)
            if part is not None and part != own:
                siblings = {part, own} == {"langchain", "llama_index"}
                if siblings or LAYER[part] > LAYER[own]:
                    yield f"{file} imports {name}"


def test_imports_go_down_the_layers() -> None:
    """Also those inside functions; a framework is imported by its adapter only."""
    assert sorted(wrong_directions()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Also inside functions and for types only."""
    graph = {
        file: {target for name in names if (target := file_of(name)) is not None} for file, names in imports().items()
    }
    while free := {file for file, targets in graph.items() if not targets & graph.keys() - {file}}:
        for file in free:
            del graph[file]
    assert sorted(graph) == []


def oversized() -> Iterator[str]:
    for file in sorted((*SOURCE.rglob("*.py"), *SOURCE.rglob("*.cjs"))):
        text = file.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MOST_LINES:
            yield f"{file.name} has {lines} lines"
        for node in ast.walk(ast.parse(text)) if file.suffix == ".py" else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                end = node.end_lineno or node.lineno
                if end - node.lineno >= MOST_LINES_OF_A_FUNCTION:
                    yield f"{file.name}: {node.name} has {end - node.lineno + 1} lines"


def test_files_and_functions_stay_small() -> None:
    assert list(oversized()) == []


def test_process_wide_state_has_few_owners() -> None:
    statements = sum(
        isinstance(node, ast.Global)
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    )
    assert statements <= MOST_GLOBAL_STATEMENTS


def loaded(statement: str) -> set[str]:
    """The top-level modules that are loaded after a statement, in a new process."""
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
        ("from pomlflow.cli import cli", {"mlflow", "numpy", "pydantic", "poml", "llama_index", *LANGCHAIN}),
        (RENDER, {"mlflow", "numpy", "llama_index", *LANGCHAIN}),
        (CHAIN, {"mlflow", "llama_index", *LANGCHAIN - {"langchain_core"}}),
        ("import pomlflow.llama_index", {"mlflow", *LANGCHAIN}),
    ],
    ids=["package", "command line", "render", "langchain", "llama_index"],
)
def test_an_import_stays_light(statement: str, absent: set[str]) -> None:
    for package in ("langchain_core", "llama_index"):
        if f".{package.removesuffix('_core')}" in statement:
            pytest.importorskip(package)
    assert loaded(statement) & absent == set()


HOOKS = """
import atexit, importlib, os, pkgutil, signal, sys, threading

made = []


def watched(owner, name):
    real = getattr(owner, name)

    def call(*args, **kwargs):
        if sys._getframe(1).f_globals.get("__name__", "").startswith("pomlflow"):
            made.append(name)
        return real(*args, **kwargs)

    setattr(owner, name, call)


for owner, name in (
    (atexit, "register"), (os, "register_at_fork"), (signal, "signal"), (threading, "_register_atexit"),
    (threading.Thread, "start"),
):
    watched(owner, name)
import pomlflow
for module in pkgutil.walk_packages(pomlflow.__path__, "pomlflow."):
    if module.name != "pomlflow.__main__":
        importlib.import_module(module.name)
assert not made, made
assert [one for one in sys.meta_path if type(one).__module__.startswith("pomlflow")] == []
"""


def test_an_import_starts_nothing() -> None:
    """No thread, no hook at exit, at fork or for a signal, and no finder, whatever part is imported."""
    done = subprocess.run([sys.executable, "-c", HOOKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there() -> None:
    import pomlflow

    assert len(set(pomlflow.__all__)) == len(pomlflow.__all__)
    assert set(pomlflow.__all__) <= set(dir(pomlflow))
    for name in set(pomlflow.__all__) - {"__version__"}:
        assert getattr(pomlflow, name).__module__.startswith("pomlflow.")


def test_the_version_is_the_installed_one_and_has_notes() -> None:
    import pomlflow

    assert pomlflow.__version__ == version("pomlflow")
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (SOURCE.parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.split("## ", 1)[1].startswith(project["version"])
