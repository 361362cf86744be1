"""Faults of the engine's environment: the disk, variables, descriptors, event loops, servers that fork."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from tests import rendering

from pomlflow import engine
from pomlflow.exceptions import EngineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="POSIX limits and signals, and reads /proc")

Script = Callable[..., "subprocess.Popen[str]"]
Finish = Callable[[Any], str]

RENDER = """
from pomlflow import engine
from tests import rendering

def text(who="Ada"):
    return rendering.render("<p>Hello {{who}}</p>", {"who": who})["messages"][0]["content"]

def worker():
    [pid] = engine.stats().pids
    return pid

def pipes():
    # The descriptors here that lead to the worker.
    theirs = {os.readlink(f"/proc/{worker()}/fd/{number}") for number in os.listdir(f"/proc/{worker()}/fd")}
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if (link := os.readlink(f"/proc/self/fd/{number}")).startswith("pipe:") and link in theirs:
                found.append(number)
        except OSError:  # of the listing itself
            pass
    return found
"""


async def atext(who: object) -> str:
    return str((await rendering.arender("<p>Hello {{who}}</p>", {"who": who}))["messages"][0]["content"])


# --- the disk and the environment

FULL = """
import os, resource
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))  # the write that passes it fails half-way
print(text())
engine.close()
print(text(), len(list(Path(os.environ["POMLFLOW_CACHE_DIR"]).rglob("prepared"))))
"""


def test_a_disk_that_is_full_costs_no_render(script: Script, finish: Finish, tmp_path: Path) -> None:
    """The compiled code does not fit: later starts are slower, and nothing half-written is left."""
    cache = tmp_path / "cache"
    program = script(RENDER + FULL, POMLFLOW_CACHE_DIR=str(cache))
    assert finish(program) == "Hello Ada\nHello Ada 0\n"
    assert [file for file in cache.rglob("*") if file.is_file()] == []


BARE = """
import os, pwd, sys
for name in [name for name in os.environ if name not in {"PATH", "LD_LIBRARY_PATH"}]:
    del os.environ[name]
os.environ["TMPDIR"] = sys.argv[1]
def no_user_entry(uid):
    raise KeyError(uid)  # as for the user of a container, who has no name
pwd.getpwuid = no_user_entry
os.chdir(sys.argv[2])
"""

PICTURE = """
markup = "<p><img src='wide.png' maxWidth='40'/><document src='report.docx'/></p>"
[message] = rendering.render(markup, {})["messages"]
print(text(), [part["type"] for part in message["content"] if isinstance(part, dict)], "~" in os.listdir())
"""


def test_no_home_no_environment_and_no_temporary_folder_are_needed(
    script: Script, finish: Finish, tmp_path: Path
) -> None:
    """Pictures and documents included; and no folder named ~ is made in the working folder."""
    assets = Path(__file__).parents[1] / "corpus" / "assets"
    program = script(BARE + RENDER + PICTURE, str(tmp_path / "nowhere"), str(assets))
    assert finish(program) == "Hello Ada ['image/png', 'image/png'] False\n"


# --- descriptors

OPEN = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (2048 if hard == resource.RLIM_INFINITY else min(2048, hard), hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
"""


def test_descriptors_above_the_limit_of_select_work(script: Script, finish: Finish) -> None:
    """The worker's pipes have numbers above 1,024, the limit of select(2)."""
    program = OPEN + RENDER + "print(text(), min(pipes()) > 1024)"
    assert finish(script(program)) == "Hello Ada True\n"


EXHAUSTED = """
from pomlflow.exceptions import EngineError
text()
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
print(text("warm"))
os.kill(worker(), 9)
try:
    text()
except EngineError as error:
    print(error)
os.close(held.pop())
for number in held:
    os.close(number)
print(text("again"), len(os.listdir("/proc/self/fd")) < 40)
"""


def test_a_process_without_free_descriptors_fails_clearly_and_recovers(script: Script, finish: Finish) -> None:
    """A warm worker needs none; the error of a new one names the cause, and a later one starts."""
    warm, failed, again = finish(script(OPEN + RENDER + EXHAUSTED)).splitlines()
    assert (warm, again) == ("Hello warm", "Hello again True")
    assert failed.startswith("cannot start ")
    assert failed.endswith("Too many open files")


# --- event loops


