"""Convert a render's output to OpenAI's format, and to the other formats of ``poml.poml()``.

OpenAI's format is that of https://platform.openai.com/docs/api-reference/chat/create. MLflow's trace page shows it as a
chat and accepts additional keys; OpenAI's API refuses them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, Literal, get_args

import orjson

from pomlflow.content import as_chat, is_chat, joined_parts, split_parts
from pomlflow.exceptions import ConfigurationError
from pomlflow.frame.media import alt_text, heading, move_media_after_tools, openai_part, replace_values
from pomlflow.frame.schema import response_format
from pomlflow.frame.settings import provider_parameters
from pomlflow.frame.tools import tool_specs
from pomlflow.record import RenderRecord

Format = Literal["raw", "message_dict", "dict", "openai_chat", "langchain", "pydantic"]
"""The formats of poml 0.0.8; see `convert_output`."""

_ROLES: Final = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_REQUIRED_KEYS: Final = frozenset({"role", "speaker", "content"})  # the keys of every message
_SHOWN: Final = 100  # the maximum characters of a picture's JSON in `readable_text`


def check_format(format: str) -> None:  # noqa: A002 - poml's name
    """Raise a `ConfigurationError` for an unknown format, before anything is rendered."""
    if format not in get_args(Format):
        raise ConfigurationError(f"Unknown output format: {format!r}; there are {', '.join(get_args(Format))}")


def convert_output(record: RenderRecord, format: Format) -> Any:  # noqa: A002
    """Return a render's output in a format, or raise its error.

    ``raw`` is the JSON text that POML's command line writes; ``message_dict`` the messages; ``dict`` the whole output;
    ``openai_chat`` the arguments of ``client.chat.completions.create``; ``langchain`` messages for LangChain's
    ``messages_from_dict`` and the rest; ``pydantic`` poml's ``PomlFrame``.

    Example:
        >>> from pomlflow.template import Template
        >>> convert_output(Template("<poml><runtime maxTokens='9'/><p>Hi</p></poml>").render({}), "openai_chat")
        {'messages': [{'role': 'user', 'content': 'Hi'}], 'max_tokens': 9}
    """
    output = record.result()
    if format == "raw":
        return raw_json(output)
    if format == "message_dict":
        return output["messages"]
    if format == "dict":
        return dict(output)
    if format == "pydantic":
        return record.frame
    if format == "langchain":
        return {**output, "messages": list(_langchain_messages(output["messages"]))}
    return _openai_chat(output)


def _openai_chat(output: Mapping[str, Any]) -> dict[str, Any]:
    # upstream: poml 0.0.8: its openai_chat writes `stop_sequences`, names every schema `schema` and strict, converts
    # audio to a picture, drops the pictures of tools, and passes `provider` on.
    made: dict[str, Any] = {"messages": chat_messages(output["messages"])}
    if specs := tool_specs(output):
        made["tools"] = [spec.openai() for spec in specs]
    if schema := output.get("schema"):
        made["response_format"] = response_format(schema)
    if runtime := output.get("runtime"):
        made |= _openai_settings(runtime)
    return made


def _openai_settings(runtime: Mapping[str, Any]) -> dict[str, Any]:
    # No provider, so that no setting is refused: OpenAI's client may talk to another server, which has more settings.
    values = provider_parameters(runtime, None)
    if "stream" in runtime:
        values["stream"] = runtime["stream"]
    if "max_tokens" in values and not {"maxTokens", "max_tokens"} & runtime.keys():
        values["max_completion_tokens"] = values.pop("max_tokens")  # the only name that OpenAI's newer models accept
    return values


def trace_messages(messages: str | list[Any]) -> list[dict[str, Any]]:
    """Return POML's messages in OpenAI's format, each with POML's speaker, for a trace; with chat off, one message."""
    made = list(_split_messages(messages))
    for message in made:
        message["content"] = _content(message["content"]) or (None if "tool_calls" in message else "")
    return made


def _split_messages(messages: str | list[Any]) -> Iterator[dict[str, Any]]:
    """Yield messages in OpenAI's format, each with POML's speaker; tool responses are messages of their own.

    Their content is still POML's text or parts.
    """
    for speaker, content in ((message["speaker"], message["content"]) for message in as_chat(messages)):
        head = {"role": _ROLES.get(speaker, speaker), "speaker": speaker}
        if isinstance(content, str):
            yield {**head, "content": content}
            continue
        calls, responses, rest = split_parts(content)
        if calls:
            yield {**head, "content": rest, "tool_calls": [_tool_call(call) for call in calls]}
        elif rest or not responses:
            yield {**head, "content": rest}
        for part in responses:
            identity = {"tool_call_id": part["id"], "name": part["name"]}
            yield {**head, "role": "tool", **identity, "content": part["content"]}


