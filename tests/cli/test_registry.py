"""The commands that use MLflow: ``register``, ``diff``, ``pull`` and ``replay``."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result
from tests.cli.conftest import MARKUP, Run
from tests.mlflow_server import DEAD
from tests.templates import write

from pomlflow.template import Template
from pomlflow.tracking import load
from pomlflow.tracking.spans import log_render


def lines(done: Result) -> list[str]:
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("alias", ["a b", "", "Latest", "v1", "a/b", "a" * 256])
def test_an_invalid_alias_is_an_error_before_anything_is_written(
    run: Run, folder: Path, mlflow_store: str, alias: str
) -> None:
    name = f"q{os.getpid()}-alias"
    done = run("register", "p/support.poml", "--name", name, "--alias", alias)
    assert done.exit_code == 2
    assert f"the alias {alias!r} is invalid: MLflow accepts" in done.stderr
    assert mlflow.genai.load_prompt(name, allow_missing=True) is None


def test_a_folder_is_registered_compared_and_fetched(run: Run, folder: Path, mlflow_store: str) -> None:
    """What is new, unchanged and changed; a part of a prompt is none; files travel."""
    name = f"q{os.getpid()}"
    (folder / "p").rename(folder / name)
    file = f"{name}/support.poml"
    dry = run("register", name, "--dry-run")
    assert (dry.exit_code, lines(dry)) == (0, [f"new {name}.support {file}"])
    assert "1 new (nothing was written)" in dry.stderr
    assert run("diff", file).exit_code == 2

    assert lines(run("register", name, "--alias", "staging")) == [f"new {name}.support/1 {file}"]
    assert lines(run("register", name)) == [f"unchanged {name}.support/1 {file}"]
    same = run("diff", file, f"prompts:/{name}.support@staging")
    assert (same.exit_code, same.stdout) == (0, "")

    write(folder / name / "parts" / "tone.poml", "<p>Be brief.</p>")
    write(folder / file, MARKUP.replace("You help", "You assist"))
    drift = run("diff", file)
    assert drift.exit_code == 1
    uri = f"prompts:/{name}.support/1"
    assert drift.stdout.splitlines()[:6] == [
        f"--- {uri}", f"+++ {file}", "@@ -1,5 +1,5 @@", " <poml>",
        '-  <system-msg>You help {{name}}. <include src="parts/tone.poml"/></system-msg>',
        '+  <system-msg>You assist {{name}}. <include src="parts/tone.poml"/></system-msg>',
    ]  # fmt: skip
    part = f"--- {uri} parts/tone.poml\n+++ parts/tone.poml\n@@ -1 +1 @@\n-<p>Be kind.</p>\n+<p>Be brief.</p>\n"
    assert drift.stdout.endswith(part)
    assert lines(run("register", name, "--message", "Be brief")) == [f"changed {name}.support/2 {file}"]
    messages = [mlflow.MlflowClient().get_prompt_version(f"{name}.support", number).commit_message for number in (1, 2)]
    assert messages == [f"POML from {file}", "Be brief"]

    given = ["-c", "name=Ada", "-c", "question=Why?", "--json"]
    shown = run("render", f"prompts:/{name}.support@staging", *given)
    assert json.loads(shown.output)["messages"][0]["content"] == "You help Ada. \n\nBe kind."
    assert run("pull", uri, "-o", "-").stdout == MARKUP
    pulled = run("pull", uri, "-o", "out")
    assert lines(pulled) == [f"out/{name}.support.poml", "out/parts/tone.poml"]
    assert run("render", f"out/{name}.support.poml", *given).output == shown.output
    write(folder / "out" / "parts" / "tone.poml", "mine")
    kept = run("pull", uri, "-o", "out")
    assert kept.exit_code == 2
    assert "out/parts/tone.poml: different from" in kept.stderr
    assert run("pull", uri, "-o", "out", "--force").exit_code == 0
    assert (folder / "out" / "parts" / "tone.poml").read_text() == "<p>Be kind.</p>"


def test_a_prompt_may_be_registered_and_compared_under_another_name(run: Run, mlflow_store: str) -> None:
    name = f"named{os.getpid()}"
    assert lines(run("register", "p/support.poml", "--name", name)) == [f"new {name}/1 p/support.poml"]
    assert run("diff", "p/support.poml", "--name", name).exit_code == 0
    both = run("register", "p/support.poml", "p/parts/tone.poml", "--name", name)
    assert (both.exit_code, "--name is for one prompt, and there are 2" in both.stderr) == (2, True)


def test_what_does_not_render_is_not_registered(run: Run, folder: Path, mlflow_store: str) -> None:
    write(folder / "r" / f"wrong{os.getpid()}.poml", "<tsk/>")
    done = run("register", "r")
    assert done.exit_code == 1
    assert "Component tsk not found" in done.stdout
    assert run("diff", f"r/wrong{os.getpid()}.poml").exit_code == 2


def test_a_missing_prompt_or_trace_is_an_error(run: Run, mlflow_store: str) -> None:
    for arguments in (["pull", "prompts:/nobody@x"], ["diff", "p/support.poml", "nonsense:/x"], ["replay", "tr-none"]):
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: ")
    assert "no trace tr-none in sqlite:" in done.stderr


def test_a_store_is_shown_without_its_password_and_a_missing_driver_is_named(run: Run, mlflow_store: str) -> None:
    store = "mssql+pymssql://mlflow:secret@db/mlflow"
    mlflow.set_registry_uri(store)  # restored by the fixture
    done = run("register", "p", "--tracking-uri", store)
    assert done.exit_code == 2
    assert "registry: mssql+pymssql://***@db/mlflow" in done.stderr
    assert "Error: MLflow's store needs the package pymssql" in done.stderr
    assert "secret" not in done.output


@pytest.mark.parametrize("part", ["p/parts/tone.poml", "./p/parts/tone.poml", "p/../p/parts/tone.poml"])
def test_a_part_that_is_named_itself_is_registered_too(run: Run, mlflow_store: str, part: str) -> None:
    assert len(lines(run("register", "p", "--dry-run"))) == 1
    assert len(lines(run("register", "p", part, "--dry-run"))) == 2


def test_what_cannot_be_read_or_written_is_an_error(run: Run, folder: Path, mlflow_store: str) -> None:
    deep = write(folder / "deep.json", "[" * 200_000)
    name = f"written{os.getpid()}"
    file = write(folder / "w" / f"{name}.poml", "<p>Hello</p>")
    assert run("register", "w").exit_code == 0
    for arguments, message in (
        (["render", str(file), "--context-file", str(deep)], "invalid JSON"),
        (["pull", f"prompts:/w.{name}", "--output", str(file)], "exists"),
        (["pull", f"prompts:/w.{name}", "--output", f"{file}/sub"], "Not a directory"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unreachable_server_is_an_error(run: Run, mlflow_store: str) -> None:
    mlflow.set_registry_uri(DEAD)  # restored by the fixture
    for arguments in (["register", "p"], ["diff", "p/support.poml"], ["replay", "tr-none"]):
        done = run(*arguments, "--tracking-uri", DEAD)
        assert done.exit_code == 2
        assert "127.0.0.1" in done.stderr


@pytest.mark.parametrize("command", ["diff p/support.poml", "pull", "render"])
@pytest.mark.parametrize(("options", "seconds"), [((), 60), (("--timeout", "90"), 90)])
def test_a_slow_store_is_waited_for_and_its_error_names_the_option(
    run: Run, mlflow_store: str, monkeypatch: pytest.MonkeyPatch, command: str, options: tuple[str, ...], seconds: int
) -> None:
    fetch_within = load.fetch_within

    def slow(timeout: float, *given: Any) -> Any:
        assert timeout == seconds
        return fetch_within(0.01, *given)

    monkeypatch.setattr(load, "fetch_within", slow)
    answered = threading.Event()
    monkeypatch.setattr(load.Reference, "fetch", lambda *_: answered.wait(30))
    done = run(*command.split(), "prompts:/support/1", *options)
    answered.set()
    assert done.exit_code == 2
    assert "no answer within 0.01 s; try again, or allow more time with timeout= (--timeout on the" in done.stderr


def test_a_trace_is_replayed(run: Run, folder: Path, mlflow_store: str) -> None:
    with mlflow.start_span("chain") as span:
        record = Template(path="p/support.poml").render({"name": "Ada", "question": "Why?"})
        log_render(record, parent=span, register=False)
    done = run("replay", span.trace_id)
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"{span.trace_id}: 1 identical")
    write(folder / "p" / "parts" / "tone.poml", "<p>Be brief.</p>")
    done = run("replay", span.trace_id)
    assert done.exit_code == 1
    assert "  - Be kind.\n  + Be brief.\n  p/parts/tone.poml has changed" in done.output
    shown: dict[str, Any] = json.loads(run("replay", span.trace_id, "--json").output)
    assert shown["identical"] is False
    assert shown["renders"][0]["differences"] == [
        {"where": "messages[0].content", "then": "You help Ada. \n\nBe kind.", "now": "You help Ada. \n\nBe brief."}
    ]
    many = run("replay", span.trace_id, span.trace_id)
    assert (many.exit_code, many.output) == (1, done.output * 2)
    assert json.loads(run("replay", span.trace_id, span.trace_id, "--json").output) == [shown, shown]
    write(folder / "p" / "support.poml", "<p>You serve {{name}}.</p>")
    edited = run("replay", span.trace_id, "--with", "p/support.poml")
    assert (edited.exit_code, "+ You serve Ada.\n" in edited.output) == (1, True)
    assert edited.output.endswith("rendered with p/support.poml\n")
    assert run("replay", span.trace_id, "--with", "p/nowhere.poml").exit_code == 2
