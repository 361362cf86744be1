"""docs/upstream.md: each workaround has a marker in the source and a test; each report still shows what it reports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
MOST_ROWS = 50
REPORTS = re.findall(r"^### (.+?)\n.*?```python\n(.*?)# (.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)


def rows() -> list[list[str]]:
    table = PAGE.split("<!-- workarounds -->")[1].split("<!-- /workarounds -->")[0]
    return [[cell.strip(" `") for cell in line.strip("| ").split(" | ")] for line in table.strip().splitlines()[2:]]


def markers() -> set[tuple[str, str]]:
    """The file and the library of each workaround in the source."""
    found = set()
    for file in sorted((ROOT / "src").rglob("*")):
        if file.suffix in {".py", ".cjs"}:
            text = file.read_text(encoding="utf-8")
            path = file.relative_to(ROOT / "src" / "pomlflow").as_posix()
            found |= {(path, library) for library in re.findall(r"(?:#|//) upstream: (\S+) ", text)}
    return found


@pytest.mark.xfail(reason="the packages are still being rebuilt")
def test_each_workaround_has_a_row_and_each_row_a_test() -> None:
    assert {(file, library) for library, _, _, file, _ in rows()} == markers()
    assert len(rows()) <= MOST_ROWS
    for *_, test in rows():
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without traces: making one costs seconds of migrations."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{file.as_posix()}", (file.parent / "artifacts").as_uri())
    return file


@pytest.mark.parametrize(("code", "printed"), [pytest.param(code, end, id=title) for title, code, end in REPORTS])
def test_a_report_still_holds(code: str, printed: str, empty_store: Path, tmp_path: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == printed


def test_there_are_reports() -> None:
    assert len(REPORTS) == PAGE.count("\n### ")
