"""However a Python process ends, its Node process ends with it; and Ctrl-C ends a render and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc; the lifeline is Linux's")

Script = Callable[..., "subprocess.Popen[str]"]

# Renders, prints its worker's process id, and ends in the given way; "looping": while a template loops for ever.
PARENT = """
import asyncio, os, signal, sys, threading, time
from pathlib import Path
from pomlflow import engine
from tests import rendering
from tests.waiting import until

how, looping, begun = sys.argv[1], sys.argv[2] == "looping", Path(sys.argv[3])
LOOP = "<p>{{ (() => { process.getBuiltinModule('fs').writeFileSync(%r, ''); for (;;); })() }}</p>" % str(begun)

def start():
    rendering.render("<p>a</p>", {})

if how == "a thread that is gone":  # the parent of the worker is the process, not the thread
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
[worker] = engine.stats().pids

def loop():
    try:
        rendering.render(LOOP, {})
    except Exception:
        pass

if looping:
    threading.Thread(target=loop, daemon=True).start()
    until(begun.exists)
print(worker, flush=True)

if how == "end":
    pass
elif how == "exit in a thread":
    threading.Thread(target=sys.exit).start()
elif how == "os._exit":
    os._exit(0)
elif how == "unhandled error":
    raise KeyError("expected")
else:
    time.sleep(600)
"""


@pytest.mark.parametrize("state", ["idle", "looping"])
@pytest.mark.parametrize(
    "how",
    ["end", "exit in a thread", "os._exit", "unhandled error", "SIGTERM", "SIGKILL", "SIGINT", "a thread that is gone"],
)
def test_the_worker_ends_with_its_parent(
    how: str,
    state: str,
    script_without_sandbox: Script,
    alive: Callable[[int], bool],
    until: Callable[[Any], Any],
    tmp_path: Path,
) -> None:
    parent = script_without_sandbox(PARENT, how, state, str(tmp_path / "begun"))
    assert parent.stdout
    worker = int(parent.stdout.readline())
    if how.startswith("SIG"):
        assert alive(worker)
        parent.send_signal(getattr(signal, how))
    elif how == "a thread that is gone":
        assert alive(worker)
        parent.kill()
    parent.wait(30)
    until(lambda: not alive(worker))


def test_the_lifeline_is_what_ends_a_looping_worker(
    script_without_sandbox: Script, alive: Callable[[int], bool], until: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Without it, a worker that loops does not notice the end of its stdin: the workaround is still needed."""
    cut = "from pomlflow.engine import process\nprocess.tie_to_parent = lambda *_: None\n"
    parent = script_without_sandbox(cut + PARENT, "SIGKILL", "looping", str(tmp_path / "begun"))
    assert parent.stdout
    worker = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait(30)
        # Once it has another parent, its stdin is closed too.
        until(lambda: Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1] != str(parent.pid))
        assert alive(worker)
    finally:
        os.kill(worker, signal.SIGKILL)


INTERRUPTED = """
import sys
from pathlib import Path
from pomlflow import engine
from tests import rendering

begun = sys.argv[1]
LOOP = "<p>{{ (() => { process.getBuiltinModule('fs').writeFileSync(%r, ''); for (;;); })() }}</p>" % begun
rendering.render("<p>a</p>", {})
[first] = engine.stats().pids
try:
    rendering.render(LOOP, {})
except KeyboardInterrupt:
    print("interrupted", first in engine.stats().pids)
print(rendering.render("<p>{{who}}</p>", {"who": "next"})["messages"][0]["content"])
"""


