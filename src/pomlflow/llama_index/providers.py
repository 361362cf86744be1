"""Translate a POML frame to the arguments of LlamaIndex's models, and move the media that they would not send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    VideoBlock,
)
from llama_index.core.llms import LLM
from llama_index.core.types import PydanticProgramMode

from pomlflow.frame import media
from pomlflow.frame.schema import response_format
from pomlflow.frame.settings import Provider, provider_parameters, unless_given
from pomlflow.frame.settings import provider_of as provider_of_class

L = TypeVar("L", bound=LLM)

# Fields whose values a model class adds to those of a call's arguments. So such an argument must not replace the field.
_CUMULATIVE_FIELDS = frozenset({"tools", "mcp_servers"})
_MEDIA = (ImageBlock, AudioBlock, VideoBlock, DocumentBlock)


def provider_of(llm: Any) -> Provider | None:
    """Return the provider of a model, or of the model to which it delegates; None if it is unknown."""
    # Not getattr(llm, "delegate"): that is slow on a pydantic model without the field.
    kind: type = type(getattr(llm, "__dict__", {}).get("delegate", llm))
    return provider_of_class(kind)


def settings_for(llm: LLM, runtime: Mapping[str, Any] | None, given: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Translate ``<runtime>`` to arguments of a model's chat, without those `given`, or raise a `SettingError`."""
    return unless_given(provider_parameters(runtime, provider_of(llm), label), given)


def apply_fields(llm: L, values: Mapping[str, Any]) -> L:
    """Return the model, or a copy with the settings for which its class has fields. A copy shares the model's clients.

    It is not enough to pass the settings with each call. A model's metadata is made from its fields, and many classes
    read only their fields.
    """
    # upstream: llama-index-llms-openai 0.7-0.8: its own max_tokens and additional_kwargs override a call's arguments
    fields = type(llm).model_fields
    changed = {
        name: value
        for name, value in values.items()
        if name in fields and name not in _CUMULATIVE_FIELDS and getattr(llm, name) != value
    }
    extra = getattr(llm, "additional_kwargs", None)
    if isinstance(extra, dict) and not extra.keys().isdisjoint(values):
        changed["additional_kwargs"] = {name: value for name, value in extra.items() if name not in values}
    if not changed:
        return llm
    made = llm.model_copy(update=changed)
    # The same object as the model's, so that clients that either of them makes later are shared too.
    object.__setattr__(made, "__pydantic_private__", llm.__pydantic_private__)
    return made


def tool_choice(llm: LLM, choice: Any) -> Any:
    """Translate a tool choice: ``auto``, ``none``, ``required``, or a tool, by name or in the Vercel AI SDK's form."""
    if isinstance(choice, Mapping) and "toolName" in choice:
        choice = choice["toolName"]
    provider = provider_of(llm)
    if not isinstance(choice, str) or provider is None:
        return choice
    if provider == "anthropic":
        kinds = {"auto": "auto", "none": "none", "required": "any"}
        return {"type": kinds[choice]} if choice in kinds else {"type": "tool", "name": choice}
    if choice in ("auto", "none", "required"):
        return choice
    return {
        "type": "function",
        **({"name": choice} if provider == "openai_responses" else {"function": {"name": choice}}),
    }


def native_schema(llm: LLM, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments for structured output by a schema, or None if the model has no structured output."""
    provider = provider_of(llm)
    if provider == "openai" and _has_structured_output(llm):
        return {"response_format": response_format(schema)}
    if provider == "openai_responses":
        return {"text": {"format": {"type": "json_schema", **response_format(schema)["json_schema"]}}}
    if provider == "anthropic":
        from anthropic import transform_schema
        from llama_index.llms.anthropic.utils import is_anthropic_structured_output_supported

        if is_anthropic_structured_output_supported(getattr(llm, "model", "")):
            return {"output_config": {"format": {"type": "json_schema", "schema": transform_schema(dict(schema))}}}
    return None


def _has_structured_output(llm: Any) -> bool:
    """Return whether a model of OpenAI's class, or of a subclass, has structured output."""
    from llama_index.llms.openai.utils import is_json_schema_supported

    stated: bool | None = getattr(llm, "should_use_structured_outputs", None)  # of `OpenAILike`
    if stated is None:
        stated = is_json_schema_supported(llm.model) and llm.pydantic_program_mode == PydanticProgramMode.DEFAULT
    return stated


def move_media_after_tools(llm: Any, messages: list[ChatMessage]) -> list[ChatMessage]:
    """For a model of OpenAI, move media from messages of other roles to user messages after the tool responses."""
    # upstream: llama-index-llms-openai 0.7-0.8: media outside of user messages are dropped
    if provider_of(llm) != "openai" or not any(_misplaced_media(message) for message in messages):
        return messages

    def split(message: ChatMessage) -> tuple[ChatMessage, list[ContentBlock]]:
        if not (moved := _misplaced_media(message)):
            return message, []
        head = media.heading(f"the {message.role.value}", message.additional_kwargs.get("tool_call_id"))
        return _with_alt_texts(message), [TextBlock(text=head), *moved]

    return media.move_media_after_tools(
        messages,
        is_tool=lambda message: message.role == MessageRole.TOOL,
        split=split,
        user=lambda blocks: ChatMessage(role=MessageRole.USER, blocks=blocks),
    )


def _misplaced_media(message: ChatMessage) -> Sequence[Any]:
    if message.role == MessageRole.USER:
        return ()
    return [block for block in message.blocks if isinstance(block, _MEDIA)]


def _with_alt_texts(message: ChatMessage) -> ChatMessage:
    """Return a message with its media replaced by texts, which are joined to its own text."""
    texts = [
        _alt_text(block) if isinstance(block, _MEDIA) else getattr(block, "text", None) for block in message.blocks
    ]
    others = [block for block in message.blocks if not isinstance(block, (TextBlock, *_MEDIA))]
    text = "\n\n".join(filter(None, texts))
    return message.model_copy(update={"blocks": [TextBlock(text=text), *others]})


def _alt_text(block: Any) -> str:
    """Return the alt text or type of a medium, without its location, which may be secret or contain the data."""
    kind = getattr(block, f"{block.block_type}_mimetype", None) or block.block_type
    return media.alt_text({"type": kind, "alt": getattr(block, "alt", None)})
