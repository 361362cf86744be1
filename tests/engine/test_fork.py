"""Forks share no pipe and no lock with their parent, and do not keep its Node process alive."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")

Script = Callable[..., Any]
Finish = Callable[[Any], str]

# Each test runs a program: Python 3.12 warns when a process with threads forks, and warnings are errors here. The
# programs ignore that warning.
HEAD = """
import multiprocessing, os, signal, sys, threading, time, traceback, warnings
from pathlib import Path
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from pomlflow import engine
from tests import rendering
from tests.waiting import until

def text(who):
    return rendering.render("<p>{{who}} {{who}}</p>", {"who": who})["messages"][0]["content"]

def renders(name, count=30):
    return all(text(f"{name}{i}") == f"{name}{i} {name}{i}" for i in range(count))

def worker():
    [pid] = engine.stats().pids
    return pid

def in_fork(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        code = 0 if work() else 9
    except BaseException:
        traceback.print_exc()
        code = 8
    engine.close()
    os._exit(code)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_parent_that_has_rendered_and_two_forks_render_at_once(script: Script, finish: Finish) -> None:
    """As a server forks its workers; no answer goes to another process."""
    program = """
assert renders("first")
children = [in_fork(lambda: renders("child")), in_fork(lambda: renders("other"))]
assert renders("parent", 60)
print([ended(pid) for pid in children], renders("after"))
"""
    assert finish(script(HEAD + program)) == "[0, 0] True\n"


def test_a_fork_before_the_first_render(script: Script, finish: Finish) -> None:
    program = """
child = in_fork(lambda: renders("child"))
print(renders("parent"), ended(child))
"""
    assert finish(script(HEAD + program)) == "True 0\n"


def test_a_fork_of_a_fork(script: Script, finish: Finish) -> None:
    program = """
assert renders("first")
def child():
    return renders("child") and ended(in_fork(lambda: renders("grandchild"))) == 0 and renders("again")
print(ended(in_fork(child)))
"""
    assert finish(script(HEAD + program)) == "0\n"


def test_a_fork_while_another_thread_renders(script: Script, finish: Finish) -> None:
    """A fork can happen while the engine's locks are held."""
    program = """
running, wrong = True, []
def render():
    while running:
        if not renders("thread", 5):
            wrong.append(1)
threads = [threading.Thread(target=render) for _ in range(2)]
for thread in threads:
    thread.start()
codes = [ended(in_fork(lambda: renders("child", 3))) for _ in range(6)]
running = False
for thread in threads:
    thread.join()
print(codes, wrong)
"""
    assert finish(script(HEAD + program)) == "[0, 0, 0, 0, 0, 0] []\n"


def test_a_fork_while_another_thread_starts_the_process(script: Script, finish: Finish) -> None:
    """A child keeps no pipe of a process that was starting: that process ends with the parent."""
    program = """
thread = threading.Thread(target=renders, args=("thread",))
thread.start()
pids = [in_fork(lambda: time.sleep(600)) for _ in range(5)]
thread.join()
before = worker()
[mine] = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    and os.readlink(f"/proc/self/fd/{n}") == os.readlink(f"/proc/{before}/fd/0")]
os.close(int(mine))  # no child has a copy of it, so the worker's stdin ends
deadline = time.monotonic() + 30
while os.path.exists(f"/proc/{before}/fd/0") and time.monotonic() < deadline:
    time.sleep(0.01)
print("gone" if not os.path.exists(f"/proc/{before}/fd/0") else "held")
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    ended(pid)
"""
    assert finish(script(HEAD + program)) == "gone\n"


def test_a_fork_holds_no_descriptor_of_the_parents_process(script: Script, finish: Finish) -> None:
    program = """
def pipes():
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(os.readlink(entry))
        except OSError:
            pass
    return {link for link in found if link.startswith("pipe:")}

before = pipes()
text("a")
mine = pipes() - before
print(len(mine), ended(in_fork(lambda: not mine & pipes())), renders("after"))
"""
    assert finish(script(HEAD + program)) == "4 0 True\n"


@pytest.mark.parametrize("state", ["idle", "looping"])
def test_a_killed_parents_process_ends_though_its_children_live(
    state: str,
    script_without_sandbox: Script,
    alive: Callable[[int], bool],
    until: Callable[[Any], Any],
    tmp_path: Path,
) -> None:
    program = """
text("a")
print(worker(), flush=True)
begun = Path(sys.argv[2])
if sys.argv[1] == "looping":
    code = "process.getBuiltinModule('fs').writeFileSync('%s', ''); for (;;)" % begun
    markup = "<p>{{ (() => { %s; })() }}</p>" % code
    threading.Thread(target=rendering.render, args=(markup, {}), daemon=True).start()
    until(begun.exists)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""
    parent = script_without_sandbox(HEAD + program, state, str(tmp_path / "begun"))
    node, child = int(parent.stdout.readline()), int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        until(lambda: not alive(node))
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_that_ends_leaves_the_parents_process_alone(script: Script, finish: Finish) -> None:
    """By os._exit, by sys.exit with all its handlers, and killed."""
    program = """
text("a")
before = worker()
codes = [ended(in_fork(lambda: True))]
pid = os.fork()
if pid == 0:
    sys.exit(0)
codes.append(ended(pid))
pid = os.fork()
if pid == 0:
    text("child")
    os.kill(os.getpid(), signal.SIGKILL)
codes.append(ended(pid))
print(codes, renders("after"), worker() == before)
"""
    assert finish(script(HEAD + program)) == "[0, 0, -9] True True\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, script: Script, finish: Finish) -> None:
    """The parent has rendered, and goes on while its children render."""
    program = """
if __name__ == "__main__":
    assert renders("parent")
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        jobs = [pool.apply_async(renders, (f"child{i}",)) for i in range(4)]
        assert renders("meanwhile", 60)
        print([job.get(60) for job in jobs])
        pool.close()
        pool.join()
    assert renders("after")
"""
    assert finish(script(HEAD + program, method)) == "[True, True, True, True]\n"


def test_subprocesses_inherit_nothing(script: Script, finish: Finish) -> None:
    """A program that the user starts, even with all its descriptors passed on, holds none of the worker's pipes."""
    program = """
import subprocess
text("a")
links = {os.readlink(f"/proc/{worker()}/fd/{n}") for n in os.listdir(f"/proc/{worker()}/fd")}
here = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
mine = {int(n) for n in here if (link := os.readlink(f"/proc/self/fd/{n}")).startswith("pipe:") and link in links}
code = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd')))"
seen = set(eval(subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True).stdout))
print(len(mine), mine & seen)
"""
    assert finish(script(HEAD + program)) == "4 set()\n"
