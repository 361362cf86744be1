"""What a render gave, in each of the formats of ``poml.poml()``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, get_args

import orjson

from pomlflow.exceptions import ConfigurationError
from pomlflow.frame import response_format, settings, tool_specs
from pomlflow.frame.openai import chat_messages
from pomlflow.record import RenderRecord

__all__ = ["Format", "check_format", "converted", "indented", "pretty", "raw"]

Format = Literal["raw", "message_dict", "dict", "openai_chat", "langchain", "pydantic"]
"""As in poml 0.0.8; what each gives stands at `converted`."""

_SHOWN = 100  # characters of a picture's JSON that poml shows


def check_format(format: str) -> None:  # noqa: A002 - poml's own name
    """Refuse a format that there is not, before anything is rendered.

    Raises:
        ConfigurationError: It is none.
    """
    if format not in get_args(Format):
        raise ConfigurationError(f"Unknown output format: {format!r}; there are {', '.join(get_args(Format))}")


def converted(record: RenderRecord, format: Format, *, exact: bool = False) -> Any:  # noqa: A002
    """Give a render's output in a format.

    Args:
        record: The render.
        format: ``raw`` is the JSON text that POML's command line writes; ``message_dict`` the messages; ``dict`` all;
            ``openai_chat`` the arguments of ``client.chat.completions.create``; ``langchain`` messages for LangChain's
            ``messages_from_dict`` and the rest; ``pydantic`` poml's ``PomlFrame``.
        exact: Whether ``openai_chat`` is to be byte for byte what poml makes of it, with what OpenAI's API refuses.

    Returns:
        In the format's type.

    Raises:
        PomlError: The error of a failed render.

    Example:
        >>> from pomlflow.template import Template
        >>> converted(Template("<poml><runtime maxTokens='9'/><p>Hi</p></poml>").render({}), "openai_chat")
        {'messages': [{'role': 'user', 'content': 'Hi'}], 'max_tokens': 9}
    """
    output = record.result()
    if format == "raw":
        return raw(output)
    if format == "message_dict":
        return output["messages"]
    if format == "dict":
        return dict(output)
    if format == "pydantic":
        return record.frame
    if format == "langchain":
        return _langchain(record)
    return _openai_chat_of_poml(record) if exact else _openai_chat(output)


def raw(output: Mapping[str, Any]) -> str:
    """The JSON text that POML's command line writes: compact, with numbers as JavaScript spells them.

    Example:
        >>> raw({"messages": "naïve", "runtime": {"temperature": 0.00001}})
        '{"messages":"naïve","runtime":{"temperature":0.00001}}'
    """
    return orjson.dumps(_spelt(dict(output))).decode()


def indented(value: Any) -> str:
    """Any JSON value as POML writes it into its trace files."""
    return orjson.dumps(_spelt(value), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()


def pretty(output: Mapping[str, Any]) -> str:
    """The messages as POML's command line shows them to people.

    Example:
        >>> print(pretty({"messages": [{"speaker": "human", "content": "Hello"}]}))
        ===== human =====
        <BLANKLINE>
        Hello
    """
    messages = output["messages"]
    if isinstance(messages, list) and all(isinstance(m, dict) and "speaker" in m for m in messages):
        return "\n\n".join(f"===== {m['speaker']} =====\n\n{_pretty_content(m['content'])}" for m in messages)
    return _pretty_content(messages)


def _pretty_content(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(part if isinstance(part, str) else _shortened(raw(part)) for part in content)


def _shortened(text: str) -> str:
    return f"{text[:_SHOWN]}..." if len(text) > _SHOWN else text


def _langchain(record: RenderRecord) -> dict[str, Any]:
    from poml.api import _poml_response_to_langchain

    return {**record.result(), "messages": _poml_response_to_langchain(record.frame.messages)}


def _openai_chat(output: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's arguments, without poml's faults (0.0.8).

    It calls the stop sequences ``stop_sequences``, every schema ``schema`` and strict, and a sound a picture, makes the
    text ``[image/png]`` of a tool's picture, and passes on who the file was written for.
    """
    made: dict[str, Any] = {"messages": chat_messages(output["messages"])}
    if specs := tool_specs(output):
        made["tools"] = [spec.openai() for spec in specs]
    if schema := output.get("schema"):
        made["response_format"] = response_format(schema)
    if runtime := output.get("runtime"):
        made |= _openai_settings(runtime)
    return made


def _openai_settings(runtime: Mapping[str, Any]) -> dict[str, Any]:
    # No provider: what goes to OpenAI's client is often meant for another server, which knows more settings.
    values = settings(runtime, None).values
    if "stream" in runtime:
        values["stream"] = runtime["stream"]
    if "max_tokens" in values and not {"maxTokens", "max_tokens"} & runtime.keys():
        values["max_completion_tokens"] = values.pop("max_tokens")  # the only one that OpenAI's newer models take
    return values


def _openai_chat_of_poml(record: RenderRecord) -> dict[str, Any]:
    from poml.api import _camel_case_to_snake_case, _poml_response_to_openai_chat

    output = record.result()
    made: dict[str, Any] = {"messages": _poml_response_to_openai_chat(record.frame.messages)}
    if tools := output.get("tools"):
        functions = [
            {
                "name": tool.get("name", ""),
                "description": tool.get("description", ""),
                "parameters": tool.get("parameters", {}),
            }
            for tool in tools
        ]
        made["tools"] = [{"type": "function", "function": function} for function in functions]
    if schema := output.get("schema"):
        described = {"name": "schema", "schema": schema, "strict": True}
        made["response_format"] = {"type": "json_schema", "json_schema": described}
    return made | {_camel_case_to_snake_case(key): value for key, value in (output.get("runtime") or {}).items()}


def _spelt(value: Any) -> Any:
    """A value with the numbers in it that orjson spells otherwise than JavaScript, or not at all."""
    if isinstance(value, dict):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelt(item) for item in value]
    if isinstance(value, float):
        return orjson.Fragment(_number(value))
    return orjson.Fragment(str(value)) if type(value) is int and abs(value) >= 1 << 63 else value


def _number(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:  # noqa: PLR2004 - from there on JavaScript writes an exponent
        return str(int(value))
    if 1e-6 <= abs(value) < 1e-4:  # noqa: PLR2004 - where JavaScript writes no exponent yet, and Python does
        return format(Decimal(repr(value)), "f")
    return re.sub(r"e([+-])0+", r"e\1", repr(value))
