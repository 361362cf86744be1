"""One warm Node process: start, handshake, one request at a time, and an end in every case."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson

from pomlflow.engine.installation import Installation
from pomlflow.engine.pipes import Lifeline, standard_streams_taken, widen
from pomlflow.exceptions import EngineError, WorkerDiedError
from pomlflow.record import well_formed

__all__ = ["FROM_OUTSIDE", "NodeProcess", "NotWarmError"]

_LOOK = 1.0  # seconds between two looks whether a process that renders was stopped
_START = 60.0  # seconds; a start takes 0.2 to 0.9, more where the disk is cold
# Bytes that a sandboxed process may have: V8's heap has a cap of its own, and buffers lie outside of it.
_DATA = 4 << 30
_TAIL = 8192  # bytes of stderr that are kept for messages
# LD_LIBRARY_PATH is what Node itself may need; the rest of the environment is none of a template's business.
_KEEP = set("PATH SYSTEMROOT TEMP TMP TMPDIR TZ LANG LC_ALL LC_MESSAGES LD_LIBRARY_PATH".split())
_SPENT = 86  # with which serve.cjs ends it because the render before left something that cannot be taken back
# What ends a process by no doing of the render that it has: from outside, by a fault of Node's or a native addon's,
# which no JavaScript can cause, or for the render before. Another exit, an abort or V8's out-of-memory is the
# template's own doing: a retry would repeat it.
FROM_OUTSIDE = frozenset({_SPENT}).union(
    -getattr(signal, name)
    for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGSEGV", "SIGBUS")
    if sys.platform != "win32"
)


class NotWarmError(EngineError):
    """The bundle cannot be loaded warm; ``str()`` says why."""


class NodeProcess:
    """A Node process that has POML loaded.

    Not for two threads at once: whoever calls holds it alone.

    Args:
        installation: What to start.
        sandbox: Whether what templates may do is bounded.

    Attributes:
        hello: What it told in the handshake: ``node``, ``poml``, ``cache`` (hit, none, rejected), ``length``.
        deadline: When (`time.monotonic`) the watchdog ends it; infinity while nothing runs.
        timed_out: Whether it was ended for that.
        retired: Whether another one has been started in its place, and it is to go after its render.
        memory: Its resident bytes, as it last told.

    Raises:
        NotWarmError: The bundle cannot be loaded warm.
        EngineError: It did not start.
        WorkerDiedError: It was killed from outside while it started.
    """

    def __init__(self, installation: Installation, *, sandbox: bool = True) -> None:
        self.deadline = float("inf")
        self.timed_out = False
        self.retired = False
        self.memory = 0
        self._count = 0
        self._tail = b""
        self._drain = threading.Thread(target=self._read_stderr, name="pomlflow-stderr", daemon=True)
        try:
            with _forking:
                self._spawn(installation.command(sandbox=sandbox))
                if sandbox:
                    _bound(self._popen.pid)
                _watchdog.add(self)
        except OSError as error:
            raise EngineError(f"cannot start {installation.node}: {error}") from error
        try:
            self._drain.start()
            _watchdog.set(self, time.monotonic() + _START)
            self.hello = self._handshake()
        except BaseException as error:
            self.close()
            if type(error) is RuntimeError:  # from 3.12 on, Python starts no thread once atexit's handlers run
                raise EngineError("Node cannot be started while the interpreter ends: render before that") from error
            raise
        _watchdog.set(self, float("inf"))

    def _spawn(self, command: list[str]) -> None:
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            # Out of the terminal's process group: Ctrl-C is Python's to handle, not the worker's to die of.
            options.update(start_new_session=True)
        with standard_streams_taken():
            lifeline = self._lifeline = Lifeline()
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - our own worker, no shell
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env={name: value for name, value in os.environ.items() if name.upper() in _KEEP},
                    pass_fds=lifeline.inherited,
                    **options,
                )
            except BaseException:
                lifeline.close()
                raise
        lifeline.tie(self._popen.pid)
        widen(self._popen.stdin, self._popen.stdout)
        # Raw files on purpose: a buffered one has a lock, which a fork during a render would leave locked for ever.
        self._stdin, self._stdout, self._stderr = (
            cast("io.FileIO", stream) for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        )

    def _handshake(self) -> dict[str, Any]:
        try:
            hello = orjson.loads(self._answer())
        except (OSError, EOFError):
            if self.timed_out:
                raise EngineError(f"POML's Node process was not ready after {_START:g} s") from None
            error = self._death("POML's Node process did not start, it ended")
            raise error if error.returncode in FROM_OUTSIDE else EngineError(str(error)) from None
        if "fatal" in hello:
            raise NotWarmError(hello["fatal"])
        return cast("dict[str, Any]", hello["ready"])

    @property
    def healthy(self) -> bool:
        """Whether it may be used again, as far as is known without asking the system."""
        return not (self.timed_out or self.retired)

    @property
    def alive(self) -> bool:
        """Whether it runs and may be used."""
        return self.healthy and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def call(self, request: bytes, timeout: float, answer: Callable[[bytes], bytes] | None = None) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: A JSON object without its opening brace: the id is put before it.
            timeout: Seconds until the process is ended.
            answer: What answers the worker's questions, `Reads.answer`; without it, a question ends the process.

        Returns:
            The answer.

        Raises:
            TimeoutError: It was ended for its time.
            WorkerDiedError: It ended otherwise.
        """
        self._count += 1
        self._tail = b""
        _watchdog.set(self, time.monotonic() + timeout)
        try:
            self._write(b'{"id":%d,%b\n' % (self._count, request))
            line = self._answer()
            while line.startswith(b'{"id":%d,"ask":' % self._count):
                if answer is None:
                    raise EOFError
                self._write(answer(line))
                line = self._answer()
        except (OSError, EOFError):
            if self.timed_out:
                raise TimeoutError from None
            raise self._death("the Node process ended") from None
        except BaseException:
            self.kill()  # interrupted half-way: its answer would be taken for the next render's
            raise
        finally:
            _watchdog.set(self, float("inf"))
        result = _loads(line)
        self.memory = result.get("memory", self.memory)
        return result

    def hurry(self, seconds: float) -> None:
        """Have the render that it is busy with end within so many seconds, or be ended."""
        _watchdog.hurry(self, time.monotonic() + seconds)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stdin.write(view) :]

    def _answer(self) -> bytes:
        """Read the answer's line; what a template wrote to stdout by hand, before or after it, is passed over."""
        opening = b'{"id":%d,' % self._count
        chunks: list[bytes] = []
        while chunk := self._stdout.read(1 << 16):
            chunks.append(chunk)
            if b"\n" in chunk:
                *lines, rest = b"".join(chunks).split(b"\n")
                for line in lines:
                    if line.startswith(opening):
                        return line
                chunks = [rest]
        raise EOFError

    def _death(self, what: str) -> WorkerDiedError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1)  # its pipe is closed before it is gone
        returncode = self._popen.poll()
        self.kill()
        self._drain.join(1)
        stderr = self._tail.decode(errors="replace").split("----- Native stack trace", 1)[0].strip()
        lines = [line[:200] for line in stderr.splitlines()[-10:]]
        if returncode is None:
            how = "its output"
        else:
            how = f"with {signal.Signals(-returncode).name}" if returncode < 0 else f"with exit code {returncode}"
        return WorkerDiedError("\n".join([f"{what} {how}", *lines]), returncode, stderr)

    def expire(self) -> None:
        """End it because its time is over; the watchdog's."""
        self.timed_out = True
        self.shoot()

    def shoot(self) -> None:
        """End it without waiting until it is gone: whoever waits for its answer sees that it was killed."""
        with contextlib.suppress(OSError):
            self._popen.kill()

    def kill(self) -> None:
        """End it, in whatever state it is; safe to call again, and from any thread."""
        self.shoot()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)

    def close(self) -> None:
        """End it and give back its descriptors; only for whoever holds it."""
        self.kill()
        if self._drain.ident is not None:
            self._drain.join(1)
        _watchdog.remove(self)
        self._close_pipes()

    def forget(self) -> None:
        """In a forked child: drop the parent's process without touching it.

        The descriptors must go, or the worker would not see its own parent end.
        """
        self._close_pipes()
        self._popen.returncode = 0  # it is not the child's to wait for, nor to warn about

    def _close_pipes(self) -> None:
        self._lifeline.close()
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._stderr.read(1 << 16):
                self._tail = (self._tail + chunk)[-_TAIL:]


