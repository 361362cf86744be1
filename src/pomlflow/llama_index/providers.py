"""What LlamaIndex's model classes take, and what they lose on the way to the provider."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms import LLM

from pomlflow.exceptions import SettingError
from pomlflow.frame import Provider, Settings, response_format, settings

__all__ = ["for_provider", "native_schema", "provider_of", "settings_for", "tool_choice"]

_CLASSES: dict[str, Provider] = {
    "llama_index.llms.openai.base.OpenAI": "openai",  # OpenAILike and Azure's are subclasses
    "llama_index.llms.anthropic.base.Anthropic": "anthropic",
}
_RESPONSES = "llama_index.llms.openai.responses.OpenAIResponses"  # OpenAI's other API, with some words of its own
_MEDIA = (ImageBlock, AudioBlock, VideoBlock, DocumentBlock)


def provider_of(llm: Any) -> Provider | None:
    """Whose requests a model sends; None where that is not known."""
    kind: type = type(llm)
    return _provider(kind)


@lru_cache(maxsize=256)
def _provider(kind: type) -> Provider | None:
    return next((_CLASSES[name] for name in _names(kind) if name in _CLASSES), None)


@lru_cache(maxsize=256)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)


def _responds(llm: Any) -> bool:
    kind: type = type(llm)
    return _RESPONSES in _names(kind)


def settings_for(llm: LLM, runtime: Mapping[str, Any] | None, place: str) -> Settings:
    """Name the settings of ``<runtime>`` as a model's chat takes them.

    Args:
        llm: The model.
        runtime: As POML gives it.
        place: The template, for errors.

    Raises:
        SettingError: The provider, or the SDK that the model's class hands its arguments to, has no such setting.
    """
    provider = provider_of(llm)
    given = settings(runtime, provider, place)
    if _responds(llm) and "max_tokens" in given.values:
        given.values["max_output_tokens"] = given.values.pop("max_tokens")
    if provider is not None and given.unknown and (known := _parameters(provider)):
        for name in sorted(given.unknown - known):
            raise SettingError(
                f"{place}: <runtime> says {name}, which {type(llm).__name__} does not take: take it away, or, for a "
                f"server that takes it all the same, write extra-body='{{\"{name}\": …}}'",
                name,
            )
    return given


@lru_cache
def _parameters(provider: Provider) -> frozenset[str]:
    """What an SDK's chat takes; it is asked because it refuses the rest late, while a stream is read."""
    try:
        if provider == "openai":
            from openai.resources.chat.completions import Completions as Chat
        else:
            from anthropic.resources.messages import Messages as Chat  # type: ignore[assignment]
    except ImportError:  # another version of the SDK
        return frozenset()
    return frozenset(inspect.signature(Chat.create).parameters)


def tool_choice(llm: LLM, choice: Any) -> Any:
    """Say which tool is to be called, as a model's chat takes it.

    Args:
        llm: The model.
        choice: ``auto``, ``none``, ``required``, or a tool: its name, or as the Vercel AI SDK has it.
    """
    if isinstance(choice, Mapping) and "toolName" in choice:
        choice = choice["toolName"]
    provider = provider_of(llm)
    if not isinstance(choice, str) or (provider is None and not _responds(llm)):
        return choice
    if provider == "anthropic":
        kinds = {"auto": "auto", "none": "none", "required": "any"}
        return {"type": kinds[choice]} if choice in kinds else {"type": "tool", "name": choice}
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", **({"name": choice} if _responds(llm) else {"function": {"name": choice}})}


def native_schema(llm: LLM, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give what makes a model's chat keep to a schema; None where its class or model has no such thing.

    Args:
        llm: The model.
        schema: The output schema.
    """
    provider = provider_of(llm)
    if provider == "openai" and getattr(llm, "_should_use_structure_outputs", lambda: False)():
        return {"response_format": response_format(schema)}
    if _responds(llm):
        return {"text": {"format": {"type": "json_schema", **response_format(schema)["json_schema"]}}}
    if provider == "anthropic" and _keeps_to_schemas(llm) and "output_config" in _parameters(provider):
        from anthropic import transform_schema

        return {"output_config": {"format": {"type": "json_schema", "schema": transform_schema(dict(schema))}}}
    return None


def _keeps_to_schemas(llm: Any) -> bool:
    with suppress(ImportError):  # llama-index-llms-anthropic before 0.10.5 does not know which models do
        from llama_index.llms.anthropic.utils import is_anthropic_structured_output_supported

        return bool(is_anthropic_structured_output_supported(llm.model))
    return False


def for_provider(llm: Any, messages: list[ChatMessage]) -> list[ChatMessage]:
    """Put media where the provider takes them.

    OpenAI's chats have them in user's messages alone, and LlamaIndex's client (0.8.3) drops them elsewhere without a
    word: those of a tool's response, above all. There a mark stands for each, and they follow in a user's message.

    Args:
        llm: The model; None where it is not known.
        messages: The messages.

    Returns:
        The same list where nothing needs to be moved.
    """
    if provider_of(llm) != "openai" or not any(_misplaced(message) for message in messages):
        return messages
    calls = {
        block.tool_call_id: block.tool_name
        for message in messages
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    }
    made: list[ChatMessage] = []
    moved: list[ContentBlock] = []
    for message in messages:
        if moved and message.role != MessageRole.TOOL:  # nothing may stand between calls and their responses
            made.append(ChatMessage(role=MessageRole.USER, blocks=moved))
            moved = []
        if media := _misplaced(message):
            moved += [TextBlock(text=f"From {_said_by(message, calls)}:"), *media]
            message = _marked(message)  # noqa: PLW2901 - what is sent of it
        made.append(message)
    return [*made, ChatMessage(role=MessageRole.USER, blocks=moved)] if moved else made


def _misplaced(message: ChatMessage) -> Sequence[Any]:
    if message.role == MessageRole.USER:
        return ()
    return [block for block in message.blocks if isinstance(block, _MEDIA)]


def _said_by(message: ChatMessage, calls: Mapping[str | None, str]) -> str:
    call = message.additional_kwargs.get("tool_call_id")
    return f"the {message.role.value}" if call is None else f"{calls.get(call, 'the tool')} ({call})"


def _marked(message: ChatMessage) -> ChatMessage:
    """A message with a mark for each of its media, in one text with its own."""
    texts = [_mark(block) if isinstance(block, _MEDIA) else getattr(block, "text", None) for block in message.blocks]
    others = [block for block in message.blocks if not isinstance(block, (TextBlock, *_MEDIA))]
    text = "\n\n".join(text for text in texts if text)
    return message.model_copy(update={"blocks": [TextBlock(text=text), *others]})


def _mark(block: Any) -> str:
    kind, alt = getattr(block, "image_mimetype", None) or block.block_type, getattr(block, "alt", None)
    return f"[{kind}: {alt}]" if alt else f"[{kind}]"
