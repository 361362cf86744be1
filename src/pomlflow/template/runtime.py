"""The names of ``<runtime>`` settings."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SYNONYMS: Final = {
    "max_output_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "stop_sequences": "stop",
    "candidate_count": "n",
    "model_name": "model",
    "random_seed": "seed",
}


@lru_cache(maxsize=512)
def canonical(key: str) -> str:
    """Return the one snake_case name of a setting, however POML files spell it."""
    snake = _HUMP.sub("_", key).lower().replace("-", "_")
    return _SYNONYMS.get(snake, snake)
