"""The recorded traces are of tests that there are; `tests/recorded_trees.py` compares them after each test."""

from __future__ import annotations

import ast
import json

import pytest
from tests.recorded_trees import EXCLUDED, EXPECTED, TESTS

FILES = sorted(EXPECTED.rglob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXPECTED)))
def test_each_recording_has_its_test(file):
    """One whose test was renamed would hold nothing: rename it too."""
    source = (TESTS / file.relative_to(EXPECTED)).with_suffix(".py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    recorded = set(json.loads(file.read_text(encoding="utf-8"))["tests"])
    assert {name.partition("[")[0] for name in recorded} - functions == set()
    assert recorded & set(EXCLUDED) == set()
