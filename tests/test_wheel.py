"""The wheel, which users install: it holds the JavaScript files and the type marker, and renders."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = folder.glob("pomlflow-*.whl")
    return file


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if name.startswith("pomlflow/")}
    source = ROOT / "src"
    expected = {
        file.relative_to(source).as_posix()
        for file in (source / "pomlflow").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert inside == expected
    assert {"pomlflow/engine/js/worker.cjs", "pomlflow/engine/js/bundle.cjs", "pomlflow/py.typed"} <= inside
    assert all(".dist-info/" in name for name in names - inside)


PROGRAM = """
import importlib.metadata, importlib.resources, pomlflow
print(pomlflow.__file__)
print(importlib.metadata.version("pomlflow"))
print(pomlflow.render("<p>Hello {{who}}</p>", {"who": "Ada"}).messages[0].content)
"""


def test_the_wheel_renders_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """With this environment's dependencies, and none of this tree's files."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=sys.platform != "win32")
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    site, python = Path(paths["purelib"]), Path(paths["scripts"]) / Path(sys.executable).name
    with zipfile.ZipFile(wheel) as archive:  # what installing a wheel of pure Python without scripts is
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    ran = subprocess.run(
        [str(python), "-I", "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100
    )
    assert ran.stderr == ""
    file, version, text = ran.stdout.splitlines()
    assert Path(file) == site / "pomlflow" / "__init__.py"
    assert wheel.name.startswith(f"pomlflow-{version}-")
    assert text == "Hello Ada"
