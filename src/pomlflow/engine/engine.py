"""The engine of this Python process: renders requests in its pool, in a thread or on an event loop."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

from pomlflow._log import logger
from pomlflow.engine import installation
from pomlflow.engine.errors import render_error
from pomlflow.engine.file_access import FileAccess
from pomlflow.engine.pool import Pool, Position, QueueTimeoutError, start_thread
from pomlflow.engine.process import EXTERNAL_RETURNCODES, DeadlineError, NodeProcess, watchdog
from pomlflow.engine.protocol import Request, Result, Stats
from pomlflow.exceptions import EngineError, Problem, RenderTimeoutError, WorkerDiedError
from pomlflow.settings import check_timeout, settings

_CACHE_WRITE_TIMEOUT = 10.0  # seconds that closing waits while the compiled code is stored for later starts


class _Engine:
    def __init__(self, *, sandbox: bool) -> None:
        self.sandbox = sandbox
        self.pool = Pool(self._start)
        self._lock = threading.Lock()
        self._cache_writer: threading.Thread | None = None

    def run(self, request: Request, timeout: float) -> Result:
        content = request.to_json()
        return self._run(request, content, timeout, self.pool.acquire(trusted=request.roots is None))

    def _run(self, request: Request, content: bytes, timeout: float, position: Position) -> Result:
        files = FileAccess(request, restricted=self.sandbox)
        try:
            answer = self.pool.run(content, timeout, position, files.respond)
        except QueueTimeoutError as error:
            message = f"no Node process became free for the render within {timeout:g} s"
            hint = "raise pomlflow.configure(timeout=…, max_workers=…), or run fewer renders at the same time"
            raise RenderTimeoutError([Problem(message, "Timeout", request.label)], hint) from error
        except DeadlineError as error:
            message = f"the render took longer than {timeout:g} s and was ended{files.last_read}"
            hint = "raise the limit with pomlflow.configure(timeout=…), or look for an expression that never ends"
            raise RenderTimeoutError([Problem(message, "Timeout", request.label)], hint) from error
        except WorkerDiedError as error:
            if error.returncode in EXTERNAL_RETURNCODES:
                why = "It was tried twice: something ends Node's processes, or the machine is short of memory"
            else:
                why = "The template ended its Node process, or needs more memory than it has"
            name = request.label or "<inline>"
            message = f"{name}: {error}\n{why}; the next render gets a new process{files.last_read}"
            raise WorkerDiedError(message, error.returncode, error.stderr) from error
        if "problems" in answer:
            raise render_error(answer["problems"], request, files)
        return Result(answer["ok"], answer["ms"], answer.get("kept", False))

    async def arun(self, request: Request, timeout: float) -> Result:
        # These two may raise an error, so they come before `acquire`: nothing would release the position.
        loop = _running_loop()
        content = request.to_json()
        done: Future[Result] = Future()
        position = self.pool.acquire(trusted=request.roots is None)  # here, so that the queue is in order of arrival
        render = functools.partial(_resolve, done, lambda: self._run(request, content, timeout, position))

        def serve(granted: Future[NodeProcess | None]) -> None:
            """Render in a thread once the position is granted. Usually the pool calls this, and holds its lock."""
            try:
                if granted.exception() is None:
                    _run_in_thread(render)
                else:
                    render()  # passes the error on, which takes no thread
            except RuntimeError as error:
                loop.call_soon_threadsafe(self.pool.withdraw, position)  # later, since it takes the lock
                if done.set_running_or_notify_cancel():
                    done.set_exception(EngineError(f"no thread can start for the render: {error}"))

        position.granted.add_done_callback(serve)
        limit = loop.call_later(timeout, self.pool.expire, position)
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            self.pool.abandon(position)
            raise
        finally:
            limit.cancel()

    def _start(self, trusted: bool) -> NodeProcess:
        found = installation.find()
        process = NodeProcess(found, sandbox=self.sandbox, trusted=trusted)
        with self._lock:
            if found.cache_file is not None and process.hello["cache"] != "hit" and self._cache_writer is None:
                with contextlib.suppress(RuntimeError):  # no thread can start: it is not stored
                    self._cache_writer = start_thread(lambda: self._store_cache(found, trusted))
        return process

    def _store_cache(self, found: installation.Installation, trusted: bool) -> None:
        """Store what V8 has compiled so far, for later starts; the request queues after the first render."""
        try:
            position = self.pool.acquire(trusted=trusted, internal=True)
            answer = self.pool.run(b'"op":"prepare"}', 30, position)
            found.store_cache(base64.b64decode(answer["ok"]))
        except (OSError, EngineError, QueueTimeoutError, DeadlineError) as error:
            logger.info("POML's compiled code could not be cached (%r): first renders take half a second longer", error)

    def close(self) -> None:
        if self._cache_writer is not None:
            self._cache_writer.join(_CACHE_WRITE_TIMEOUT)
        self.pool.close()


class _Current:
    """The engine of this Python process, made at first use; a changed sandbox setting and a fork replace it."""

    def __init__(self) -> None:
        self.engine: _Engine | None = None
        self._lock = threading.Lock()
        self._registered = False

    def get(self) -> _Engine:
        engine, sandbox = self.engine, settings().sandbox
        if engine is not None and engine.sandbox == sandbox:
            return engine
        with self._lock:
            self._register()
            old = self.engine
            if old is not None and old.sandbox == sandbox:
                return old
            # A new engine: in the old one, a process with the old setting may still be starting.
            self.engine = engine = _Engine(sandbox=sandbox)
        if old is not None:
            old.close()
        return engine

    def close(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()

    def _register(self) -> None:
        if self._registered:
            return
        self._registered = True
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            forking = watchdog.forking
            os.register_at_fork(
                before=forking.acquire, after_in_parent=forking.release, after_in_child=self._after_fork
            )

    def _after_fork(self) -> None:
        watchdog.after_fork()  # a fork must share neither pipes nor locks with its parent
        self.engine = None
        self._lock = threading.Lock()


_current = _Current()
_local = threading.local()  # its attribute `renders`: those that a thread of awaited renders runs next


def _run_in_thread(render: Callable[[], None]) -> None:
    """Run a render in a new thread, or next in this one if it is about to finish one: many threads would be slower."""
    if getattr(_local, "renders", None) == []:
        _local.renders.append(render)
    else:
        start_thread(functools.partial(_run_all, [render]))


def _run_all(renders: list[Callable[[], None]]) -> None:
    _local.renders = renders
    while renders:
        renders.pop()()


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs; raise an `EngineError` with the remedy if none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise EngineError(
            "no asyncio event loop runs here: POML's async renders need one. Under trio, render in a thread, which "
            "blocks nothing: await anyio.to_thread.run_sync(…) with invoke, format_messages or pomlflow.render"
        ) from error


def _resolve(done: Future[Result], work: Callable[[], Result]) -> None:
    """Resolve a future with what a function returns or raises, unless its caller was cancelled."""
    result = error = None
    try:
        result = work()
    except BaseException as raised:  # noqa: BLE001 - it is raised for the caller, on the event loop
        error = raised
    if done.set_running_or_notify_cancel():
        done.set_exception(error) if result is None else done.set_result(result)


def run(request: Request, timeout: float | None = None) -> Result:
    """Render a request; `timeout` is in seconds and includes the wait for a free process, but not the start of one."""
    return _current.get().run(request, settings().timeout if timeout is None else check_timeout(timeout))


async def arun(request: Request, timeout: float | None = None) -> Result:
    """Render without blocking the event loop; otherwise as `run`. Cancelling it ends the render."""
    return await _current.get().arun(request, settings().timeout if timeout is None else check_timeout(timeout))


def stats() -> Stats:
    """Return the current state and the counters of the engine of this Python process.

    Example:
        >>> stats().waiting
        0
    """
    return (_current.engine or _current.get()).pool.stats()


def prewarm(workers: int = 1) -> None:
    """Start Node processes now, so that no render waits for their start; in a server, in each forked worker.

    Args:
        workers: The number of processes for trusted templates; the call returns when they run.

    Raises:
        EngineError: Node could not be started.

    Example:
        >>> prewarm()
    """
    _current.get().pool.prewarm(min(workers, settings().workers))


def close() -> None:
    """End the Node processes; the next render starts new ones.

    If a first start is still storing its compiled code, the call first waits for that, up to 10 s.
    """
    _current.close()
