"""A model's answer: parse it, check it against ``<output-schema>``, and find a refusal in a provider's response."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pomlflow.exceptions import AnswerError
from pomlflow.frame.schema import problems, without_nulls

_FENCED: Final = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
# The finish reasons of answers that Google withholds.
_WITHHELD: Final = frozenset({"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "IMAGE_SAFETY", "RECITATION"})


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def parse_answer(text: str, schema: Mapping[str, Any], label: str = "<inline>") -> Any:
    """Parse a model's answer, which may be in a Markdown fence, and check it; raise an `AnswerError` if it is wrong."""
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise AnswerError(
            f"{label}: the answer is not the JSON that <output-schema> requires ({error}). The answer: {text!r}", text
        ) from error
    return checked_answer(value, schema, text, label)


def checked_answer(value: Any, schema: Mapping[str, Any], text: str, label: str = "<inline>") -> Any:
    """Return the value that a framework has parsed from an answer, checked and without the nulls of strict mode."""
    value = without_nulls(value, schema, label)
    if found := problems(value, schema, label):
        raise AnswerError(
            f"{label}: the answer violates <output-schema>: {'; '.join(found)}. The answer: {text!r}", text, found
        )
    return value


def _reason_name(value: Any) -> str:
    """Return the name of a finish or block reason, which is a text or a member of an enum."""
    return str(getattr(value, "name", value) or "").rsplit(".", 1)[-1]


def refusal_in(raw: Any, before: str | None = None) -> str | None:
    """Return the text of the refusal in a provider's response or stream event, which is an object of its SDK or a dict.

    `before` is the text of the refusal in earlier stream events. An empty text is a refusal without a text; None means
    that there is no refusal.
    """
    for choice in _list_field(raw, "choices"):  # OpenAI's chat completions
        message = _field(choice, "message") or _field(choice, "delta")
        if piece := _field(message, "refusal"):
            before = (before or "") + str(piece)
        elif _field(choice, "finish_reason") == "content_filter":
            before = before or ""
    found = next(_complete_refusals(raw), None)
    return before if found is None else found or before or ""


def _complete_refusals(raw: Any) -> Iterator[str]:
    """Yield the texts of refusals that are reported complete, not in the pieces of a stream."""
    # Of a message, or of the event that ends a refusal in OpenAI's Responses API.
    if isinstance(text := _field(raw, "refusal"), str) and text:
        yield text
    response = _field(raw, "response") or raw  # the last event of a stream has it
    for part in (part for item in _list_field(response, "output") for part in _list_field(item, "content")):
        if _field(part, "type") == "refusal":
            yield str(_field(part, "refusal") or "")
    if _field(_field(response, "incomplete_details"), "reason") == "content_filter":
        yield ""
    for part in (raw, _field(raw, "delta")):  # Anthropic
        if _field(part, "stop_reason") == "refusal":
            yield str(_field(_field(part, "stop_details"), "explanation") or "")
    finish = _reason_name(_field(raw, "finish_reason"))  # Google
    blocked = _reason_name(_field(raw, "block_reason") or _field(_field(raw, "prompt_feedback"), "block_reason"))
    if finish in _WITHHELD or blocked not in ("", "0", "BLOCKED_REASON_UNSPECIFIED"):
        yield str(_field(raw, "finish_message") or "") or (finish if finish in _WITHHELD else blocked)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _list_field(value: Any, name: str) -> list[Any]:
    found = _field(value, name)
    return found if isinstance(found, list) else []