def test_event_loops_one_after_another_leave_nothing(
    worker: Callable[[], int], until: Callable[[Callable[[], Any]], Any]
) -> None:
    first = worker()
    asyncio.run(atext("first"))

    def held() -> tuple[int, int]:
        return len([*Path("/proc/self/fd").iterdir()]), threading.active_count()

    descriptors, threads = held()
    assert [asyncio.run(atext(n)) for n in range(50)] == [f"Hello {n}" for n in range(50)]
    until(lambda: held()[0] <= descriptors)
    assert held()[1] < threads + 5  # threads of the engine may still be finishing
    assert worker() == first


async def test_nested_event_loops_of_a_notebook_work(hello: Callable[[], str]) -> None:
    """A cell calls `render`, awaits `arender`, and runs event loops of its own in threads."""
    assert hello() == "Hello Ada"
    assert await atext("cell") == "Hello cell"
    nested = [asyncio.to_thread(asyncio.run, atext(n)) for n in range(5)]
    assert await asyncio.gather(atext("outer"), *nested) == ["Hello outer", *(f"Hello {n}" for n in range(5))]


def test_uvloop(worker: Callable[[], int], js: Callable[[str], str]) -> None:
    """Renders side by side, one that is cancelled and one whose process is killed."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> list[str]:
        endless = asyncio.create_task(rendering.arender(js("for (;;)"), {}))
        while not engine.stats().running:  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.001)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        os.kill(await asyncio.to_thread(worker), signal.SIGKILL)
        return await asyncio.gather(*(atext(n) for n in range(50)))

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(main()) == [f"Hello {n}" for n in range(50)]
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_trio_renders_in_threads(hello: Callable[[], str]) -> None:
    """An awaited render is an error, after which no process is missing."""

    async def main() -> list[str]:
        for _ in range(2):
            with pytest.raises(EngineError, match=r"no asyncio event loop .*anyio\.to_thread\.run_sync"):
                await atext("trio")
        return [await anyio.to_thread.run_sync(hello) for _ in range(3)]

    assert anyio.run(main, backend="trio") == ["Hello Ada"] * 3


# --- ends and forks

DAEMONS = """
import os, threading
from pomlflow.exceptions import EngineError
from tests.processes import children

def work():
    try:
        while True:
            text()
            rendered.release()
    except EngineError:
        pass

rendered = threading.Semaphore(0)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    rendered.acquire()
print(*children())
"""


def test_an_exit_while_daemon_threads_render(script: Script, finish: Finish, alive: Callable[[int], bool]) -> None:
    """It prints nothing and leaves no process."""
    workers = [int(pid) for pid in finish(script(RENDER + DAEMONS)).split()]
    assert workers
    assert [pid for pid in workers if alive(pid)] == []


SERVER = """
import os
from pomlflow import engine

def text(who):
    request = engine.Request("<p>Hello {{who}}</p>", *engine.encode({"who": who}))
    return engine.run(request).output["messages"][0]["content"]

def nodes():
    return list(engine.stats().pids)

first, preloaded = text("preload"), nodes()

def app(environ, start_response):
    body = f"{os.getpid()}|{text(environ['PATH_INFO'])}|{[*preloaded, *nodes()]}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_gunicorn_that_has_rendered_before_it_forks(
    alive: Callable[[int], bool], until: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Each worker has a Node process of its own, no answer gets lost, and a SIGTERM ends them all."""
    pytest.importorskip("gunicorn")
    (tmp_path / "server.py").write_text(SERVER, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, number = listening.getsockname()[1], listening.fileno()
        options = ["--preload", "--workers=2", f"--bind=fd://{number}", f"--worker-tmp-dir={tmp_path}", "server:app"]
        command = [sys.executable, "-m", "gunicorn", *options]
        server = subprocess.Popen(command, cwd=tmp_path, pass_fds=[number], stderr=subprocess.PIPE, encoding="utf-8")

    def get(name: str) -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", f"/{name}")
            return connection.getresponse().read().decode().split("|")
        finally:
            connection.close()

    with server, ThreadPoolExecutor(4) as threads:
        try:
            seen: dict[str, set[int]] = {}

            def both() -> bool:
                names = [f"n{number}" for number in range(20)]
                for name, (pid, text, nodes) in zip(names, threads.map(get, names), strict=True):
                    assert text == f"Hello /{name}"
                    seen.setdefault(pid, set()).update(map(int, nodes.strip("[]").split(", ")))
                return len(seen) == 2

            until(both)
        finally:
            server.terminate()
            _, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    assert "Traceback" not in errors
    one, other = seen.values()
    assert (len(one), len(other), len(one & other)) == (2, 2, 1)  # the master's, and each one's own
    until(lambda: not any(alive(pid) for pid in one | other))
