"""Find the streams in LlamaIndex's results, and notice when they end.

A span whose result is a stream lasts until the stream has ended. LlamaIndex has events only for the end of a model's
own stream. The generators in responses are replaced by generators that report their end. Other generators are watched
by weak references to them, and to the generators that they read: a frame that ends drops these, even if a variable
still holds its own generator. If a traceback holds the frame, or the generator reads no others when it is returned,
its span ends at the next flush.
"""

from __future__ import annotations

import _thread
import gc
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any, Final

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.workflow import StopEvent

from pomlflow._log import warn_once

PieceContext = Callable[[], AbstractContextManager[None]]
"""Makes a context in which one piece of a stream is made."""
Reading = AbstractContextManager[Callable[[Any], None]]
"""A context in which a whole stream is read; it yields a function that takes each piece."""
OnEnd = Callable[[str | None, BaseException | None], None]
"""Called at a stream's end, with its text, if that is known, and the exception that ended it."""

_END: Final = object()


def stream_of(result: Any, context: PieceContext, on_end: OnEnd) -> Any:
    """Return the stream in a component's result, also in a workflow's ``StopEvent``, or None.

    The generator of a response is replaced by one that makes each piece in a `context`, and calls `on_end` at its end.
    """
    result = result.result if isinstance(result, StopEvent) else result
    if isinstance(result, (StreamingResponse, AsyncStreamingResponse)) and result.response_gen is not None:
        result.response_gen = wrap_stream(result.response_gen, _reporting(on_end), context)
        return result.response_gen
    streams = inspect.isgenerator(result) or inspect.isasyncgen(result)
    return result if streams or isinstance(result, StreamingAgentChatResponse) else None


def wrap_stream(stream: Any, reading: Reading, context: PieceContext = nullcontext) -> Any:
    """Return a sync or async stream that is read in the context `reading`, with each piece made in a `context`."""
    return (_awrapped if hasattr(stream, "__anext__") else _wrapped)(stream, reading, context)


def _wrapped(stream: Any, reading: Reading, context: PieceContext) -> Generator[Any, None, None]:
    pieces = iter(stream)
    with reading as take:
        while True:
            with context():
                piece = next(pieces, _END)
            if piece is _END:
                return
            take(piece)
            yield piece


async def _awrapped(stream: Any, reading: Reading, context: PieceContext) -> AsyncGenerator[Any, None]:
    with reading as take:
        while True:
            with context():
                piece = await anext(stream, _END)
            if piece is _END:
                return
            take(piece)
            yield piece


@contextmanager
def _reporting(on_end: OnEnd) -> Iterator[Callable[[Any], None]]:
    """Call `on_end` at the end of a stream."""
    texts: list[str] = []
    try:
        yield lambda piece: texts.append(str(piece))
    except BaseException as error:
        on_end("".join(texts), error)
        raise
    on_end("".join(texts), None)


def frame_of(stream: Any) -> FrameType | None:
    """Return a generator's frame, which is on the call stack while it runs; None after its end or for other objects."""
    frame: FrameType | None = getattr(stream, "gi_frame", None) or getattr(stream, "ag_frame", None)
    return frame


def sources_of(stream: Any) -> list[Any]:
    """Return the generators that a generator reads."""
    frame = frame_of(stream)
    found = [] if frame is None else frame.f_locals.values()
    return [value for value in found if inspect.isgenerator(value) or inspect.isasyncgen(value)]


class Deferred:
    """Runs work at once, or after a garbage collection if it is requested during one.

    A stream may be collected at any moment and in any thread. That thread may hold a lock of MLflow's exporter, and
    ending a span would wait for that lock for ever. So the work runs on a new thread after the collection.
    """

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._collector: int | None = None  # the thread that collects now
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, _: dict[str, int]) -> None:
        self._collector = _thread.get_ident() if phase == "start" else None
        if self._work and self._collector is None:
            with suppress(RuntimeError):  # no thread can start at shutdown, where all streams are ended
                # Not threading.Thread, whose start takes locks that this thread may hold.
                _thread.start_new_thread(self._run, ())

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do work now, or after the garbage collection that this thread is in. Never raises."""
        if self._collector == _thread.get_ident():
            self._work.append(partial(work, *arguments))
            return
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - this runs in the user's reading of a stream
            warn_once("llama-index span end", "A LlamaIndex span could not be ended properly: %r", error)

    def _run(self) -> None:
        while self._work:
            with suppress(IndexError):  # another thread was faster
                self.do(self._work.popleft())
