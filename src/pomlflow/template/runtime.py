"""The names of ``<runtime>`` settings."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# The other names of settings, each with the APIs that use it.
_SYNONYMS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "max_tokens": {
        "max_output_tokens": ("openai_responses", "google"),
        "num_predict": ("ollama",),
        "max_completion_tokens": (),  # OpenAI's API and clients accept both names
        "max_new_tokens": (),
    },
    "stop": {"stop_sequences": ("anthropic", "google", "mlflow")},
    "n": {"candidate_count": ("google",)},
    "model": {"model_name": ("mlflow",)},
    "seed": {"random_seed": ()},
}
_CANONICAL: Final = {synonym: name for name, synonyms in _SYNONYMS.items() for synonym in synonyms}

KNOWN: Final = frozenset(
    "abort_signal audio background base_url best_of betas cached_content container context_management echo effort "
    "extra_body extra_headers extra_query format frequency_penalty function_call functions generation_config headers "
    "ignore_eos include instructions keep_alive labels logit_bias logprobs low_vram main_gpu max_retries max_steps "
    "max_tokens max_tool_calls mcp_servers media_resolution metadata min_p min_tokens mirostat mirostat_eta "
    "mirostat_tau modalities model n num_batch num_ctx num_gpu num_keep num_thread numa output_config "
    "parallel_tool_calls penalize_newline prediction presence_penalty previous_response_id prompt_cache_key "
    "prompt_cache_retention provider provider_options raw reasoning reasoning_effort reasoning_summary repeat_last_n "
    "repeat_penalty repetition_penalty response_format response_logprobs response_mime_type response_modalities "
    "response_schema safe_prompt safety_identifier safety_settings seed service_tier speech_config stop store stream "
    "stream_options suffix system system_instruction temperature text tfs_z think thinking thinking_budget "
    "thinking_config thinking_level timeout tool_choice tools top_a top_k top_logprobs top_p truncation typical_p "
    "use_mlock use_mmap user verbosity web_search_options".split()
).union(_CANONICAL)
"""The settings of models by OpenAI, Anthropic, Google, Ollama, vLLM and the Vercel AI SDK."""


@lru_cache(maxsize=512)
def canonical(key: str) -> str:
    """Return the one snake_case name of a setting, however POML files spell it."""
    snake = _HUMP.sub("_", key).lower().replace("-", "_")
    return _CANONICAL.get(snake, snake)


def name_for(name: str, api: str | None) -> str:
    """Return what an API calls a setting, which is given by its canonical name."""
    return next((synonym for synonym, apis in _SYNONYMS.get(name, {}).items() if api in apis), name)
