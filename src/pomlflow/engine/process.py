"""One warm Node process: start, handshake, one request at a time, and an end in every case."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, cast

import orjson

from pomlflow.engine.install import Installation
from pomlflow.exceptions import EngineError, WorkerDiedError

__all__ = ["NodeProcess", "NotWarmError"]

_START = 60.0  # seconds; a start takes 0.2 to 0.9, more where the disk is cold
_KEEP = {"PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ", "LANG", "LC_ALL"}
# What ends a process from outside. An exit, an abort or V8's out-of-memory is its own doing: a retry would repeat it.
_FROM_OUTSIDE = {-getattr(signal, name, 0) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")} - {0}


class NotWarmError(EngineError):
    """The bundle cannot be loaded warm; ``str()`` says why."""


class NodeProcess:
    """A Node process that has POML loaded.

    Not for two threads at once: whoever calls holds it alone.

    Attributes:
        hello: What it told in the handshake: ``node``, ``poml``, ``cache`` (hit, none, rejected), ``length``.
        deadline: When (`time.monotonic`) `watch` ends it; infinity while nothing runs.
    """

    def __init__(self, installation: Installation) -> None:
        self.deadline = time.monotonic() + _START
        self.timed_out = False
        self._count = 0
        self._tail: collections.deque[bytes] = collections.deque(maxlen=20)
        self._spawn(installation.command())
        _watchdog.watch(self)
        try:
            self.hello = self._handshake()
        except BaseException:
            self.close()
            raise
        self.deadline = float("inf")

    def _spawn(self, command: list[str]) -> None:
        lifeline = self._lifeline = _Lifeline()
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            # Out of the terminal's process group: Ctrl-C is Python's to handle, not the worker's to die of.
            options.update(start_new_session=True, pass_fds=lifeline.inherited)
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - our own worker, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={name: value for name, value in os.environ.items() if name.upper() in _KEEP},
                **options,
            )
        except BaseException:
            lifeline.close()
            raise
        lifeline.tie(self._popen.pid)
        # Raw files on purpose: a buffered one has a lock, which a fork during a render would leave locked for ever.
        self._stdin, self._stdout, self._stderr = (
            cast("io.FileIO", stream) for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        )
        self._drain = threading.Thread(target=self._read_stderr, name="pomlflow-stderr", daemon=True)
        self._drain.start()

    def _handshake(self) -> dict[str, Any]:
        line = self._read_line()
        try:
            hello = orjson.loads(line)
            if "fatal" in hello:
                raise NotWarmError(hello["fatal"])
            return cast("dict[str, Any]", hello["ready"])
        except (ValueError, KeyError, TypeError):
            raise self._death("did not start", line) from None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def call(self, request: bytes, timeout: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: A JSON object without its opening brace: the id is put before it.
            timeout: Seconds until the process is ended.

        Returns:
            The answer.

        Raises:
            WorkerDiedError: The process ended, was ended for its time, or answered with something else.
        """
        self._count += 1
        self.deadline = time.monotonic() + timeout
        _watchdog.notice(self.deadline)
        line = b""
        try:
            self._write(b'{"id":%d,%b\n' % (self._count, request))
            line = self._read_line()
            answer = orjson.loads(line)
            if answer["id"] != self._count:
                raise KeyError
        except (OSError, ValueError, KeyError, TypeError):
            # A closed pipe, or what is no answer: a template can write to the worker's stdout by hand.
            raise self._death("died", line) from None
        except BaseException:
            self.kill()  # interrupted half-way: its answer would be taken for the next render's
            raise
        finally:
            self.deadline = float("inf")
        return cast("dict[str, Any]", answer)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stdin.write(view) :]

    def _read_line(self) -> bytes:
        """Read up to the next newline; what came by the end of the pipe, where there is none."""
        chunks = []
        while chunk := self._stdout.read(1 << 16):
            chunks.append(chunk)
            if chunk.endswith(b"\n"):
                break
        return b"".join(chunks)

    def _death(self, what: str, line: bytes) -> WorkerDiedError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(0.5 if not line else 0)  # it may still be on its way out
        returncode = self._popen.poll()
        self.kill()
        self._drain.join(0.5)
        stderr = b"".join(self._tail).decode(errors="replace").strip()
        if returncode is None:
            how = f"and wrote {line[:80]!r}" if line else "and wrote something that is no answer"
        else:
            how = f"with {signal.Signals(-returncode).name}" if returncode < 0 else f"with exit code {returncode}"
        message = f"the Node process {what} {how}"
        return WorkerDiedError(f"{message}\n{stderr}" if stderr else message, returncode, stderr)

    def killed_from_outside(self, error: WorkerDiedError) -> bool:
        """Whether somebody else ended it, so that the render may be tried once more."""
        return not self.timed_out and error.returncode in _FROM_OUTSIDE

    def kill(self) -> None:
        """End it, in whatever state it is; safe to call again, and from any thread."""
        with contextlib.suppress(OSError):
            self._popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)

    def close(self) -> None:
        """End it and give back its descriptors; only for whoever holds it."""
        self.kill()
        self._drain.join(1)
        self._lifeline.close()
        self._close_streams()

    def forget(self) -> None:
        """In a forked child: drop the parent's process without touching it.

        The descriptors must go, or the worker would not see its own parent end.
        """
        self._lifeline.close()
        self._close_streams()
        self._popen.returncode = 0  # it is not the child's to wait for, nor to warn about

    def _close_streams(self) -> None:
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._stderr.read(4096):
                self._tail.append(chunk)


