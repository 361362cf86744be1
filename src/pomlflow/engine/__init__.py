"""Warm POML: markup and variables to a frame, in Node processes that stay.

It starts no process before the first render, ends them with the interpreter in whatever way that ends, and starts
afresh in a forked child. It knows neither frameworks nor MLflow.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pomlflow.engine import installation
from pomlflow.engine.errors import render_error
from pomlflow.engine.fallback import render_cold
from pomlflow.engine.file_access import Reads
from pomlflow.engine.installation import poml_version
from pomlflow.engine.pool import Pool, Stats, Turn, WaitedError
from pomlflow.engine.process import FROM_OUTSIDE, NodeProcess, NotWarmError
from pomlflow.engine.protocol import Request, Result
from pomlflow.engine.results import Results
from pomlflow.engine.serialize import encode, is_identifier
from pomlflow.exceptions import EngineError, Problem, RenderTimeoutError, WorkerDiedError
from pomlflow.settings import settings

__all__ = [
    "Request",
    "Result",
    "Stats",
    "arender",
    "arun",
    "close",
    "encode",
    "is_identifier",
    "kind",
    "poml_version",
    "prewarm",
    "render",
    "run",
    "stats",
]

_log = logging.getLogger("pomlflow")
_EXIT = 10.0  # seconds that an exit waits for a first start's compiled code, which makes every later start fast
_LARGEST = 500_000_000  # bytes of a request: V8 has no longer text than 512 MB to read it from


class _Engine:
    def __init__(self, *, sandbox: bool) -> None:
        self.sandbox = sandbox
        self.pool = Pool(self._start)
        self.cold = False
        self.results = Results()
        self._cold_places = threading.BoundedSemaphore(1)  # each such render is a process of its own
        self._lock = threading.Lock()
        self._storing: concurrent.futures.Future[None] | None = None

    def run(self, request: Request, timeout: float, turn: Turn | None = None) -> Result:
        if not self.cold:
            try:
                return self._warm(request, timeout, turn)
            except NotWarmError as error:
                self._chill(error)
        if request.roots is not None and self.sandbox:
            raise EngineError(
                f"{request.file or '<inline>'}: a template that is not trusted is not rendered by poml.poml(), which "
                f"has no sandbox; pomlflow is made for poml 0.0.8, poml {poml_version()} is installed"
            )
        return self._cold(request, timeout)

    def _cold(self, request: Request, timeout: float) -> Result:
        places, end = self._cold_places, time.monotonic() + timeout
        if not places.acquire(timeout=timeout):
            raise _waited(request, timeout)
        try:
            return Result(render_cold(request, end - time.monotonic()), "poml")
        except TimeoutError as error:
            raise _outlasted(request, timeout) from error
        finally:
            places.release()

    async def arun(self, request: Request, timeout: float) -> Result:
        loop = _loop()
        done: concurrent.futures.Future[Result] = concurrent.futures.Future()
        if self.cold:
            return await asyncio.wrap_future(self.pool.threads.submit(lambda: self.run(request, timeout), done))
        turn = self.pool.ask()

        def begin(granted: concurrent.futures.Future[Any]) -> None:
            if granted.cancelled():
                return
            if (error := granted.exception()) is not None:
                _settle(done, error)
                return
            try:
                self.pool.threads.submit(lambda: _settle(done, _outcome(lambda: self.run(request, timeout, turn))))
            except RuntimeError as reason:
                self.pool.give_back(granted.result())
                _settle(done, EngineError(f"no thread can start for the render: {reason}"))

        def expire() -> None:
            if self.pool.withdraw(turn):
                _settle(done, _waited(request, timeout))

        turn.granted.add_done_callback(begin)
        expiry = loop.call_later(timeout, expire)
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            self.pool.abandon(turn)
            raise
        finally:
            expiry.cancel()

    def _warm(self, request: Request, timeout: float, turn: Turn | None) -> Result:
        reads = Reads(request)
        try:
            answer = self.pool.call(request.line(), timeout, turn, reads.answer)
        except WaitedError as error:
            raise _waited(request, timeout) from error
        except TimeoutError as error:
            raise _outlasted(request, timeout) from error
        except WorkerDiedError as error:
            if error.returncode in FROM_OUTSIDE:
                why = "It was tried twice: something ends Node's processes, or the machine is short of memory"
            else:
                why = "The template ended its Node process, or needs more memory than it has"
            raise WorkerDiedError(
                f"{request.file or '<inline>'}: {error}\n{why}; the next render gets a new process",
                error.returncode,
                error.stderr,
            ) from error
        if "problems" in answer:
            raise render_error(answer["problems"], request, reads)
        return Result(answer["ok"], "warm", answer.get("ms"), answer.get("kept", False))

    def _start(self) -> NodeProcess:
        found = installation.find()
        process = NodeProcess(found, sandbox=self.sandbox)
        with self._lock:
            if found.cache is not None and process.hello["cache"] != "hit" and self._storing is None:
                length = process.hello["length"]
                with contextlib.suppress(RuntimeError):  # no thread can start: then it is not kept
                    self._storing = self.pool.threads.submit(lambda: self._store(found, length))
        return process

    def _store(self, found: installation.Installation, length: int) -> None:
        """Keep what V8 has compiled by now, for the next start; it queues behind the first render."""
        try:
            answer = self.pool.call(b'"op":"compiled"}', 30, self.pool.ask(own=True))
            found.store(base64.b64decode(answer["ok"]), length)
        except (OSError, EngineError) as error:
            _log.info("POML's compiled code cannot be kept (%s): a first render takes half a second longer", error)

    def prewarm(self, workers: int) -> None:
        try:
            self.pool.prewarm(min(workers, settings().workers))
        except NotWarmError as error:
            self._chill(error)

    def _chill(self, reason: NotWarmError) -> None:
        with self._lock:
            told, self.cold = self.cold, True
            if not told:
                self._cold_places = threading.BoundedSemaphore(settings().workers)
        if not told:
            _log.warning(
                "POML cannot be kept warm (%s): each render now starts Node by poml.poml(), which takes about a "
                "second and has no sandbox; pomlflow is made for poml 0.0.8, poml %s is installed",
                reason,
                poml_version(),
            )

    def close(self) -> None:
        if self._storing is not None:
            concurrent.futures.wait([self._storing], _EXIT)
        self.pool.close()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop that runs here; asked for before a place in the queue is taken, which nobody would give back."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise EngineError(
            "no asyncio event loop runs here: POML's async renders need one. Under trio, render in a thread, which "
            "holds nothing up: await anyio.to_thread.run_sync(…) with invoke, format_messages or pomlflow.render"
        ) from error


def _outcome(work: Callable[[], Result]) -> Result | BaseException:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - it is the caller's, on the event loop
        return error


def _settle(done: concurrent.futures.Future[Result], outcome: Result | BaseException) -> None:
    if not done.set_running_or_notify_cancel():
        return  # nobody waits any more
    if isinstance(outcome, BaseException):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _outlasted(request: Request, timeout: float) -> RenderTimeoutError:
    message = f"the render took longer than {timeout:g} s and was ended"
    hint = "raise the limit with pomlflow.configure(timeout=…), or look for an expression that never ends"
    return RenderTimeoutError([Problem(message, "Timeout", request.file)], hint)


def _waited(request: Request, timeout: float) -> RenderTimeoutError:
    message = f"no Node process came free for the render within {timeout:g} s"
    hint = "raise pomlflow.configure(timeout=…, max_workers=…), or render less at once"
    return RenderTimeoutError([Problem(message, "Timeout", request.file)], hint)


_engine = _Engine(sandbox=True)
_switching = threading.Lock()


def run(request: Request, timeout: float | None = None) -> Result:
    """Render.

    Args:
        request: What to render.
        timeout: Seconds until its process is ended, waiting for one included; None for `pomlflow.configure`'s.

    Returns:
        The result.

    Raises:
        RenderError: POML refused it.
        RenderTimeoutError: It outlasted its limit.
        EngineBusyError: Too many wait for a process.
        EngineError: Node could not be started, or ended in the render, or the variables are too large.
    """
    _check_size(request)
    limits, engine = settings(), _ready()
    if limits.cached_results and request.roots is None and (kept := engine.results.get(request.line())) is not None:
        return Result(kept, "warm")
    result = engine.run(request, limits.timeout if timeout is None else timeout)
    return _kept(engine, request, result, limits.cached_results)


async def arun(request: Request, timeout: float | None = None) -> Result:
    """Render without holding up the event loop; otherwise as `run`. Cancelling it ends the render."""
    _check_size(request)
    limits, engine = settings(), _ready()
    if limits.cached_results and request.roots is None and (kept := engine.results.get(request.line())) is not None:
        return Result(kept, "warm")
    result = await engine.arun(request, limits.timeout if timeout is None else timeout)
    return _kept(engine, request, result, limits.cached_results)


def _check_size(request: Request) -> None:
    if (size := len(request.context) + len(request.markup)) > _LARGEST:
        raise EngineError(
            f"{request.file or '<inline>'}: its variables are {size / 1e6:.0f} MB of JSON, and a render takes "
            f"{_LARGEST / 1e6:.0f} MB at the most: give the template less"
        )


def _kept(engine: _Engine, request: Request, result: Result, most: int) -> Result:
    if most and request.roots is None:
        engine.results.keep(request.line(), result.output, most)
    return result


def stats() -> Stats:
    """What the engine of this Python process does, and has done since it started.

    Example:
        >>> stats().waiting
        0
    """
    return _ready().pool.stats()


def kind() -> Literal["warm", "poml"]:
    """Tell what renders here: the warm Node processes, or poml's own command line where they cannot be kept."""
    return "poml" if _engine.cold else "warm"