def _loads(line: bytes) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", orjson.loads(line))
    except ValueError:  # half an emoji, which JavaScript's strings can hold and neither UTF-8 nor any model takes
        return cast("dict[str, Any]", orjson.loads(well_formed(json.dumps(json.loads(line), ensure_ascii=False))))


def _bound(pid: int) -> None:
    """Keep a template from all of the machine's memory; other systems than Linux cannot do this from outside."""
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError, ValueError):  # it has ended, or has a lower limit already
            resource.prlimit(pid, resource.RLIMIT_DATA, (_DATA, _DATA))


def _stopped(pid: int) -> bool:
    """Whether a process was stopped (Linux: state T in proc_pid_stat(5); t would be a debugger's doing)."""
    if sys.platform != "linux":
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except OSError:  # without /proc, or out of descriptors: the deadline is left
        return False


class _Watchdog:
    """Ends processes whose deadline has passed: the one thing that helps when a template loops for ever.

    And those that somebody has stopped (SIGSTOP) while they render: such a one holds its render until the
    deadline, and others wait behind it. One thread for all processes; it looks once a second while there are renders,
    and a render has to wake it only after a pause.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = False
        self._wakes = 0.0
        self.processes: set[NodeProcess] = set()

    def add(self, process: NodeProcess) -> None:
        with self._condition:  # the thread may be going through them
            self.processes.add(process)

    def set(self, process: NodeProcess, deadline: float) -> None:
        """Under the lock, so that a process whose time is over is ended before it is lent again, or not at all."""
        with self._condition:
            process.deadline = deadline
            if not self._running:
                threading.Thread(target=self._run, name="pomlflow-watchdog", daemon=True).start()
                self._running = True
            elif deadline < float("inf") and min(deadline, time.monotonic() + _LOOK) < self._wakes:
                self._condition.notify()

    def hurry(self, process: NodeProcess, deadline: float) -> None:
        with self._condition:
            if deadline < process.deadline < float("inf"):  # infinity: it has just ended
                process.deadline = deadline
                self._condition.notify()

    def remove(self, process: NodeProcess) -> None:
        with self._condition:
            self.processes.discard(process)
            self._condition.notify()

    def _run(self) -> None:
        with self._condition:
            while self.processes:
                now = time.monotonic()
                for process in self.processes:
                    if process.deadline <= now:
                        process.expire()
                        process.deadline = float("inf")
                    elif process.deadline < float("inf") and _stopped(process.pid):
                        process.shoot()
                nearest = min(process.deadline for process in self.processes)
                # A wait has an upper limit, which differs by platform.
                self._wakes = min(nearest, now + (3600 if nearest == float("inf") else _LOOK))
                self._condition.wait(self._wakes - now)
            self._running = False


# Held while a process is made, and by whoever forks: a child must know every pipe that it has to close. It covers the
# imports on that way too: a module that is being imported at a fork stays locked in the child for ever.
_forking = threading.Lock()
_watchdog = _Watchdog()


def _forked() -> None:
    global _watchdog
    parents, _watchdog = _watchdog, _Watchdog()
    for process in parents.processes:
        process.forget()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forked)
