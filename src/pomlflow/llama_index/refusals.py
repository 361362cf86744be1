"""Raise an error with the text of a model's refusal, wherever that is in a response or a stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # its documented place
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.span import active_span_id

from pomlflow.exceptions import AnswerError
from pomlflow.frame.refusals import WITHHELD, RefusalReader
from pomlflow.llama_index.streams import through

Response = ChatResponse | CompletionResponse
# The texts of the errors that LlamaIndex's Google model raises for an answer that Google withheld.
_EARLY_END: Final = re.compile(r"Response was terminated early: (\w+)")
_NO_CANDIDATES: Final = "Response has no candidates"  # the prompt was blocked

_dispatcher = get_dispatcher(__name__)


class PomlRefusalError(AnswerError):
    """A model refused to answer.

    Attributes:
        answer: The text of the refusal; empty if the provider gives none.
    """


def text_of(response: Response) -> str:
    """Return the text of a model's response."""
    return (response.message.content if isinstance(response, ChatResponse) else response.text) or ""


def check_refusal(response: Any, label: str) -> Any:
    """Return a complete response, or raise the refusal in it. For a stream, return one that raises it at its end."""
    if isinstance(response, ChatResponse | CompletionResponse):
        reader = RefusalReader()
        _take(reader, response)
        _raise_refusal(reader, response, label)
        return response
    return through(response, _reading(label, active_span_id.get()))


@contextmanager
def _reading(label: str, span_id: str | None) -> Iterator[Callable[[Response], None]]:
    """Raise the refusal in a stream at its end, and report it to the span of the call that returned the stream."""
    reader, last = RefusalReader(), None

    def take(piece: Response) -> None:
        nonlocal last
        last = piece
        _take(reader, piece)

    try:
        with google_refusals(label):
            yield take
            if last is not None:
                _raise_refusal(reader, last, label)
    except PomlRefusalError as error:
        # With the id given, since the span that is active here is that of the code that reads the stream.
        _dispatcher.event(ExceptionEvent(span_id=span_id, exception=error))
        raise


def _take(reader: RefusalReader, response: Response) -> None:
    reader.take(response.raw)
    if reader.text is None:
        reader.take(response.additional_kwargs)
    if reader.text is None and isinstance(response, ChatResponse):
        reader.take(response.message.additional_kwargs)


def _raise_refusal(reader: RefusalReader, response: Response, label: str) -> None:
    if reader.text is not None:
        raise _refusal(reader.text or text_of(response), label)


@contextmanager
def google_refusals(label: str) -> Iterator[None]:
    """Raise a refusal for the error that LlamaIndex's Google model raises instead of returning a response."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text, found = str(error), _EARLY_END.match(str(error))
        if (found is None or found[1] not in WITHHELD) and text != _NO_CANDIDATES:
            raise
        raise _refusal("" if found is None else text.partition(": ")[2], label) from error


def _refusal(text: str, label: str) -> PomlRefusalError:
    return PomlRefusalError(f"{label}: the model refused{f': {text}' if text else ''}", text)