def prewarm(workers: int = 1) -> None:
    """Start Node processes now, so that no render waits for that: in a server's start-up, and in each forked worker.

    Args:
        workers: How many are to be there; it waits for them.

    Raises:
        EngineError: Node could not be started. Where POML cannot be kept warm, a warning says so, as at a render.

    Example:
        >>> prewarm()
    """
    _ready().prewarm(workers)


def render(
    markup: str,
    variables: Mapping[str, Any],
    *,
    path: str | None = None,
    stylesheet: Mapping[str, Any] | None = None,
    chat: bool = True,
) -> dict[str, Any]:
    """Render markup with variables.

    Args:
        markup: The markup; never a path.
        variables: Its variables. A name that is no plain identifier is left out.
        path: The absolute path of its file, which relative sources are resolved against.
        stylesheet: A stylesheet beside the markup's own.
        chat: Whether to give messages, or one text.

    Returns:
        What ``poml.poml(format="dict")`` gives.

    Raises:
        PomlError: As `run` raises, and `VariableError` for a value that has no form in JSON.

    Example:
        >>> render("<p>Hello {{name}}</p>", {"name": "Ada"})["messages"]
        [{'speaker': 'human', 'content': 'Hello Ada'}]
    """
    context, revive = encode(variables)
    return run(Request(markup, context, revive, stylesheet, path, chat=chat)).output


