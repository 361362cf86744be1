"""Translate ``<runtime>`` to a provider's parameters.

POML has no list of settings; its documentation names those of the Vercel AI SDK, in camelCase
(https://microsoft.github.io/poml/stable/language/meta/#runtime-parameters). The providers' names:
https://platform.openai.com/docs/api-reference/chat/create, https://docs.anthropic.com/en/api/messages,
https://ai.google.dev/api/generate-content#generationconfig and https://docs.ollama.com/modelfile#parameter.

A setting is sent in snake_case, or under the provider's name in the table of `template/runtime.py`, which also has the
names that `pomlflow check` knows. A model may refuse an unknown setting; Ollama's client ignores it. The rows of
docs/on-the-wire.md come from `tests/*/wire_table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

from pomlflow.exceptions import SettingError
from pomlflow.template.runtime import canonical, name_for

Provider = Literal["openai", "openai_responses", "anthropic", "google", "ollama"]

# By the package of a model's class, or by the full name of the class.
_PROVIDERS: Final[dict[str, Provider]] = {
    "langchain_openai": "openai",
    "langchain_anthropic": "anthropic",
    "langchain_google_genai": "google",
    "langchain_google_vertexai": "google",
    "langchain_ollama": "ollama",
    "llama_index.llms.openai.base.OpenAI": "openai",  # OpenAILike and Azure's are subclasses
    "llama_index.llms.openai.responses.OpenAIResponses": "openai_responses",
    "llama_index.llms.anthropic.base.Anthropic": "anthropic",
}
# The caller chooses the provider and whether to stream. `if` and `for` are POML's own conditions.
# upstream: poml 0.0.8: it lists `if` and `for` among the settings
_NOT_FOR_MODELS: Final = frozenset({"provider", "stream", "if", "for"})
_UNSUPPORTED: Final[dict[Provider, frozenset[str]]] = {
    "openai": frozenset({"top_k"}),
    "openai_responses": frozenset(
        {"top_k", "stop", "seed", "frequency_penalty", "presence_penalty", "n", "logit_bias"}
    ),
    "anthropic": frozenset({"seed", "frequency_penalty", "presence_penalty", "n", "logit_bias"}),
    "google": frozenset({"logit_bias"}),
    "ollama": frozenset({"n", "logit_bias"}),
}
# Ollama's request has the sampling settings in `options`, but not these.
_OUTSIDE_OPTIONS: Final = frozenset({"model", "tool_choice", "think", "keep_alive", "logprobs", "top_logprobs"})


def provider_parameters(
    runtime: Mapping[str, Any] | None, provider: Provider | None, label: str = "<inline>"
) -> dict[str, Any]:
    """Translate ``<runtime>`` to a provider's parameters; OpenAI's names are used if the provider is unknown.

    A `SettingError` is raised for a setting that the provider does not have, or that is given twice under different
    names. ``provider`` and ``stream`` are left out: the user's model and call decide on these.
    """
    given: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in (runtime or {}).items():
        name = canonical(key)
        if name in _NOT_FOR_MODELS:
            continue
        if name in given:
            raise SettingError(f"{label}: <runtime> has both {written[name]} and {key}, which mean the same", key)
        if provider is not None and name in _UNSUPPORTED[provider]:
            raise SettingError(f"{label}: {_unsupported(provider, key, name)}", key)
        given[name], written[name] = [value] if name == "stop" and isinstance(value, str) else value, key
    values = {name_for(name, provider): value for name, value in given.items()}
    return _in_options(values) if provider == "ollama" else values


def unless_given(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without those that the caller gives, under the same name or another one."""
    names = set(map(canonical, given))
    return {name: value for name, value in values.items() if canonical(name) not in names}


def _unsupported(provider: Provider, key: str, name: str) -> str:
    title = {"openai": "OpenAI", "openai_responses": "OpenAI's Responses API"}.get(provider, provider.capitalize())
    extra = f"; for a compatible server that does, write extra-body='{{\"{name}\": …}}'" if provider == "openai" else ""
    return (
        f"{title} does not support the <runtime> setting {key}. Remove it, or make it conditional with if= on a "
        f"<runtime> of its own{extra}"
    )


def _in_options(values: dict[str, Any]) -> dict[str, Any]:
    outside = {name: value for name, value in values.items() if name in _OUTSIDE_OPTIONS}
    options = {name: value for name, value in values.items() if name not in _OUTSIDE_OPTIONS and name != "options"}
    options |= values.get("options") or {}
    return {**outside, **({"options": options} if options else {})}


@lru_cache(maxsize=256)
def provider_of(kind: type) -> Provider | None:
    """Return the provider whose parameters a model class or one of its base classes takes; None if it is unknown."""
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if found := _PROVIDERS.get(package) or _PROVIDERS.get(f"{base.__module__}.{base.__qualname__}"):
            return found
    return None
