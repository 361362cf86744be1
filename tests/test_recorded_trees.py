"""Each recording belongs to an existing test; `tests/recorded_trees.py` compares them after each test."""

from __future__ import annotations

import ast
import json

import pytest
from tests.recorded_trees import EXCLUDED, EXPECTED, FILES, TESTS


def test_each_file_that_is_listed_has_its_recordings():
    listed = {EXPECTED / folder / f"{name}.json" for folder, names in FILES.items() for name in names}
    assert listed == set(EXPECTED.rglob("*.json"))


@pytest.mark.parametrize("file", sorted(EXPECTED.rglob("*.json")), ids=lambda file: str(file.relative_to(EXPECTED)))
def test_each_recording_has_its_test(file):
    """A recording whose test was renamed is never compared: rename its key too."""
    source = (TESTS / file.relative_to(EXPECTED)).with_suffix(".py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    recorded = json.loads(file.read_text(encoding="utf-8"))
    names = {name.partition("[")[0] for name in recorded["tests"]}
    assert names - functions == set()
    assert names & set(EXCLUDED) == set()
    assert {tree for trees in recorded["tests"].values() for tree in trees} == set(recorded["trees"])
