"""Faults of a Node process before, during and after a render; the next render is right."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import rendering
from tests.processes import children

from pomlflow import engine, settings
from pomlflow.engine import installation as install
from pomlflow.engine.process import NodeProcess
from pomlflow.exceptions import EngineError, RenderError, RenderTimeoutError, WorkerDiedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

JS = Callable[[str], str]
FS = "process.getBuiltinModule('fs')"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def usable(no_sandbox: None, hello: Callable[[], str]) -> Iterator[None]:
    """After each test the next render works."""
    yield
    assert hello() == "Hello Ada"


def text(markup: str, limit: float = 30) -> Any:
    return engine.run(engine.Request(markup), limit).output["messages"][0]["content"]


def counted(log: Path, code: str) -> str:
    """JavaScript that leaves a mark each time that it is run."""
    return f"{FS}.appendFileSync({str(log)!r}, 'x'); {code}"


def busy(result: str) -> str:
    return f"const end = Date.now() + 1000; while (end > Date.now()); return {result!r}"


def test_the_handshake_holds_the_versions() -> None:
    process = NodeProcess(install.find())
    process.close()
    assert process.hello["poml"] == engine.poml_version()
    install.check_versions(process.hello["node"], process.hello["poml"])


# --- killed from outside


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_process_that_was_killed_while_idle_is_replaced(how: signal.Signals, worker: Callable[[], int]) -> None:
    first = worker()
    os.kill(first, how)
    assert text("<p>a</p>") == "a"
    assert worker() != first


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS])
def test_a_render_whose_process_was_killed_is_done_again(
    how: signal.Signals, js: JS, worker: Callable[[], int], until: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Silently, once, and with the right result."""
    log, pid = tmp_path / "log", worker()

    def kill() -> None:
        until(log.exists)
        os.kill(pid, how)

    killer = threading.Thread(target=kill)
    killer.start()
    assert text(js(counted(log, busy("done")))) == "done"
    killer.join()
    assert log.read_text(encoding="utf-8") == "xx"


async def test_an_async_render_whose_process_was_killed_is_done_again(
    js: JS, worker: Callable[[], int], until: Callable[[Any], Any], tmp_path: Path
) -> None:
    log, pid = tmp_path / "log", worker()
    running = asyncio.create_task(rendering.arender(js(counted(log, busy("done"))), {}))
    await asyncio.to_thread(until, log.exists)
    os.kill(pid, signal.SIGKILL)
    assert (await running)["messages"][0]["content"] == "done"


def test_a_render_that_is_killed_twice_fails(js: JS, tmp_path: Path) -> None:
    """A process that kills itself looks killed from outside: one retry, no more."""
    log = tmp_path / "log"
    with pytest.raises(WorkerDiedError, match=r"ended with SIGKILL\nIt was tried twice") as died:
        text(js(counted(log, "process.kill(process.pid, 'SIGKILL'); for (;;)")))
    assert died.value.returncode == -signal.SIGKILL
    assert log.read_text(encoding="utf-8") == "xx"


@linux
def test_a_process_that_is_killed_in_its_start_is_started_again(fresh: None, until: Callable[[Any], Any]) -> None:
    results: list[str] = []
    before = children()
    rendering = threading.Thread(target=lambda: results.append(text("<p>a</p>")))
    rendering.start()
    [starting] = until(lambda: children() - before)
    os.kill(starting, signal.SIGKILL)
    rendering.join()
    assert results == ["a"]


# --- stopped


def test_a_process_that_was_stopped_is_ended_at_its_limit(worker: Callable[[], int]) -> None:
    os.kill(worker(), signal.SIGSTOP)
    with pytest.raises(RenderTimeoutError):
        text("<p>a</p>", 0.5)


# --- ended by the template


