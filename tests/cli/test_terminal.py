"""The command line as a program: its help, its completion in a shell, and a terminal's colours and progress."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.templates import HELLO, write

import pomlflow
from pomlflow.cli import cli


def program(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pomlflow", *arguments],
        input=given,
        encoding="utf-8",
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_it_runs_as_a_module_and_prints_its_version() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"pomlflow {pomlflow.__version__}\n")
    assert program("render", "-", "-c").returncode == 2


def test_help_has_examples(run: Run) -> None:
    for command in cli.commands:
        done = run(command, "--help")
        assert done.exit_code == 0
        assert f"\n  pomlflow {command} " in done.output or f"| pomlflow {command}" in done.output


def test_a_shell_completes_commands_and_options(run: Run) -> None:
    done = program(_POMLFLOW_COMPLETE="bash_complete", COMP_WORDS="pomlflow re", COMP_CWORD="1")
    assert {line.split(",")[1] for line in done.stdout.split()} == {"register", "render", "replay"}
    done = program(_POMLFLOW_COMPLETE="bash_complete", COMP_WORDS="pomlflow register --dr", COMP_CWORD="2")
    assert done.stdout.split() == ["plain,--dry-run"]


@pytest.mark.parametrize(
    ("arguments", "markup"),
    [
        (["render", "-", "-c", "a=🎉"], "<poml><p>🎉 {{a}}</p></poml>"),
        (["check", "-"], "<poml><p>🎉</p><p>{{ '🎉'.x.y }}</p></poml>"),
    ],
    ids=["render", "check"],
)
def test_what_the_terminal_cannot_encode_is_escaped(run: Run, arguments: list[str], markup: str) -> None:
    """An emoji in a message, and in the line that an error shows."""
    expected = run(*arguments, given=markup)
    shown = program(*arguments, given=markup, PYTHONIOENCODING="cp1252:strict")
    assert (shown.returncode, shown.stdout) == (expected.exit_code, expected.stdout.replace("🎉", r"\U0001f389"))


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_colours_unless_no_color_is_set(folder: Path, no_color: str) -> None:
    import pty

    write(folder / "a.poml", HELLO)
    parent, child = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR") if not no_color else None
    done = subprocess.run(
        [sys.executable, "-m", "pomlflow", "render", "a.poml", "-c", "name=Ada"],
        stdout=child, stderr=subprocess.PIPE, env=environment, check=True, timeout=60,
    )  # fmt: skip
    os.close(child)
    shown = os.read(parent, 10_000).decode()
    os.close(parent)
    assert done.stderr == b""
    assert "Hello Ada" in shown
    assert "human" in shown
    assert ("\x1b[32m" in shown) == (not no_color)


class Terminal:
    """A pseudo-terminal as standard error, and what a command of this process writes to it and to standard output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
        import pty

        parent, child = pty.openpty()
        self._patch, self._capsys = monkeypatch, capsys
        self._read, self._file = os.fdopen(parent, "rb", 0), os.fdopen(child, "w", encoding=encoding)
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._drain)  # a full terminal blocks

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while data := self._read.read(4096):
                self._shown.append(data)

    def run(self, *arguments: str) -> tuple[int, str, bytes]:
        """The exit code, standard output, and what the terminal got."""
        self._reader.start()
        self._capsys.readouterr()
        with self._patch.context() as patch:
            patch.setattr(sys, "stderr", self._file)
            patch.setenv("TERM", "xterm-256color")
            code = cli.main(list(arguments), prog_name="pomlflow", standalone_mode=False)
        self._file.close()
        self._reader.join()
        self._read.close()
        return code, self._capsys.readouterr().out, b"".join(self._shown)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_check_of_many_shows_a_bar_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    """What it prints stays in the pipe that it goes to."""
    write(folder / "p" / "wrong.poml", "<p>{{ a. }}</p>")
    code, printed, shown = Terminal(monkeypatch, capsys, encoding).run("check", "p")
    assert (code, printed) == (1, "p/wrong.poml:1:4: Unexpected token '}'\n")
    bars = [f"checking [{'#' * done:-<30}] {number} of 3".encode() for number, done in ((1, 0), (2, 10), (3, 20))]
    assert [bar in shown for bar in bars] == [True] * 3
    assert b"wrong.poml" not in shown
    assert shown.isascii()
    assert b"3 checked, 1 with problems" in shown
    assert b"checking" not in Terminal(monkeypatch, capsys, encoding).run("check", "p/support.poml")[2], "of one"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_register_and_replay_show_their_progress_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mlflow_store: str
) -> None:
    write(folder / "p" / "other.poml", HELLO)
    code, printed, shown = Terminal(monkeypatch, capsys, "utf-8").run("register", "p")
    assert (code, len(printed.splitlines())) == (0, 2)
    assert b"registering [###############---------------] 2 of 2" in shown
    pomlflow.autolog(register=False)
    pomlflow.render(Path("p/other.poml"), {"name": "Ada"})
    pomlflow.autolog(disable=True)
    pomlflow.flush()
    import mlflow

    trace = str(mlflow.get_last_active_trace_id())
    code, printed, shown = Terminal(monkeypatch, capsys, "utf-8").run("replay", trace, trace)
    assert (code, printed.count("1 identical")) == (0, 2)
    assert b"replaying [###############---------------] 2 of 2" in shown
