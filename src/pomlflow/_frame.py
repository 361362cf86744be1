"""poml's frame with a display for notebooks. This module imports poml; `import pomlflow` does not."""

from __future__ import annotations

from typing import Any

from poml import api

from pomlflow.display import result_html, short


class PomlFrame(api.PomlFrame):  # type: ignore[misc]  # poml has no types
    """The result of a render: a subclass of poml's ``PomlFrame``, equal to a ``PomlFrame`` with the same content."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, api.PomlFrame) and bool(self.model_dump() == other.model_dump())

    __hash__ = None  # type: ignore[assignment]  # mutable, like every pydantic model by default

    def __repr__(self) -> str:
        return short(super().__repr__())

    def _repr_html_(self) -> str:
        output: dict[str, Any] = self.model_dump(mode="json")
        return result_html({**output, "schema": output["output_schema"]})
