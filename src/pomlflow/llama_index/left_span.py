"""A LlamaIndex span that is left to ``mlflow.llama_index.autolog()``, and taken over where it comes to a stream.

MLflow 3.12 to 3.17 finishes a streamed answer's spans from the event that ends the model's stream. Its trace stays in
progress for ever where

- the model is asked to complete (`MockLLM`): MLflow looks for the text in ``CompletionResponse.response``, which is not
  there, and gives up on the spans above the model's;
- the stream is async: the model's span is not taken for a stream, so nothing tells those above;
- the stream is closed, dropped or never begun: that event does not come, and MLflow holds the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow.tracing.provider import detach_span_from_context

from pomlflow.llama_index.open_span import OpenSpan
from pomlflow.tracking.spans import Mask

__all__ = ["LeftSpan"]


@dataclass(eq=False)
class LeftSpan(OpenSpan):
    """A LlamaIndex span that MLflow's handler has begun, in a trace that a handler of ours wants.

    Attributes:
        handler: MLflow's.
        taken_over: Whether it is ours to end.
    """

    handler: Any = None
    taken_over: bool = False

    @property
    def mask(self) -> Mask | None:
        """None: what MLflow's handler stores of it has seen no mask."""
        return None

    def take_over(self) -> None:
        """Have MLflow's handler keep it for its events and for the spans in it, and no longer end it."""
        handler = self.handler
        with handler.lock:
            opened = handler.open_spans.pop(self.id, None)
            if opened is None:
                return
            handler._pending_spans[self.id] = opened
        if (token := handler._span_id_to_token.pop(self.span.span_id, None)) is not None:
            detach_span_from_context(token)
        self.taken_over = True

    def end(self) -> None:
        """Store what there is, where it is ours to end."""
        if self.taken_over:
            self.handler._pending_spans.pop(self.id, None)
            super().end()
