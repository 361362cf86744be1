"""``<runtime>`` in a provider's own words.

POML has no list of settings; its documentation names those of the Vercel AI SDK, in camelCase
(https://microsoft.github.io/poml/stable/language/meta/#runtime-parameters). The providers' names:
https://platform.openai.com/docs/api-reference/chat/create, https://docs.anthropic.com/en/api/messages,
https://ai.google.dev/api/generate-content#generationconfig and https://docs.ollama.com/modelfile#parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pomlflow.exceptions import SettingError

__all__ = ["Provider", "Settings", "settings"]

Provider = Literal["openai", "anthropic", "google", "ollama"]

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SYNONYMS = {
    "max_output_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "stop_sequences": "stop",
    "candidate_count": "n",
    "model_name": "model",
    "random_seed": "seed",
}
_COMMON = frozenset(
    {"model", "temperature", "max_tokens", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "top_k"}
)
# Who the file was written for, and whether its editor streams: neither is for the model to hear. The model is the one
# that the user gives, and it streams where the user calls `stream`. Conditions are POML's own (0.0.8 has them among the
# settings all the same).
_NOT_FOR_MODELS = frozenset({"provider", "stream", "if", "for"})
_NAMES: dict[Provider, dict[str, str]] = {
    "openai": {},
    "anthropic": {"stop": "stop_sequences"},
    "google": {"max_tokens": "max_output_tokens", "stop": "stop_sequences", "n": "candidate_count"},
    "ollama": {"max_tokens": "num_predict"},
}
_LACKS: dict[Provider, frozenset[str]] = {
    "openai": frozenset({"top_k"}),
    "anthropic": frozenset({"seed", "frequency_penalty", "presence_penalty", "n", "logit_bias"}),
    "google": frozenset({"logit_bias"}),
    "ollama": frozenset({"n", "logit_bias"}),
}
# Ollama's request has its sampling settings in an object of their own.
_OUTSIDE_OPTIONS = frozenset({"model", "tool_choice", "think", "keep_alive", "logprobs", "top_logprobs"})
_REMEDY = {"openai": "; a server that takes it all the same takes it by extra-body='{\"%s\": …}'"}


@dataclass(frozen=True)
class Settings:
    """Settings in a provider's words.

    Attributes:
        values: By the provider's name for it; nested where the provider's request is, as Ollama's ``options`` are.
        unknown: Of the names in `values`, those that nobody here knows: they go to the model as they are, and it may
            refuse them.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()


def settings(runtime: Mapping[str, Any] | None, provider: Provider | None, place: str = "<inline>") -> Settings:
    """Name the settings of ``<runtime>`` as a provider does.

    Args:
        runtime: As POML gives it: camelCase keys, typed values.
        provider: Whose words; None for a provider that is not known, which gets OpenAI's, as most understand them.
        place: The template, for errors.

    Returns:
        New settings. ``provider`` and ``stream`` are left out: the user's model and call decide on those.

    Raises:
        SettingError: The provider is known not to have a setting, or one is there twice.

    Example:
        >>> settings({"maxTokens": 300, "stopSequences": ["END"]}, "google").values
        {'max_output_tokens': 300, 'stop_sequences': ['END']}
    """
    given: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in (runtime or {}).items():
        name = _canonical(key)
        if name in _NOT_FOR_MODELS:
            continue
        if name in given:
            raise SettingError(
                f"{place}: <runtime> says {written[name]} and {key}, which are the same: take one away", key
            )
        if provider is not None and name in _LACKS[provider]:
            remedy = _REMEDY.get(provider, "")
            raise SettingError(
                f"{place}: <runtime> says {key}, which {_spoken(provider)} does not have: take it away, or give it an "
                f"if= of its own{remedy % name if remedy else ''}",
                key,
            )
        given[name], written[name] = [value] if name == "stop" and isinstance(value, str) else value, key
    names = {} if provider is None else _NAMES[provider]
    values = {names.get(name, name): value for name, value in given.items()}
    unknown = frozenset(names.get(name, name) for name in given if name not in _COMMON and name not in names)
    return Settings(_in_options(values) if provider == "ollama" else values, unknown)


def _in_options(values: dict[str, Any]) -> dict[str, Any]:
    outside = {name: value for name, value in values.items() if name in _OUTSIDE_OPTIONS}
    options = {name: value for name, value in values.items() if name not in _OUTSIDE_OPTIONS and name != "options"}
    options |= values.get("options") or {}
    return {**outside, **({"options": options} if options else {})}


def _spoken(provider: Provider) -> str:
    return {"openai": "OpenAI", "anthropic": "Anthropic", "google": "Google", "ollama": "Ollama"}[provider]


@lru_cache(maxsize=512)
def _canonical(key: str) -> str:
    """One name in snake_case for whatever POML files call it."""
    snake = _HUMP.sub("_", key).lower().replace("-", "_")
    return _SYNONYMS.get(snake, snake)
