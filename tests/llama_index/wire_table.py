"""The names of POML's features in the requests of LlamaIndex's clients: the table in the documentation.

    python -m tests.llama_index.wire_table

writes it; `test_wire_table.py` compares the clients with it. The features are those of LangChain's table, and most
have the same path, since the provider decides on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.langchain.wire_table import FEATURES as LANGCHAINS
from tests.langchain.wire_table import PARAMETERS, REFUSED, Feature, table, write

__all__ = ["CLIENTS", "FEATURES"]

CLIENTS = ("OpenAI", "OpenAILike", "Anthropic")

_TEXT = "messages[0].content[0].text"
_AUDIO = next(feature for feature in LANGCHAINS if feature.label == "`<audio>`")
# Where LlamaIndex's clients differ: by label, the paths of OpenAI's two and of Anthropic, and the values there.
_OTHERS: dict[str, tuple[str, str, tuple[Any, Any]]] = {
    "`<human-msg>`": ("messages[0].content", _TEXT, ("Hi", "Hi")),
    "`<ai-msg>`": ("messages[1].content", "messages[1].content[0].text", ("Yo", "Yo")),
    "`<audio>`": (_AUDIO.paths[0], REFUSED, (_AUDIO.values[0], "AudioBlock")),
    "`<tool-definition>`'s schema": (
        "tools[0].function.parameters",
        "tools[0].input_schema",
        ({**PARAMETERS, "additionalProperties": False}, PARAMETERS),
    ),
    "`<tool-definition>` with `<output-schema>`": (
        "tools[0].function.name",
        "tools[0].name",
        ("weather", "weather"),
    ),
    "`<runtime max-tokens=…>`": ("max_tokens", "max_tokens", (9, 9)),
}


def _feature(feature: Feature) -> Feature:
    first, last, values = _OTHERS.get(feature.label) or (
        feature.paths[0],
        feature.paths[1],
        (feature.values[0], feature.values[1 if len(feature.values) > 1 else 0]),
    )
    markup = feature.markup.replace('model="m-1"', "model='{{model}}'")  # LlamaIndex accepts only models that it knows
    return replace(feature, markup=markup, paths=(first, first, last), values=(values[0], *values))


FEATURES = [_feature(feature) for feature in LANGCHAINS]


if __name__ == "__main__":
    write("llama-index", table(FEATURES, CLIENTS))
