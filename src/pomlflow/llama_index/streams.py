"""What LlamaIndex streams, and how to learn that it has ended.

A span whose result is a stream lasts until the stream has ended. LlamaIndex tells of the end of a model's own stream
only; of the others there is the response that holds the stream, which can be followed, and the generator itself, which
is dropped at some time.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.workflow import StopEvent

__all__ = ["Ended", "Later", "follow", "frame_of", "has_ended", "holds_stream", "response_of", "stream_of"]

Ended = Callable[["str | None", "BaseException | None"], None]
"""Told once that a stream has ended: the text that came of it, where that is known, and what ended it early."""

_followed: weakref.WeakSet[Any] = weakref.WeakSet()


def holds_stream(result: Any) -> bool:
    """Whether a result is a stream, or holds one to be read later: its text is not known yet.

    Args:
        result: What a component returned, or a workflow's ``StopEvent`` with it.
    """
    result = _inner(result)
    streaming = (StreamingResponse, AsyncStreamingResponse, StreamingAgentChatResponse)
    return isinstance(result, streaming) or inspect.isgenerator(result) or inspect.isasyncgen(result)


def response_of(result: Any) -> StreamingResponse | AsyncStreamingResponse | None:
    """The response whose stream can be followed, and is not yet; None where there is none."""
    result = _inner(result)
    if not isinstance(result, (StreamingResponse, AsyncStreamingResponse)):
        return None
    return None if result.response_gen is None or result.response_gen in _followed else result


def stream_of(result: Any) -> Any:
    """The generator that a result is; None where it is something else."""
    return result if inspect.isgenerator(result) or inspect.isasyncgen(result) else None


def has_ended(stream: Any) -> bool:
    """Whether a generator will give no more."""
    return (inspect.isgenerator(stream) or inspect.isasyncgen(stream)) and frame_of(stream) is None


def frame_of(stream: Any) -> FrameType | None:
    """The frame of a generator, which is on the stack while it makes its next piece; None when it has ended."""
    frame: FrameType | None = stream.ag_frame if inspect.isasyncgen(stream) else stream.gi_frame
    return frame


def follow(
    response: StreamingResponse | AsyncStreamingResponse,
    inside: Callable[[], AbstractContextManager[None]],
    ended: Ended,
) -> Any:
    """Put a generator in a response's place that works as the old one, and tells when it has ended.

    Args:
        response: What the user reads.
        inside: Entered around each step of the stream, so that what a lazy stream does is part of the right span.
        ended: Told of the end, however it comes.

    Returns:
        The new generator.
    """
    stream: Any = response.response_gen
    follower: Any = (_afollower if hasattr(stream, "__anext__") else _follower)(stream, inside, ended)
    _followed.add(follower)
    response.response_gen = follower
    return follower


def _follower(stream: Any, inside: Callable[[], AbstractContextManager[None]], ended: Ended) -> Iterator[Any]:
    pieces: list[str] = []
    error: BaseException | None = None
    pending = iter(stream)
    try:
        while True:
            with inside():
                try:
                    piece = next(pending)
                except StopIteration:
                    break
            pieces.append(str(piece))
            yield piece
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            if close := getattr(pending, "close", None):
                close()
        finally:
            ended("".join(pieces), error)


async def _afollower(
    stream: Any, inside: Callable[[], AbstractContextManager[None]], ended: Ended
) -> AsyncIterator[Any]:
    pieces: list[str] = []
    error: BaseException | None = None
    try:
        while True:
            with inside():
                try:
                    piece = await stream.__anext__()
                except StopAsyncIteration:
                    break
            pieces.append(str(piece))
            yield piece
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            if close := getattr(stream, "aclose", None):
                await close()
        finally:
            ended("".join(pieces), error)


def _inner(result: Any) -> Any:
    return result.result if isinstance(result, StopEvent) else result


class Later:
    """Work that must not be done in the middle of garbage collection.

    A stream that nobody reads to its end may be collected at any moment, in any thread, also inside of a lock that
    MLflow's exporter holds and that ending a span would wait for.
    """

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._collecting = False
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        self._collecting = phase == "start"

    def do(self, work: Callable[[], None]) -> None:
        """Do it now, or at the next `catch_up` where garbage is being collected."""
        if self._collecting:
            self._work.append(work)
        else:
            work()

    def catch_up(self) -> None:
        """Do what has been put off."""
        while self._work and not self._collecting:
            self._work.popleft()()