def test_ctrl_c_ends_a_render_at_once_and_the_next_one_works(
    script_without_sandbox: Script, until: Callable[[Any], Any], finish: Callable[[Any], str], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    program = script_without_sandbox(INTERRUPTED, str(begun))
    until(begun.exists)
    program.send_signal(signal.SIGINT)
    assert finish(program) == "interrupted False\nnext\n"


WAITING = """
import os, signal, sys, threading
from pathlib import Path
from pomlflow import engine
from tests import rendering
from tests.waiting import until

begun = sys.argv[1]
BUSY = "<p>{{ (() => { process.getBuiltinModule('fs').writeFileSync(%r, ''); for (;;); })() }}</p>" % begun
looping = threading.Thread(target=lambda: engine.run(engine.Request(BUSY), 3), daemon=True)
threading.excepthook = lambda args: None
looping.start()
until(Path(begun).exists)

def interrupt():
    until(lambda: engine.stats().waiting)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    rendering.render("<p>a</p>", {})
except KeyboardInterrupt:
    print("interrupted")
looping.join()
print(rendering.render("<p>{{who}}</p>", {"who": "next"})["messages"][0]["content"])
"""


def test_ctrl_c_ends_a_render_that_waits_in_the_queue(
    script_without_sandbox: Script, finish: Callable[[Any], str], tmp_path: Path
) -> None:
    assert finish(script_without_sandbox(WAITING, str(tmp_path / "begun"))) == "interrupted\nnext\n"


AWAITED = """
import asyncio, os, signal, sys, threading
from pathlib import Path
from pomlflow import engine
from tests import rendering
from tests.waiting import until

begun = sys.argv[1]
LOOP = "<p>{{ (() => { process.getBuiltinModule('fs').writeFileSync(%r, ''); for (;;); })() }}</p>" % begun
os.setpgrp()  # as a shell's job: a terminal sends Ctrl-C to the whole group

def interrupt():
    until(lambda: Path(begun).exists() and engine.stats().waiting >= 5)
    os.killpg(0, signal.SIGINT)

async def main():
    await asyncio.gather(rendering.arender(LOOP, {}), *(rendering.arender("<p>a</p>", {}) for _ in range(5)))

rendering.render("<p>a</p>", {})
threading.Thread(target=interrupt, daemon=True).start()
try:
    asyncio.run(main())
except KeyboardInterrupt:
    stats = engine.stats()
    print("interrupted", stats.waiting, stats.cancelled)
print(asyncio.run(rendering.arender("<p>{{who}}</p>", {"who": "next"}))["messages"][0]["content"])
"""


def test_ctrl_c_in_a_terminal_ends_awaited_renders_and_the_next_one_works(
    script_without_sandbox: Script, finish: Callable[[Any], str], tmp_path: Path
) -> None:
    """The one that loops, and those that wait for it."""
    assert finish(script_without_sandbox(AWAITED, str(tmp_path / "begun"))) == "interrupted 0 6\nnext\n"


IDLE = """
import os, signal
from pomlflow import engine
from tests import rendering

os.setpgrp()
rendering.render("<p>a</p>", {})
[first] = engine.stats().pids
try:
    os.killpg(0, signal.SIGINT)
except KeyboardInterrupt:
    rendering.render("<p>a</p>", {})
print(first in engine.stats().pids)
"""


def test_ctrl_c_does_not_reach_the_worker(script: Script, finish: Callable[[Any], str]) -> None:
    """A Python shell or a notebook goes on with its warm process."""
    assert finish(script(IDLE)) == "True\n"


ASYNC = """
import asyncio, sys, threading
from pathlib import Path
from pomlflow import engine
from tests import rendering
from tests.waiting import until

begun = sys.argv[1]
LOOP = "<p>{{ (() => { process.getBuiltinModule('fs').writeFileSync(%r, ''); for (;;); })() }}</p>" % begun
threading.Thread(target=lambda: asyncio.run(rendering.arender(LOOP, {})), daemon=True).start()
until(Path(begun).exists)
[worker] = engine.stats().pids
print(worker, flush=True)
"""


def test_an_exit_during_an_async_render_on_a_daemon_thread(
    script_without_sandbox: Script, alive: Callable[[int], bool], tmp_path: Path
) -> None:
    program = script_without_sandbox(ASYNC, str(tmp_path / "begun"))
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert not alive(int(output))
    assert "ResourceWarning" not in errors
    assert "Fatal" not in errors


RENDER_AT_EXIT = """
import atexit
def late():
    try:
        print(rendering.render("<p>late</p>", {})["messages"][0]["content"], flush=True)
    except EngineError as error:
        print(error, flush=True)
atexit.register(late)
from pomlflow import engine
from tests import rendering
from pomlflow.exceptions import EngineError
rendering.render("<p>a</p>", {})
"""


def test_a_render_after_the_engine_was_closed_at_exit_works_or_is_refused(
    script: Script, finish: Callable[[Any], str]
) -> None:
    """Handlers run last in, first out: the engine's own runs before one registered earlier. The exit never hangs."""
    refused = "Node cannot be started while the interpreter ends: render before that"
    # 3.12 starts no thread then; 3.13 does in some of its releases.
    assert finish(script(RENDER_AT_EXIT)) in ({"late\n"} if sys.version_info < (3, 12) else {"late\n", f"{refused}\n"})


NOTHING_OPEN = """
import gc
from pomlflow import engine
from tests import rendering
rendering.render("<p>a</p>", {})
engine.close()
rendering.render("<p>a</p>", {})
gc.collect()
"""


def test_an_exit_prints_nothing(script: Script, finish: Callable[[Any], str]) -> None:
    """No ResourceWarning: warnings are errors in these programs, and their stderr must be empty."""
    assert finish(script(NOTHING_OPEN)) == ""
