"""Parse a model's answer by the prompt's output schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.utils.json import parse_partial_json

from pomlflow.exceptions import AnswerError
from pomlflow.frame import parse_answer
from pomlflow.langchain.model_arguments import place_of
from pomlflow.record import RenderRecord

__all__ = ["PartialObject", "PomlOutputParserError", "parse_message"]


class PomlOutputParserError(AnswerError, OutputParserException):
    """A model's answer does not match ``<output-schema>``.

    Attributes:
        answer: The text of the answer, LangChain's ``llm_output``.
        message: The message that holds it; None for a text model.
    """

    def __init__(self, message: str, answer: str, problems: Iterable[str] = (), raw: BaseMessage | None = None) -> None:
        AnswerError.__init__(self, message, answer, problems)
        self.observation, self.llm_output, self.send_to_llm = None, answer, False
        self.message = raw

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.answer, self.problems, self.message)


def parse_message(answer: Any, record: RenderRecord) -> Any:
    """Return the object in a message, or in a text model's answer, checked by the render's output schema.

    Raises:
        PomlOutputParserError: The answer is a refusal, a tool call, or does not match the schema.
    """
    place = place_of(record)
    if isinstance(answer, AIMessage) and answer.tool_calls:
        names = ", ".join(call["name"] for call in answer.tool_calls)
        raise PomlOutputParserError(
            f"{place}: the model called {names} instead of answering. parse=True parses answers only: run the tools, "
            f"in an agent for example",
            answer.text,
            raw=answer,
        )
    text = answer if isinstance(answer, str) else str(answer.text)
    refusal = answer.additional_kwargs.get("refusal") if isinstance(answer, AIMessage) else None
    if refusal and not text:
        raise PomlOutputParserError(f"{place}: the model refused: {refusal}", str(refusal), raw=answer)
    try:
        return parse_answer(text, record.result()["schema"], place)
    except AnswerError as error:
        raw = answer if isinstance(answer, BaseMessage) else None
        raise PomlOutputParserError(str(error), text, error.problems, raw) from error


class PartialObject:
    """The object in a streamed answer, as far as it has arrived."""

    def __init__(self) -> None:
        self.message: Any = None
        self.value: Any = None

    def take(self, chunk: Any) -> bool:
        """Add a chunk; return whether the object has grown."""
        self.message = chunk if self.message is None else self.message + chunk
        text = self.message if isinstance(self.message, str) else str(self.message.text)
        try:
            value = parse_partial_json(text) if text.strip() else None
        except ValueError:
            return False
        return self.finish(value)

    def finish(self, value: Any) -> bool:
        """Set the value; return whether it has changed."""
        if value is None or value == self.value:
            return False
        self.value = value
        return True