async def arender(
    markup: str,
    variables: Mapping[str, Any],
    *,
    path: str | None = None,
    stylesheet: Mapping[str, Any] | None = None,
    chat: bool = True,
) -> dict[str, Any]:
    """Render without holding up the event loop; otherwise as `render`."""
    context, revive = encode(variables)
    return (await arun(Request(markup, context, revive, stylesheet, path, chat=chat))).output


def close() -> None:
    """End the Node processes now; the next render starts new ones."""
    global _engine
    engine, _engine = _engine, _Engine(sandbox=_engine.sandbox)
    engine.close()


def _ready() -> _Engine:
    """The engine; another one where the sandbox was switched since, for which its processes were not started."""
    engine, wanted = _engine, settings().sandbox
    return engine if engine.sandbox == wanted else _switched(wanted)


def _switched(sandbox: bool) -> _Engine:
    global _engine
    with _switching:
        old = _engine
        if old.sandbox == sandbox:
            return old
        _engine = engine = _Engine(sandbox=sandbox)  # a new one: in the old one a process of before may be starting
    old.close()
    return engine


def _forked() -> None:
    global _engine, _switching  # a fork must share neither pipes, which process.py closes, nor locks with its parent
    cold, _engine = _engine.cold, _Engine(sandbox=_engine.sandbox)
    _engine.cold = cold  # told already
    _switching = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
atexit.register(close)
