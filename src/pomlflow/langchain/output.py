"""Parse a model's answer by the prompt's output schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core import exceptions
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.utils.json import parse_partial_json

from pomlflow.exceptions import AnswerError
from pomlflow.frame.answers import parse_answer, refusal_in
from pomlflow.record import RenderRecord

if TYPE_CHECKING:

    class _ModelRefusalError(Exception):
        raw_message: BaseMessage | None
else:
    # langchain-core 1.7.5 and later: fallbacks and callers handle the refusals of every provider by this class.
    _ModelRefusalError = getattr(exceptions, "ModelRefusalError", exceptions.LangChainException)


class PomlOutputParserError(AnswerError, OutputParserException):
    """A model's answer does not match ``<output-schema>``.

    Attributes:
        answer: The text of the answer, LangChain's ``llm_output``.
        message: The message with the answer; None for a text model.
    """

    def __init__(self, message: str, answer: str, problems: Iterable[str] = (), raw: BaseMessage | None = None) -> None:
        AnswerError.__init__(self, message, answer, problems)
        self.observation, self.llm_output, self.send_to_llm = None, answer, False
        self.message = raw

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.answer, self.problems, self.message)


class PomlRefusalError(PomlOutputParserError, _ModelRefusalError):
    """A model refused to answer; with langchain-core 1.7.5 or later, it is also LangChain's ``ModelRefusalError``.

    Attributes:
        answer: The text of the refusal; empty where the provider gives none.
        message: The message with the refusal, LangChain's ``raw_message``.
    """

    def __init__(self, message: str, answer: str, problems: Iterable[str] = (), raw: BaseMessage | None = None) -> None:
        super().__init__(message, answer, problems, raw)
        self.raw_message = raw


def parse_message(answer: Any, record: RenderRecord) -> Any:
    """Return the object in an answer, checked by the render's output schema; a stream without chunks is None."""
    label, answer = record.label, "" if answer is None else answer
    raise_refusal(answer, label)
    if isinstance(answer, AIMessage) and answer.tool_calls:
        names = ", ".join(call["name"] for call in answer.tool_calls)
        raise PomlOutputParserError(
            f"{label}: the model called {names} instead of answering. parse=True parses answers only: run the tools, "
            "in an agent for example",
            answer.text,
            raw=answer,
        )
    text = answer if isinstance(answer, str) else str(answer.text)
    try:
        return parse_answer(text, record.result()["schema"], label)
    except AnswerError as error:
        raw = answer if isinstance(answer, BaseMessage) else None
        raise PomlOutputParserError(str(error), text, error.problems, raw) from error


def raise_refusal(answer: Any, label: str) -> None:
    """Raise a `PomlRefusalError` if a message is a refusal."""
    if isinstance(answer, AIMessage) and (refusal := _refusal(answer)) is not None:
        text = refusal or str(answer.text)
        raise PomlRefusalError(f"{label}: the model refused{f': {text}' if text else ''}", text, raw=answer)


def _refusal(message: AIMessage) -> str | None:
    """Return the text of a refusal, empty if the provider gives none; None if the message is no refusal."""
    blocks = message.content if isinstance(message.content, list) else []
    # LangChain's own blocks hold a provider's block as their `value`.
    content = [block.get("value", block) for block in blocks if isinstance(block, Mapping)]
    metadata = message.response_metadata
    refusal = message.additional_kwargs.get("refusal")
    return refusal_in({**metadata, "refusal": refusal, "choices": [metadata], "output": [{"content": content}]})


class StreamedAnswer:
    """A streamed answer: its chunks, or with a record, the object parsed so far."""

    def __init__(self, parsed_by: RenderRecord | None) -> None:
        self._parsed_by = parsed_by
        self._message: Any = None  # the chunks so far, added up
        self._value: Any = None  # the object so far; None before its first part

    def add(self, chunk: Any) -> Iterator[Any]:
        """Add a chunk; yield it, or the object if it has grown."""
        if self._parsed_by is None:
            yield chunk
            return
        self._message = chunk if self._message is None else self._message + chunk
        text = self._message if isinstance(self._message, str) else str(self._message.text)
        try:
            value = parse_partial_json(text) if text.strip() else None
        except ValueError:
            return
        yield from self._changed(value)

    def finish(self) -> Iterator[Any]:
        """Check the whole answer against the schema; yield the object if it has changed."""
        if self._parsed_by is not None:
            yield from self._changed(parse_message(self._message, self._parsed_by))

    def _changed(self, value: Any) -> Iterator[Any]:
        if value is not None and value != self._value:
            self._value = value
            yield value