class _Lifeline:
    """A pipe whose closing kills the worker, also while a template loops and no longer reads its stdin.

    Linux sends SIGIO, which ends a process that does not handle it, to the owner of a pipe's reading end when the
    writing end is closed, as happens when this process ends in whatever way (fcntl(2), F_SETOWN and O_ASYNC).
    PR_SET_PDEATHSIG would do it when the *thread* that started the worker ends. Elsewhere a worker that loops outlives
    a parent that was killed.
    """

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = os.pipe() if sys.platform == "linux" else ()
        self.inherited = self._ends[:1]

    def tie(self, pid: int) -> None:
        if sys.platform == "linux" and self._ends:
            import fcntl

            reading = self._ends[0]
            fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
            fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.close(reading)
            self._ends = self._ends[1:]

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                os.close(end)
        self._ends = ()


class _Watchdog:
    """Ends processes whose deadline has passed: the one thing that helps when a template loops for ever.

    One thread for all processes. It sleeps until the nearest deadline that it knows and is woken only for an earlier
    one, so that a render costs it nothing.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._processes: set[NodeProcess] = set()
        self._thread: threading.Thread | None = None
        self._wakes = float("inf")

    def watch(self, process: NodeProcess) -> None:
        with self._condition:
            self._processes.add(process)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pomlflow-watchdog", daemon=True)
                self._thread.start()
        self.notice(process.deadline)

    def notice(self, deadline: float) -> None:
        if deadline < self._wakes:
            with self._condition:
                self._condition.notify()

    def _run(self) -> None:
        with self._condition:
            while self._processes:
                now = time.monotonic()
                for process in [process for process in self._processes if not process.alive]:
                    self._processes.discard(process)
                for process in self._processes:
                    if process.deadline <= now:
                        process.timed_out = True
                        process.kill()
                # Deadlines grow: one that is set later lies, with an unchanged limit, behind every one known now.
                self._wakes = min((p.deadline for p in self._processes if p.alive), default=now + 60)
                self._wakes = min(self._wakes, now + 60)
                self._condition.wait(max(0.0, self._wakes - now))
            self._thread = None


_watchdog = _Watchdog()
if hasattr(os, "register_at_fork"):

    def _forked() -> None:
        global _watchdog
        _watchdog = _Watchdog()

    os.register_at_fork(after_in_child=_forked)
