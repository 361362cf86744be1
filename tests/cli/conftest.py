"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.templates import write

from pomlflow.cli import cli

MARKUP = """\
<poml>
  <system-msg>You help {{name}}. <include src="parts/tone.poml"/></system-msg>
  <human-msg>{{question}}</human-msg>
  <runtime temperature="0.2"/>
</poml>
"""
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two prompts of which one is a part of the other."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # a command sets it; restored after the test
        monkeypatch.delenv(name)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write(tmp_path / "p" / "support.poml", MARKUP)
    write(tmp_path / "p" / "parts" / "tone.poml", "<p>Be kind.</p>")
    return tmp_path


@pytest.fixture
def run() -> Run:
    """Run a command in this process; an exception, whose traceback a user would see, is raised."""

    def run(*arguments: str, given: str | bytes | None = None) -> Result:
        done = CliRunner().invoke(cli, arguments, input=given, prog_name="pomlflow")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception  # a user would see its traceback
        return done

    return run
