"""A user's program with every public name, for mypy (in ``make typecheck``) and basedpyright (here)."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "typing" / "api.py"


def test_mypys_configuration_includes_the_typed_program() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["strict"]
    assert "tests/typing" in settings["files"]


def test_basedpyright_accepts_the_typed_program_strictly() -> None:
    pytest.importorskip("basedpyright")
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("package", "shown"), [("pomlflow", "pomlflow"), ("pomlflow.langchain", "lc"), ("pomlflow.llama_index", "li")]
)
def test_the_typed_program_uses_every_public_name(package: str, shown: str) -> None:
    program = PROGRAM.read_text(encoding="utf-8")
    assert [name for name in importlib.import_module(package).__all__ if f"{shown}.{name}" not in program] == []