def chat_messages(messages: str | list[Any]) -> list[dict[str, Any]]:
    """Return POML's messages as OpenAI's API accepts them: no media in tools' messages, none without content."""
    return move_media_after_tools(
        (
            message
            for message in _split_messages(messages)
            if message["content"] != [] or message.keys() > _REQUIRED_KEYS
        ),
        is_tool=lambda message: message["role"] == "tool",
        split=_for_api,
        user=lambda parts: {"role": "user", "content": parts},
    )


def _for_api(message: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a message as OpenAI's API accepts it, and the media of a tool's response, which must be moved."""
    content = message["content"]
    sent = {key: value for key, value in message.items() if key not in ("speaker", "name") and value != []}
    if message["role"] != "tool":
        return ({**sent, "content": _content(content)} if "content" in sent else sent), []
    parts = _parts(content)
    media = [_content_part(part) for part in parts if not isinstance(part, str)]
    head = [{"type": "text", "text": heading(message["name"], message["tool_call_id"])}] if media else []
    return {**sent, "content": _as_text(parts)}, head + media


def _as_text(parts: list[Any]) -> str:
    return "\n\n".join(part if isinstance(part, str) else alt_text(part) for part in parts)


def _langchain_messages(messages: str | list[Any]) -> Iterator[dict[str, Any]]:
    for speaker, content in ((message["speaker"], message["content"]) for message in as_chat(messages)):
        if isinstance(content, str):
            yield {"type": speaker, "data": {"content": content}}
            continue
        calls, responses, rest = split_parts(content)
        for part in responses:  # before the rest of the message, as poml has them
            text = _as_text(_parts(part["content"]))
            yield {"type": "tool", "data": {"content": text, "tool_call_id": part["id"], "name": part["name"]}}
        data: dict[str, Any] = {"content": _langchain_content(rest)} if rest else {}
        if calls:
            data["tool_calls"] = [{"id": call["id"], "name": call["name"], "args": call["content"]} for call in calls]
        if data:
            yield {"type": speaker, "data": data}


def _langchain_content(parts: list[Any]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": part["type"].partition("/")[0],
            "source_type": "base64",
            "data": part["base64"],
            "mime_type": part["type"],
        }
        for part in parts
    ]


def _parts(content: str | list[Any]) -> list[Any]:
    return [content] if isinstance(content, str) else content


def _content(content: str | list[Any]) -> str | list[dict[str, Any]]:
    content = joined_parts(_parts(content))
    return content if isinstance(content, str) else [_content_part(part) for part in content]


def _content_part(part: Any) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else openai_part(part["type"], part["base64"])


def _tool_call(part: Mapping[str, Any]) -> dict[str, Any]:
    content = part["content"]
    arguments = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return {"id": part["id"], "type": "function", "function": {"name": part["name"], "arguments": arguments}}


def raw_json(output: Mapping[str, Any]) -> str:
    """Return the JSON text that POML's command line writes: compact, with numbers as JavaScript spells them."""
    return orjson.dumps(replace_values(dict(output), _as_javascript)).decode()


def indented_json(value: Any) -> str:
    """Return any JSON value as POML writes it into its trace files."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(replace_values(value, _as_javascript), option=options).decode()


def readable_text(output: Mapping[str, Any]) -> str:
    """Return the messages as POML's command line prints them for people."""
    messages = output["messages"]
    if is_chat(messages):
        return "\n\n".join(f"===== {m['speaker']} =====\n\n{_readable_content(m['content'])}" for m in messages)
    return _readable_content(messages)


def _readable_content(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(part if isinstance(part, str) else _shortened(raw_json(part)) for part in content)


def _shortened(text: str) -> str:
    return f"{text[:_SHOWN]}..." if len(text) > _SHOWN else text


def _as_javascript(value: Any) -> Any:
    """Return a number in JavaScript's spelling, if orjson's differs; other values unchanged."""
    if isinstance(value, float):
        return orjson.Fragment(_number(value))
    return orjson.Fragment(str(value)) if type(value) is int and abs(value) >= 1 << 63 else value


def _number(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:  # noqa: PLR2004 - from there on JavaScript writes an exponent
        return str(int(value))
    if 1e-6 <= abs(value) < 1e-4:  # noqa: PLR2004 - here Python writes an exponent, and JavaScript does not
        return format(Decimal(repr(value)), "f")
    return re.sub(r"e([+-])0+", r"e\1", repr(value))