@pytest.mark.parametrize(
    ("code", "returncode"),
    [("process.exit(0)", 0), ("process.exit(3)", 3), ("process.abort()", -signal.SIGABRT)],
)
def test_a_template_that_ends_its_process_fails_and_is_not_tried_again(
    code: str, returncode: int, js: JS, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(WorkerDiedError, match=r"^/x\.poml: the Node process ended with") as died:
        rendering.render(js(counted(log, f"console.error('last words'); {code}")), {}, path="/x.poml")
    assert died.value.returncode == returncode
    assert "last words" in died.value.stderr
    assert "last words" in str(died.value)
    assert log.read_text(encoding="utf-8") == "x"


def test_a_template_that_exhausts_the_heap_fails_and_is_not_tried_again(
    fresh: None, js: JS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V8's heap is capped; the message names the heap. A smaller cap than usual, for a shorter test."""
    monkeypatch.setenv("POMLFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(install, "FLAGS", ("--max-old-space-size=128",))
    log = tmp_path / "log"
    with pytest.raises(WorkerDiedError, match="JavaScript heap out of memory") as died:
        text(js(counted(log, "const all = []; for (;;) all.push(new Array(1e6).fill(all.length))")))
    assert died.value.returncode == -signal.SIGABRT
    assert log.read_text(encoding="utf-8") == "x"


def test_the_heap_is_capped() -> None:
    [cap] = [flag for flag in install.FLAGS if flag.startswith("--max-old-space-size=")]
    limit = "process.getBuiltinModule('v8').getHeapStatistics().heap_size_limit"
    assert float(text(f"<p>{{{{ {limit} }}}}</p>")) / 2**20 < int(cap.split("=")[1]) * 1.1


@linux
def test_a_template_that_ends_its_process_later_fails_no_other_render(js: JS, until: Callable[[Any], Any]) -> None:
    assert text(js("setTimeout(() => process.exit(4), 700); return 'now'")) == "now"
    [pid] = engine.stats().pids
    until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))  # all of its threads have ended
    assert text("<p>a</p>") == "a"


def test_a_template_that_closes_its_standard_streams_fails_alone(js: JS) -> None:
    with pytest.raises(WorkerDiedError):
        text(js(f"{FS}.closeSync(1); return 1"))


# --- out of time


def test_an_endless_loop_is_ended_with_a_remedy(js: JS, tmp_path: Path) -> None:
    log, file = tmp_path / "log", str(tmp_path / "endless.poml")
    with pytest.raises(RenderTimeoutError) as failed:
        engine.run(engine.Request(js(counted(log, "for (;;)")), path=file, label=file), 0.5)
    assert failed.value.file == file
    assert str(failed.value) == (
        f"{file}: the render took longer than 0.5 s and was ended\n"
        "raise the limit with pomlflow.configure(timeout=…), or look for an expression that never ends"
    )
    assert isinstance(failed.value, TimeoutError)
    assert log.read_text(encoding="utf-8") == "x"


def test_inline_markup_that_is_out_of_time_has_no_file(js: JS) -> None:
    with pytest.raises(RenderTimeoutError, match=r"^<inline>: the render") as failed:
        engine.run(engine.Request(js("for (;;)"), path="/folder/x.poml"), 0.2)
    assert failed.value.file is None


async def test_an_endless_loop_in_an_async_render_is_ended(js: JS) -> None:
    with pytest.raises(RenderTimeoutError):
        await engine.arun(engine.Request(js("for (;;)")), 0.5)


def test_the_configured_limit_holds(js: JS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_current", settings.Settings(timeout=0.25))
    with pytest.raises(RenderTimeoutError, match=r"longer than 0\.25 s"):
        rendering.render(js("for (;;)"), {})


def test_a_render_that_waits_for_ever_is_ended() -> None:
    """As for a web page whose server never answers: Node is idle, and the render's promise never settles."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(RenderTimeoutError):
            text(f'<webpage url="{url}"/>', 1)


@pytest.mark.parametrize("pieces", [1, 2, 3, 50])
def test_requests_that_arrive_in_pieces_are_read_whole(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NodeProcess._write  # noqa: SLF001 - the pieces of a write

    def in_pieces(process: NodeProcess, data: bytes) -> None:
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            whole(process, data[at : at + size])

    monkeypatch.setattr(NodeProcess, "_write", in_pieces)
    values = [f"{number}é" * (1 + 9 * number) for number in range(100)]
    rendered = [rendering.render("<p>{{value}}</p>", {"value": value})["messages"][0]["content"] for value in values]
    assert rendered == values


@linux
def test_a_process_sleeps_when_no_more_requests_come(
    worker: Callable[[], int], until: Callable[[Any], Any], hello: Callable[[], str]
) -> None:
    pid = worker()
    for _ in range(200):
        hello()
    assert until(lambda: Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "S")


def test_a_request_that_is_not_read_is_ended(worker: Callable[[], int]) -> None:
    """30 MB do not fit into a pipe: the write itself waits."""
    context, _ = engine.encode({"long": "x" * 30_000_000})
    os.kill(worker(), signal.SIGSTOP)
    with pytest.raises(RenderTimeoutError):
        engine.run(engine.Request("<p>{{long.length}}</p>", context), 0.5)


def test_a_long_limit_and_a_short_one_at_the_same_time(js: JS) -> None:
    """The watchdog sleeps until the nearest deadline that it knows; a nearer one must wake it."""
    assert text("<p>a</p>", 10**12) == "a"
    with pytest.raises(RenderTimeoutError):
        text(js("for (;;)"), 0.2)


# --- garbage and floods


@pytest.mark.parametrize("garbage", ["garbage", "garbage\\n", '{"id":1}\\n', "\\n\\n\\n", "\\u0000\\u00ff"])
def test_what_a_template_writes_to_stdout_by_hand_is_ignored(garbage: str, js: JS) -> None:
    assert text(js(f"{FS}.writeSync(1, '{garbage}'); return 5")) == "5"
    assert text("<p>a</p>") == "a"


def test_what_a_template_writes_to_stdout_later_is_ignored(js: JS) -> None:
    assert text(js(f"setTimeout(() => {FS}.writeSync(1, 'late'), 1); return 1")) == "1"
    assert [text(f"<p>{i}</p>") for i in range(50)] == [str(i) for i in range(50)]


@pytest.mark.parametrize("stream", ["log", "error"])
def test_a_flood_on_the_console_neither_hangs_nor_breaks(stream: str, js: JS) -> None:
    code = f"const line = 'x'.repeat(1e6); for (let i = 0; 50 > i; i++) console.{stream}(line); return 'done'"
    assert text(js(code)) == "done"
    assert text("<p>a</p>") == "a"


@pytest.mark.parametrize("number", [1, 2])
def test_a_flood_by_hand_on_stdout_and_stderr_neither_hangs_nor_breaks(number: int, js: JS) -> None:
    code = (
        f"const fs = {FS}; const line = Buffer.alloc(1e6, 'x'); let left = 50e6; while (left > 0) "
        f"try {{ left -= fs.writeSync({number}, line); }} catch (e) {{ if (e.code !== 'EAGAIN') throw e; }}; "
        "return 'done'"
    )
    assert text(js(code)) == "done"
    assert text("<p>a</p>") == "a"


def test_what_a_render_printed_is_not_in_the_error_of_a_later_one(js: JS) -> None:
    assert text(js("console.error('of the first'); return 1")) == "1"
    assert text("<p>a</p>") == "a"
    with pytest.raises(WorkerDiedError) as died:
        text(js("process.exit(1)"))
    assert "of the first" not in str(died.value)


# --- left after a render


@pytest.mark.parametrize(
    "code",
    [
        "setTimeout(() => { throw new Error('late'); }, 1)",
        "Promise.reject(new Error('never awaited'))",
        "process.nextTick(() => { throw null; })",
        "queueMicrotask(() => { throw new Error('micro'); })",
    ],
)
def test_what_a_template_leaves_breaks_no_later_render(code: str, js: JS, worker: Callable[[], int]) -> None:
    first = worker()
    for _ in range(3):
        assert text(js(f"{code}; return 7")) == "7"
        assert text("<p>a</p>") == "a"
    assert worker() == first


def test_what_is_no_json_fails_alone(js: JS) -> None:
    """A frame that has no form in JSON is an error of its own render only."""
    with pytest.raises(RenderError, match="circular"):
        text(js("const a = []; a.push(a); return a"))


def test_half_an_emoji_in_the_result_becomes_a_replacement_character() -> None:
    assert text("<p>{{ '😀'[0] }}</p>") == "\ufffd"


# --- nothing is left


@linux
def test_restarts_leave_no_descriptor_no_zombie_and_no_thread(fresh: None, worker: Callable[[], int]) -> None:
    def counts() -> tuple[int, int, int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
        return len(list(Path("/proc/self/fd").iterdir())), len(children), threading.active_count()

    worker()
    before = counts()
    for _ in range(5):
        os.kill(worker(), signal.SIGKILL)
    worker()
    gc.collect()
    assert counts() == before


def test_parsed_files_are_kept_within_bounds(fresh: None, js: JS) -> None:
    """Markup built per call: 80 different ones of nothing but tags would take 130 MB, and their variables 80 MB."""
    heap = js(
        "process.getBuiltinModule('v8').setFlagsFromString('--expose-gc'); "
        "process.getBuiltinModule('vm').runInNewContext('gc')(); return process.memoryUsage().heapUsed / 2 ** 20"
    )
    before = float(text(heap))
    parts = "<b>x</b>" * 500  # parsed, and never rendered
    for number in range(80):
        markup = f'<p>{number} {{{{v.length}}}}<p if="false">{parts}</p></p>'
        assert rendering.render(markup, {"v": "x" * 1_000_000 + str(number)})["messages"]
    assert float(text(heap)) - before < 80


def test_close_leaves_nothing(fresh: None, worker: Callable[[], int], until: Callable[[Any], Any]) -> None:
    pid = worker()
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    ours = re.compile(r"pomlflow-(render|stderr|watchdog)")  # the registry's goes on, where another test began it
    until(lambda: not [thread for thread in threading.enumerate() if ours.fullmatch(thread.name)])


def test_a_node_that_cannot_be_started_is_named(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "node"
    node.write_text("no program", encoding="utf-8")
    found = install.find()
    monkeypatch.setattr(install, "find", lambda: install.Installation(node, found.bundle))
    with pytest.raises(EngineError, match=f"cannot start {node}: .*Permission denied"):
        rendering.render("<p>a</p>", {})
    monkeypatch.undo()


def test_a_node_that_ends_at_once_is_reported_with_its_stderr(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 127\n", encoding="utf-8")
    node.chmod(0o755)
    found = install.find()
    monkeypatch.setattr(install, "find", lambda: install.Installation(node, found.bundle))
    with pytest.raises(EngineError, match="did not start, it ended with exit code 127\nno such library") as failed:
        rendering.render("<p>a</p>", {})
    assert not isinstance(failed.value, WorkerDiedError)
    monkeypatch.undo()
