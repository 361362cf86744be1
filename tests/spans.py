"""The stored content of a trace, and a mask, for the tests of both frameworks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace


def everything(trace: Trace) -> str:
    """The whole stored trace as one text, in which a test looks for what must not be there."""
    return json.dumps(trace.to_dict(), default=str)


def poml_span(trace: Trace) -> Span:
    """The only span of a POML render."""
    (span,) = [span for span in trace.data.spans if span.span_type == "PROMPT"]
    return span


def hide(content: dict[str, Any]) -> dict[str, Any]:
    """A mask that replaces the word "secret"."""
    return json.loads(json.dumps(content).replace("secret", "***"))  # type: ignore[no-any-return]
