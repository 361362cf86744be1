"""POML's local trace files: the bytes that poml writes, complete, with one number for each render."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import poml
import pytest

import pomlflow
from pomlflow.exceptions import RenderError
from pomlflow.record import RenderRecord
from pomlflow.tracking.trace_files import TraceFiles

MARKUP = """<poml>
  <runtime temperature="0.5" seed="7"/>
  <output-schema>{"type": "object", "properties": {"a": {"type": "number", "maximum": 1e-7}}}</output-schema>
  <task>Greet {{name}}, naïvely.</task>
  <img syntax="multimedia" alt="a box" src="box.png"/>
  <list><item for="x in []">{{x}}</item></list>
</poml>
"""
BOX = Path(__file__).parents[1] / "corpus" / "assets" / "box.png"


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    file = tmp_path / "greet me.poml"
    file.write_text(MARKUP, encoding="utf-8")
    (tmp_path / "box.png").write_bytes(BOX.read_bytes())
    return file


@pytest.fixture
def autolog() -> Iterator[Callable[..., None]]:
    yield pomlflow.autolog
    pomlflow.autolog(disable=True)
    poml.set_trace(False)


def written(folder: Path) -> dict[str, str]:
    """The content of each file by its name; for a link, its target."""
    return {
        file.name: f"-> {file.readlink()}" if file.is_symlink() else file.read_bytes().decode()
        for file in sorted(folder.iterdir())
    }


def test_the_files_are_byte_for_byte_pomls_own(prompt: Path, tmp_path: Path, autolog: Callable[..., None]) -> None:
    given: dict[str, Any] = {
        "context": {"name": "Ada", "list": [], "none": {}, "small": 0.00001},
        "stylesheet": {"task": {"captionStyle": "bold"}},
    }
    theirs = poml.set_trace("local", trace_dir=tmp_path / "theirs")
    poml.poml(prompt, **given)
    poml.poml(prompt, {"name": "Ada"}, chat=False)
    poml.set_trace(False)
    autolog(log_traces=False, trace_dir=tmp_path / "ours")
    poml.poml(prompt, **given)
    pomlflow.render(prompt, {"name": "Ada"}, chat=False)
    (ours,) = (tmp_path / "ours").iterdir()
    assert theirs is not None
    assert len(ours.name) == len(theirs.name) == 20
    assert written(ours) == written(theirs)
    assert sorted(written(ours))[:3] == [
        "0001.greet me.context.json",
        "0001.greet me.env",
        "0001.greet me.poml",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_lead_to_the_prompt(prompt: Path, tmp_path: Path, record: Callable[..., RenderRecord]) -> None:
    prefix = TraceFiles(tmp_path).write(record(), prompt)
    assert Path(f"{prefix}.source.poml").resolve() == prompt.resolve()


def test_files_of_inline_markup_are_named_by_number_and_prompt(
    tmp_path: Path, record: Callable[..., RenderRecord]
) -> None:
    files = TraceFiles(tmp_path)
    prefixes = [files.write(record(name=name), None).name for name in (None, "greet")]
    assert prefixes == ["0001", "0002.greet"]


def test_a_failed_render_is_written_without_a_result(tmp_path: Path, autolog: Callable[..., None]) -> None:
    autolog(log_traces=False, trace_dir=tmp_path)
    with pytest.raises(RenderError):
        pomlflow.poml("<nope>{{1}}</nope>", {"name": "Ada"})
    (folder,) = tmp_path.iterdir()
    assert sorted(written(folder)) == ["0001.context.json", "0001.poml"]


def test_a_mask_holds_for_files_too(tmp_path: Path, autolog: Callable[..., None]) -> None:
    def mask(content: dict[str, Any]) -> dict[str, Any]:
        content["inputs"]["context"]["name"] = "?"
        return {"inputs": content["inputs"]}

    expected = {"0001.context.json": '{\n  "name": "?"\n}', "0001.poml": "<p>{{name}}</p>"}
    autolog(log_traces=False, trace_dir=tmp_path / "ours", mask=mask)
    assert pomlflow.poml("<p>{{name}}</p>", {"name": "Ada"})[0]["content"] == "Ada"
    (folder,) = (tmp_path / "ours").iterdir()
    assert written(folder) == expected
    theirs = poml.set_trace("local", trace_dir=tmp_path / "theirs")
    poml.poml("<p>{{name}}</p>", {"name": "Ada"})
    assert written(Path(str(theirs))) == expected


def test_numbers_that_exist_are_skipped(tmp_path: Path, record: Callable[..., RenderRecord]) -> None:
    """POML's Node processes may write to the folder, too."""
    (tmp_path / "0001.other.poml").touch()
    (tmp_path / "0002.other.result.json").touch()
    assert TraceFiles(tmp_path).write(record(), None).name == f"0003.{record().name}"


def test_numbers_go_on_after_9999(tmp_path: Path, record: Callable[..., RenderRecord]) -> None:
    for number in range(1, 10_001):
        (tmp_path / f"{number:04}.other.poml").touch()
    assert TraceFiles(tmp_path).write(record(name="new"), None).name == "10001.new"


def test_threads_and_processes_take_a_number_each(tmp_path: Path, record: Callable[..., RenderRecord]) -> None:
    records = [record(source=f"<p>{number}</p>", context=b'{"n": %d}' % number, name=None) for number in range(20)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda one: TraceFiles(tmp_path).write(one, None), records))
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as processes:
        list(processes.map(_write, [tmp_path] * 20, records))
    found = written(tmp_path)
    assert sorted(name for name in found if name.endswith(".poml")) == [f"{n:04}.poml" for n in range(1, 41)]
    for number in range(1, 41):  # the files of one number are of one render
        n = json.loads(found[f"{number:04}.context.json"])["n"]
        assert found[f"{number:04}.poml"] == f"<p>{n}</p>"


def _write(folder: Path, one: RenderRecord) -> None:
    TraceFiles(folder).write(one, None)


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: TraceFiles.of_this_run(tmp_path / "runs").folder, range(50)))
    assert len(set(folders)) == 50


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, autolog: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the path of a template."""
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    autolog(log_traces=False, trace_dir="~/runs")
    pomlflow.poml("<p>Hello</p>")
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_full_disk_does_not_stop_a_render(
    tmp_path: Path, autolog: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    autolog(log_traces=False, trace_dir=tmp_path)
    monkeypatch.setattr("pomlflow.tracking.trace_files._write", full)
    for _ in range(2):
        assert pomlflow.poml("<p>Hello</p>")[0]["content"] == "Hello"
    (warning,) = [message for message in caplog.messages if "trace_files" in message]
    assert "No space left on device" in warning
