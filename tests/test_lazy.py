"""Names of a package that are imported at their first use."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

INIT = """\
from pomlflow._lazy import lazy_names
__getattr__, __dir__ = lazy_names(__name__, {"here": "part", "lost": "needy", "broken": "broken"}, {"absent": "it[x]"})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"lazy_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    for file, text in {
        "__init__": INIT,
        "part": "here = 1",
        "needy": "import absent.part",
        "broken": "import absent_too",
    }.items():
        (folder / f"{file}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_name_is_imported_at_its_first_use(package: str) -> None:
    module = importlib.import_module(package)
    assert {"broken", "here", "lost"} <= set(dir(module))
    assert f"{package}.part" not in sys.modules
    assert module.here == 1
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nowhere'"):
        _ = module.nowhere


def test_a_missing_requirement_is_named_with_its_remedy(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(ImportError, match=r"^lost needs absent: pip install 'it\[x\]'$"):
        _ = module.lost
    with pytest.raises(ModuleNotFoundError, match="absent_too"):
        _ = module.broken
