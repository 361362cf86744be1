"""One Node process: start, handshake, one request at a time, and a reliable end."""

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
from typing import Any, cast

import orjson

from pomlflow.engine.installation import Installation, check_versions, requirements
from pomlflow.exceptions import EngineError, WorkerDiedError
from pomlflow.record import well_formed

if sys.platform == "linux":
    import fcntl
    import resource

_START = 60.0  # maximum seconds of a start, which takes 0.2 to 0.9, or more without the disk cache
_STDERR = 8192  # bytes of stderr that are kept for error messages
_NEVER = float("inf")
# The maximum bytes of data of a sandboxed process, on Linux. V8's heap has its own limit, but buffers are outside of
# it, such as the unpacked content of a document.
_DATA = 2 << 30
# Node itself may need LD_LIBRARY_PATH. The rest of the environment is withheld from templates.
_ENVIRONMENT = set("PATH SYSTEMROOT TEMP TMP TMPDIR TZ LANG LC_ALL LC_MESSAGES LD_LIBRARY_PATH".split())
# Return codes of signals that end a process independently of its render: sent from outside, or caused by a fault of
# Node or of an addon. Any other end (an exit, an abort, V8 out of memory) is the template's: a retry repeats it.
EXTERNAL_RETURNCODES = frozenset(
    -getattr(signal, name)
    for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGSEGV", "SIGBUS")
    if sys.platform != "win32"
)


class DeadlineError(Exception):
    """The process was killed because its request took longer than its limit."""


class _PipeClosedError(Exception):
    """The process closed its end of a pipe."""


class NodeProcess:
    """A Node process with POML loaded. Only one thread may use it at a time."""

    def __init__(self, installation: Installation, *, sandbox: bool = True, trusted: bool = True) -> None:
        self.trusted = trusted
        self.deadline = _NEVER  # when the watchdog kills it, by `time.monotonic`
        self.timed_out = False  # the watchdog has killed it
        self.memory = 0  # resident bytes, as last reported
        self._request_id = 0
        self._stderr_end = b""
        self._stderr_reader = threading.Thread(target=self._read_stderr, name="pomlflow-stderr", daemon=True)
        try:
            with watchdog.forking:
                self._spawn(installation.command(sandbox=sandbox), limited=sandbox)
                watchdog.add(self)
        except OSError as error:
            raise EngineError(f"cannot start {installation.node}: {error}") from error
        try:
            self._stderr_reader.start()
            watchdog.set(self, time.monotonic() + _START)
            self.hello = self._handshake()  # "node" and "poml" (versions), "cache" (hit, none or rejected)
        except BaseException as error:
            self.close()
            if type(error) is RuntimeError:  # from 3.12 on, Python starts no thread once atexit's handlers run
                raise EngineError("Node cannot be started while the interpreter ends: render before that") from error
            raise
        watchdog.set(self, _NEVER)

    def _spawn(self, command: list[str], *, limited: bool) -> None:
        # In a session of its own, so that Ctrl-C reaches Python and not the worker.
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        lifeline = os.pipe() if sys.platform == "linux" else ()
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - our own worker, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={name: value for name, value in os.environ.items() if name.upper() in _ENVIRONMENT},
                pass_fds=lifeline[:1],
                **options,
            )
            self.pid = self._popen.pid
            if lifeline:
                tie_to_parent(lifeline[0], self.pid)
        except BaseException:
            for end in lifeline[1:]:
                os.close(end)
            raise
        finally:
            for end in lifeline[:1]:
                os.close(end)
        if limited and sys.platform == "linux":
            with contextlib.suppress(OSError, ValueError):  # it has ended, or has a lower limit already
                resource.prlimit(self.pid, resource.RLIMIT_DATA, (_DATA, _DATA))
        # Unbuffered files: a buffered one has a lock, which stays locked in a child that is forked during a render.
        self._stdin, self._stdout, self._stderr = (
            cast("io.FileIO", stream) for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        )
        own = (open(end, "wb", buffering=0) for end in lifeline[1:])  # noqa: PTH123, SIM115 - a descriptor
        self._pipes = [self._stdin, self._stdout, self._stderr, *own]

    def _handshake(self) -> dict[str, Any]:
        try:
            hello = orjson.loads(self._read_line())
        except _PipeClosedError:
            if self.timed_out:
                raise EngineError(f"POML's Node process was not ready after {_START:g} s") from None
            error = self._died("POML's Node process did not start, it")
            if error.returncode in EXTERNAL_RETURNCODES:
                raise error from None
            raise EngineError(f"{error}\n{requirements()}") from None
        if "fatal" in hello:
            raise EngineError(f"POML cannot be rendered: {hello['fatal']}\n{requirements(hello['node'])}")
        ready: dict[str, Any] = hello["ready"]
        check_versions(ready["node"], ready["poml"])
        return ready

    @property
    def alive(self) -> bool:
        """Whether the process runs and may be used; checking this takes a system call."""
        return not self.timed_out and self._popen.poll() is None

    def call(self, request: bytes, timeout: float, respond: Callable[[bytes], bytes] | None = None) -> dict[str, Any]:
        """Send a request, a JSON object without its opening brace, and return the answer.

        `respond` answers the worker's requests for files; without it, such a request counts as the process's end.
        """
        self._request_id += 1
        self._stderr_end = b""
        watchdog.set(self, time.monotonic() + timeout)
        try:
            self._write(b'{"id":%d,%b\n' % (self._request_id, request))
            line = self._read_line()
            while line.startswith(b'{"id":%d,"op":' % self._request_id):
                if respond is None:
                    raise _PipeClosedError
                self._write(respond(line))
                line = self._read_line()
        except _PipeClosedError:
            if self.timed_out:
                raise DeadlineError from None
            raise self._died("the Node process") from None
        except BaseException:
            self.kill()  # interrupted: the answer would be read as that of the next request
            raise
        finally:
            watchdog.set(self, _NEVER)
        result = _loads(line)
        self.memory = result["memory"]
        return result

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._stdin.write(view) :]
        except OSError as error:
            raise _PipeClosedError from error

    def _read_line(self) -> bytes:
        """Return the next line of the current request; skip what a template wrote to stdout itself."""
        opening = b'{"id":%d,' % self._request_id
        chunks: list[bytes] = []
        while chunk := self._stdout.read(1 << 16):
            chunks.append(chunk)
            if b"\n" in chunk:
                *lines, rest = b"".join(chunks).split(b"\n")
                for line in lines:
                    if line.startswith(opening):
                        return line
                chunks = [rest]
        raise _PipeClosedError

    def _died(self, what: str) -> WorkerDiedError:
        """Return the error for a process that has closed its output: how it ended, and the end of its stderr."""
        self._wait(1)  # the pipe closes shortly before the process ends
        returncode = self._popen.poll()
        self.kill()
        self._stderr_reader.join(1)
        stderr = self._stderr_end.decode(errors="replace").split("----- Native stack trace", 1)[0].strip()
        lines = [line[:200] for line in stderr.splitlines()[-10:]]
        if returncode is None:
            how = "closed its output, but still ran"
        else:
            how = f"ended with {f'exit code {returncode}' if returncode >= 0 else signal.Signals(-returncode).name}"
        return WorkerDiedError("\n".join([f"{what} {how}", *lines]), returncode, stderr)

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def send_kill(self) -> None:
        """Kill the process without waiting for its end; the thread that reads its answer notices the end."""
        with contextlib.suppress(OSError):
            self._popen.kill()

    def kill(self) -> None:
        """Kill it and wait for its end, whatever its state; may be called repeatedly and from any thread."""
        self.send_kill()
        self._wait(5)

    def close(self) -> None:
        """Kill it and close its pipes; only the thread that has acquired it may call this."""
        self.kill()
        if self._stderr_reader.ident is not None:
            self._stderr_reader.join(1)
        watchdog.remove(self)
        self.forget()

    def forget(self) -> None:
        """Close the pipes, but leave the process alone: a forked child calls this for its parent's processes.

        If they stayed open there, the worker would not notice the end of its own parent.
        """
        if self._popen.returncode is None:
            self._popen.returncode = 0  # so that Popen neither waits for it nor warns about it
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._stderr.read(1 << 16):
                self._stderr_end = (self._stderr_end + chunk)[-_STDERR:]


