"""Raise a model's refusal as an error with its text, wherever it is in a response or a stream."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.span import active_span_id

from pomlflow.exceptions import AnswerError
from pomlflow.frame.refusals import WITHHELD, RefusalReader

__all__ = ["PomlRefusalError", "astream_checked", "checked", "google_refusals", "stream_checked", "text_of"]

R = TypeVar("R", ChatResponse, CompletionResponse)
# The texts of the errors that LlamaIndex's Google model raises for an answer that Google withheld.
_EARLY_END: Final = re.compile(r"Response was terminated early: (\w+)")
_NO_CANDIDATES: Final = "Response has no candidates"  # the prompt was blocked

_dispatcher = get_dispatcher(__name__)


class PomlRefusalError(AnswerError):
    """A model refused to answer.

    Attributes:
        answer: The text of the refusal; empty if the provider gives none.
    """


def text_of(response: ChatResponse | CompletionResponse) -> str:
    """Return the text of a model's response."""
    return (response.message.content if isinstance(response, ChatResponse) else response.text) or ""


def checked(response: R, place: str, reader: RefusalReader | None = None) -> R:
    """Return a complete response, or raise the refusal in it or in the pieces before it."""
    if reader is None:
        _take(reader := RefusalReader(), response)
    if reader.text is not None:
        raise _refusal(reader.text or text_of(response), place)
    return response


def stream_checked(stream: Iterator[R], place: str) -> Generator[R, None, None]:
    """Return a stream that raises its refusal at its end."""
    span_id = active_span_id.get()

    def pieces() -> Generator[R, None, None]:
        reader, last = RefusalReader(), None
        with _reported(span_id), google_refusals(place):
            for last in stream:
                _take(reader, last)
                yield last
            if last is not None:
                checked(last, place, reader)

    return pieces()


def astream_checked(stream: AsyncIterator[R], place: str) -> AsyncGenerator[R, None]:
    """Return an async stream that raises its refusal at its end."""
    span_id = active_span_id.get()

    async def pieces() -> AsyncGenerator[R, None]:
        reader, last = RefusalReader(), None
        with _reported(span_id), google_refusals(place):
            async for last in stream:
                _take(reader, last)
                yield last
            if last is not None:
                checked(last, place, reader)

    return pieces()


def _take(reader: RefusalReader, response: ChatResponse | CompletionResponse) -> None:
    reader.take(response.raw)
    if reader.text is None:
        reader.take(response.additional_kwargs)
    if reader.text is None and isinstance(response, ChatResponse):
        reader.take(response.message.additional_kwargs)


@contextmanager
def google_refusals(place: str) -> Iterator[None]:
    """Raise a refusal for the error that LlamaIndex's Google model raises instead of returning a response."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text, found = str(error), _EARLY_END.match(str(error))
        if (found is None or found[1] not in WITHHELD) and text != _NO_CANDIDATES:
            raise
        raise _refusal("" if found is None else text.partition(": ")[2], place) from error


@contextmanager
def _reported(span_id: str | None) -> Iterator[None]:
    """Report a refusal to the span that returned the stream: the reader's span is another one."""
    try:
        yield
    except PomlRefusalError as error:
        _dispatcher.event(ExceptionEvent(span_id=span_id, exception=error))
        raise


def _refusal(text: str, place: str) -> PomlRefusalError:
    return PomlRefusalError(f"{place}: the model refused{f': {text}' if text else ''}", text)
