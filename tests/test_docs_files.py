"""The configuration files that pages show and do not run: they are valid, and their commands exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import indent
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tests.markdown import ROOT, Block, blocks

from pomlflow.cli import cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKS = [one for page in sorted((ROOT / "docs").rglob("*.md")) for one in blocks(page.read_text(encoding="utf-8"))]


def shown(title: str) -> str:
    [block] = [one for one in BLOCKS if one.title == title]
    return block.text


def assert_installable(words: list[str]) -> None:
    """Assert that ``pip install`` names only extras of pomlflow that exist."""
    assert words[:2] == ["pip", "install"]
    for need in (Requirement(word) for word in words[2:] if not word.startswith("-")):
        assert need.name != "pomlflow" or need.extras <= PROJECT["optional-dependencies"].keys()


def assert_command(words: list[str]) -> None:
    """Assert that pomlflow has the command with these arguments and options, without running it."""
    command = cli.commands[words[1]]
    with click.Context(cli) as context:
        command.make_context(words[1], words[2:], parent=context)


def test_the_workflow_is_valid_and_its_commands_exist() -> None:
    workflow: dict[Any, Any] = yaml.safe_load(shown(".github/workflows/prompts.yml"))
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # `on` is true in YAML 1.1
    assert set(workflow[True]) == {"push", "pull_request"}
    [job] = workflow["jobs"].values()
    runs = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    [python] = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    assert python in SpecifierSet(PROJECT["requires-python"])
    for words in runs:
        if words[0] == "pomlflow":
            assert_command(words)
        else:
            assert_installable(words) if words[0] == "pip" else None
    assert [words[:2] for words in runs] == [
        ["pip", "install"], ["pomlflow", "check"], ["pytest", "tests/prompts"], ["pomlflow", "register"],
        ["pomlflow", "register"],
    ]  # fmt: skip


def test_the_pre_commit_hook_checks_the_files_that_it_is_given(tmp_path: Path) -> None:
    [repository] = yaml.safe_load(shown(".pre-commit-config.yaml"))["repos"]
    [hook] = repository["hooks"]
    assert hook["additional_dependencies"] == [PROJECT["name"]]
    for markup, code in (("<p>Hello {{name}}</p>", 0), ("<p>Hello {{name. }}</p>", 1)):
        file = tmp_path / "hello.poml"
        file.write_text(markup, encoding="utf-8")
        assert re.search(hook["files"], str(file))
        program, *words = shlex.split(hook["entry"])
        assert program in PROJECT["scripts"]
        assert CliRunner().invoke(cli, [*words, str(file)]).exit_code == code
    assert not re.search(hook["files"], "hello.context.json")


def test_the_dockerfile_names_existing_extras_and_fills_the_cache(tmp_path: Path) -> None:
    lines = [line.split(" ", 1) for line in shown("Dockerfile").splitlines() if line and not line.startswith("#")]
    instructions = [(name, rest) for name, rest in lines]
    settings = [rest for name, rest in instructions if name == "ENV"]
    [image] = [rest for name, rest in instructions if name == "FROM"]
    version = re.fullmatch(r"python:([\d.]+)-slim", image)
    assert version is not None
    assert version[1] in SpecifierSet(PROJECT["requires-python"])
    install, render = [rest for name, rest in instructions if name == "RUN"]
    assert_installable(shlex.split(install))
    environment = dict(word.split("=") for word in shlex.split(" ".join(settings)))
    cache = tmp_path / "cache"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["sh", "-c", render.replace(environment["POMLFLOW_CACHE_DIR"], str(cache))],
        env={**os.environ, "PATH": path, "POMLFLOW_CACHE_DIR": str(cache)}, check=True, timeout=120,
    )  # fmt: skip
    kept = list(cache.rglob("*"))
    assert any(file.is_file() for file in kept)
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in kept)
    [command] = [json.loads(rest) for name, rest in instructions if name == "CMD"]
    module, _, name = command[1].partition(":")
    assert re.search(rf"^{name} = ", shown(f"{module}.py"), re.MULTILINE)


@pytest.mark.parametrize(
    "block",
    [one for one in BLOCKS if one.language in ("toml", "yaml", "json")],
    ids=lambda one: one.title or f"line {one.line}",
)
def test_configuration_is_valid(block: Block) -> None:
    read = {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}[block.language]
    assert read(block.text)


def test_the_figures_of_readme_are_those_that_the_benchmark_wrote() -> None:
    figures = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8").splitlines()
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Figures")[2].partition("## More")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 5
    assert [row for row in rows if row not in figures] == []


def test_the_page_on_scaling_out_shows_the_code_of_the_example() -> None:
    example = (ROOT / "examples" / "ray_batch.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
    blocks_shown = [block.text for block in blocks(page) if block.language == "python" and not block.title]
    assert blocks_shown
    for text in blocks_shown:
        assert text in example or indent(text, "    ") in example


@pytest.mark.parametrize("file", ["chain.py", "engine.py", "agent.py", "shop/support.poml", "shop/rules.poml"])
def test_the_page_on_serving_shows_the_files_of_the_example(file: str) -> None:
    page = (ROOT / "docs" / "package-and-serve.md").read_text(encoding="utf-8")
    example = (ROOT / "examples" / "serve" / file).read_text(encoding="utf-8")
    assert [block.text for block in blocks(page) if block.title == file] == [example]


def test_each_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")))
    defined = {
        name
        for file in (ROOT / "tests" / "engine").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named <= defined
