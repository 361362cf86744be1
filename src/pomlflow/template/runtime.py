"""The names of ``<runtime>`` settings, and defaults for those that a file does not set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

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


def unset_defaults(defaults: Mapping[str, Any], runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that a file does not set under any of their names."""
    own = {canonical(key) for key in runtime}
    return {key: value for key, value in defaults.items() if canonical(key) not in own}
