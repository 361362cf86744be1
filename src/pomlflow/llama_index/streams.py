"""The streams among LlamaIndex's results, and how their ends are found.

A span whose result is a stream lasts until the stream has ended. LlamaIndex has events for the end of a model's own
stream only. Other streams are found by following the response that holds them, or when the generator is dropped.
"""

from __future__ import annotations

import _thread
import gc
import inspect
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.workflow import StopEvent

from pomlflow._log import warn_once

__all__ = ["Deferred", "Ended", "follow", "frame_of", "has_ended", "holds_stream", "response_of", "stream_of"]

Ended = Callable[["str | None", "BaseException | None"], None]
"""Called once at a stream's end, with its text, if that is known, and the exception that ended it early."""

_followed: weakref.WeakSet[Any] = weakref.WeakSet()


def holds_stream(result: Any) -> bool:
    """Return whether a component's result, or a workflow's ``StopEvent`` with it, is or holds an unread stream."""
    result = _inner(result)
    streaming = (StreamingResponse, AsyncStreamingResponse, StreamingAgentChatResponse)
    return isinstance(result, streaming) or inspect.isgenerator(result) or inspect.isasyncgen(result)


def response_of(result: Any) -> StreamingResponse | AsyncStreamingResponse | None:
    """Return the response whose stream can be followed and is not yet, or None."""
    result = _inner(result)
    if not isinstance(result, (StreamingResponse, AsyncStreamingResponse)):
        return None
    return None if result.response_gen is None or result.response_gen in _followed else result


def stream_of(result: Any) -> Any:
    """Return the result if it is a generator, else None."""
    return result if inspect.isgenerator(result) or inspect.isasyncgen(result) else None


def has_ended(stream: Any) -> bool:
    """Return whether a generator has ended."""
    return (inspect.isgenerator(stream) or inspect.isasyncgen(stream)) and frame_of(stream) is None


def frame_of(stream: Any) -> FrameType | None:
    """Return a generator's frame, which is on the stack while it runs; None if it has ended."""
    frame: FrameType | None = stream.ag_frame if inspect.isasyncgen(stream) else stream.gi_frame
    return frame


def follow(
    response: StreamingResponse | AsyncStreamingResponse,
    inside: Callable[[], AbstractContextManager[None]],
    ended: Ended,
) -> Any:
    """Replace a response's generator by one that yields the same and reports its end; return it.

    `inside` is entered for each step of the stream, so that what a lazy stream does becomes part of the right span.
    """
    stream: Any = response.response_gen
    follower: Any = (_afollower if hasattr(stream, "__anext__") else _follower)(stream, inside, ended)
    _followed.add(follower)
    response.response_gen = follower
    return follower


def _follower(stream: Any, inside: Callable[[], AbstractContextManager[None]], ended: Ended) -> Iterator[Any]:
    pending = iter(stream)
    with _reported(ended) as pieces:
        try:
            while True:
                with inside():
                    try:
                        piece = next(pending)
                    except StopIteration:
                        return
                pieces.append(str(piece))
                yield piece
        finally:
            if close := getattr(pending, "close", None):
                close()


async def _afollower(
    stream: Any, inside: Callable[[], AbstractContextManager[None]], ended: Ended
) -> AsyncIterator[Any]:
    with _reported(ended) as pieces:
        try:
            while True:
                with inside():
                    try:
                        piece = await stream.__anext__()
                    except StopAsyncIteration:
                        return
                pieces.append(str(piece))
                yield piece
        finally:
            if close := getattr(stream, "aclose", None):
                await close()


@contextmanager
def _reported(ended: Ended) -> Iterator[list[str]]:
    """Report the end of a stream, with the pieces that were read and the error."""
    pieces: list[str] = []
    try:
        yield pieces
    except BaseException as error:
        ended("".join(pieces), error)
        raise
    ended("".join(pieces), None)


def _inner(result: Any) -> Any:
    return result.result if isinstance(result, StopEvent) else result


class Deferred:
    """Work that must not run in the middle of garbage collection.

    A stream may be collected at any moment, in any thread, also while that thread holds a lock of MLflow's exporter,
    for which ending a span would wait. Such work runs on a new thread after the collection.
    """

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._collector: int | None = None  # the thread that collects now

    def start(self) -> None:
        """Watch garbage collection."""
        if self._on_collection not in gc.callbacks:
            self._collector = None  # `stop` may have been called in the middle of a collection
            gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        """Stop watching."""
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, _: dict[str, int]) -> None:
        self._collector = _thread.get_ident() if phase == "start" else None
        if self._work and self._collector is None:
            with suppress(RuntimeError):  # the interpreter is shutting down; `run` is also called by the next span
                # Not threading.Thread, whose start takes locks that this thread may hold.
                _thread.start_new_thread(self.run, ())

    def do(self, work: Callable[[], None]) -> None:
        """Do work now or, in the middle of a collection by this thread, afterwards. Never raises."""
        if self._collector == _thread.get_ident():
            self._work.append(work)
        else:
            _do_safely(work)

    def run(self) -> None:
        """Do the deferred work."""
        while self._work and self._collector != _thread.get_ident():
            with suppress(IndexError):  # another thread was faster
                _do_safely(self._work.popleft())


def _do_safely(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - this runs in the user's reading of a stream
        warn_once("llama-index span end", "A LlamaIndex span could not be ended properly: %r", error)
