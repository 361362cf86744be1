"""The commands under "Prompts in CI" of the documentation, run unchanged against a real server."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from tests.mlflow_server import MlflowServer

from pomlflow.cli import cli
from pomlflow.template import Template
from pomlflow.tracking.spans import log_render

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.server


def commands() -> list[list[str]]:
    """The words of each command, split as by a shell."""
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    found = re.search(r"^## Prompts in CI\n\n<!-- not run: .+? -->\n```sh\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return [shlex.split(os.path.expandvars(line)) for line in found[1].splitlines() if line and line[0] != "#"]


def run(words: list[str]) -> Result:
    assert words[0] == "pomlflow"
    return CliRunner().invoke(cli, words[1:], prog_name="pomlflow", catch_exceptions=False)


def test_the_walk_through_runs(
    mlflow_server: MlflowServer,
    use_server: Callable[[MlflowServer], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples" / "prompts", tmp_path / "prompts")
    use_server(mlflow_server)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "INFO" if "LEVEL" in name else "7"))  # the command line sets them
    with mlflow.start_span("chain") as span:
        given = {"question": "Why?", "facts": [{"text": "Swell.", "source": "log"}]}
        log_render(Template(path="prompts/briefing.poml").render(given), parent=span, register=False)
    monkeypatch.setenv("TRACE_ID", span.trace_id)

    done = [run(words) for words in commands()]
    assert [one.exit_code for one in done] == [0] * len(done), [one.output for one in done]
    check, dry, register, diff, pull, render, replay = done
    checked = len(list((tmp_path / "prompts").glob("*.poml")))
    assert check.stderr == f"{checked} checked, none with problems\n"
    assert "new prompts.briefing prompts/briefing.poml" in " ".join(dry.stdout.split())
    assert "new prompts.briefing/1 prompts/briefing.poml" in " ".join(register.stdout.split())
    assert diff.stderr == "prompts/briefing.poml is identical to prompts:/prompts.briefing/1\n"
    assert pull.stdout.split() == ["restored/prompts.briefing.poml", "restored/log.txt", "restored/track.png"]
    assert "Swell. (log)" in render.stdout
    assert replay.stdout.splitlines()[0] == f"{span.trace_id}: 1 identical"

    file = tmp_path / "prompts" / "briefing.poml"
    file.write_text(file.read_text(encoding="utf-8").replace("plain words", "few words"), encoding="utf-8")
    drift = run(commands()[3])
    assert (drift.exit_code, "few words" in drift.stdout) == (1, True), drift.output