def tie_to_parent(reading: int, pid: int) -> None:
    """End the worker `pid` when this process ends, even while a template loops.

    The kernel closes the writing end when this process ends, for whatever reason. Linux then sends SIGIO to the owner
    of the reading end, the worker, which ends it (fcntl(2), F_SETOWN and O_ASYNC). PR_SET_PDEATHSIG is no alternative:
    it applies when the *thread* that started the worker ends. On other systems, a worker that loops survives a parent
    that was killed.
    """
    with contextlib.suppress(OSError):  # a kernel without this feature, such as that of a sandbox
        fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
        fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)


def _loads(line: bytes) -> dict[str, Any]:
    """Parse an answer; a lone surrogate, which a JavaScript string may have, but UTF-8 may not, is replaced."""
    try:
        return cast("dict[str, Any]", orjson.loads(line))
    except ValueError:
        return cast("dict[str, Any]", orjson.loads(well_formed(json.dumps(json.loads(line), ensure_ascii=False))))


class _Watchdog:
    """Kill processes whose deadline has passed, the only remedy for a template that never ends.

    One thread serves all processes. It sleeps until the nearest known deadline, and is woken only by a nearer one.
    """

    def __init__(self) -> None:
        # Held while a process is started and during a fork, so that a forked child knows every pipe that it must close.
        self.forking = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._running = False  # the thread
        self._next_wake = 0.0  # when it wakes next, by `time.monotonic`
        self._processes: set[NodeProcess] = set()

    def after_fork(self) -> None:
        """Forget the parent's processes in a forked child."""
        for process in self._processes:
            process.forget()
        self._reset()
        self.forking.release()

    def add(self, process: NodeProcess) -> None:
        with self._condition:  # the thread may be iterating
            self._processes.add(process)

    def set(self, process: NodeProcess, deadline: float) -> None:
        """Set a deadline, under the lock: an expired process is killed before it can be used again."""
        with self._condition:
            process.deadline = deadline
            if not self._running:
                threading.Thread(target=self._run, name="pomlflow-watchdog", daemon=True).start()
                self._running = True
            elif deadline < self._next_wake:
                self._condition.notify()

    def shorten(self, process: NodeProcess, deadline: float) -> None:
        with self._condition:
            if deadline < process.deadline < _NEVER:  # infinity means that it has just finished
                process.deadline = deadline
                self._condition.notify()

    def remove(self, process: NodeProcess) -> None:
        with self._condition:
            self._processes.discard(process)
            self._condition.notify()

    def _run(self) -> None:
        with self._condition:
            while self._processes:
                now = time.monotonic()
                for process in self._processes:
                    if process.deadline <= now:
                        process.timed_out = True
                        process.send_kill()
                        process.deadline = _NEVER
                nearest = min(process.deadline for process in self._processes)
                self._next_wake = min(nearest, now + 3600)  # the maximum timeout of a wait differs by platform
                self._condition.wait(self._next_wake - now)
            self._running = False


watchdog = _Watchdog()
