"""Calls after a module's import, which is otherwise unchanged."""

from __future__ import annotations

import importlib
import importlib.resources
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pomlflow._post_import import cancel, when_imported


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is not imported yet, and reads a resource during its import."""
    name = f"late_{tmp_path.name}"
    package = tmp_path / name
    package.mkdir()
    (package / "text.txt").write_text("resource", encoding="utf-8")
    (package / "part.py").write_text("", encoding="utf-8")
    (package / "__init__.py").write_text(
        "import importlib.resources\n"
        "text = importlib.resources.files(__name__).joinpath('text.txt').read_text('utf-8')\n"
        "from . import part\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield name
    cancel(name)
    assert sys.meta_path == before
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_it_is_called_once_after_the_whole_import(late: str) -> None:
    seen: list[str] = []
    when_imported(late, lambda: seen.append(sys.modules[late].text))
    assert seen == []
    module = importlib.import_module(late)
    importlib.import_module(late)
    assert seen == ["resource"]
    assert module.part.__name__ == f"{late}.part"


def test_the_module_keeps_its_own_loader(late: str) -> None:
    plain = type(importlib.util.find_spec(late).loader)
    when_imported(late, lambda: None)
    module = importlib.import_module(late)
    assert type(module.__loader__) is type(module.__spec__.loader) is plain
    importlib.reload(module)


def test_it_is_called_now_for_an_imported_module(late: str) -> None:
    importlib.import_module(late)
    seen: list[int] = []
    when_imported(late, lambda: seen.append(1))
    assert seen == [1]


def test_a_failure_is_logged_and_does_not_break_the_import(late: str, caplog: pytest.LogCaptureFixture) -> None:
    when_imported(late, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert importlib.import_module(late).text == "resource"
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "ZeroDivisionError" in record.getMessage()


def test_a_missing_module_is_not_found(late: str) -> None:
    when_imported(f"{late}_not", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{late}_not")
    cancel(f"{late}_not")


def test_a_cancelled_call_is_not_made(late: str) -> None:
    called: list[int] = []
    when_imported(late, lambda: called.append(1))
    cancel(late)
    assert importlib.import_module(late).text == "resource"
    assert called == []
