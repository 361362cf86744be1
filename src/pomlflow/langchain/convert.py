"""Convert LangChain's chat prompts to POML markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import (
    AIMessagePromptTemplate,
    BasePromptTemplate,
    ChatPromptTemplate,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.prompts.dict import DictPromptTemplate
from langchain_core.prompts.image import ImagePromptTemplate

from pomlflow.content import split_data_uri
from pomlflow.exceptions import ConversionError
from pomlflow.template.writing import (
    Item,
    Markup,
    conversation,
    message,
    no_form,
    picture,
    tool_request,
    tool_response,
    variable,
    with_variables,
    write,
)

_SPEAKERS: Final[dict[type, str]] = {
    SystemMessagePromptTemplate: "system",
    HumanMessagePromptTemplate: "human",
    AIMessagePromptTemplate: "ai",
    SystemMessage: "system",
    HumanMessage: "human",
    AIMessage: "ai",
}


def to_poml(prompt: BasePromptTemplate[Any]) -> str:
    """Convert a ``ChatPromptTemplate`` to POML markup that renders to the same messages.

    Variables with text values are rendered unchanged. Other values are rendered by POML's rules, ``true`` as an empty
    text, for example. POML re-encodes pictures.

    Args:
        prompt: A ``ChatPromptTemplate`` or ``PromptTemplate`` of f-strings, with placeholders, partial variables that
            are texts, messages, and pictures in base64.

    Returns:
        The markup.

    Raises:
        ConversionError: A part of the prompt cannot be expressed in POML; the message names it and the remedy.

    Example:
        >>> print(to_poml(ChatPromptTemplate([("system", "Be {mood}."), ("placeholder", "{history}")])))
        <poml>
          <system-msg whiteSpace="pre">Be {{mood}}.</system-msg>
          <conversation messages="{{history}}"/>
        </poml>
        <BLANKLINE>
    """
    if isinstance(prompt, PromptTemplate):
        return write([message("human", _parts(prompt, {}))])
    if type(prompt) is not ChatPromptTemplate:
        raise _no_form_of(prompt)
    return write(_items(prompt.messages, prompt.partial_variables, {}))


def _items(messages: Sequence[Any], partial: Mapping[str, Any], calls: dict[str, str]) -> Iterator[Item]:
    """Convert messages; `calls` holds the names of the tool calls so far by id, for the messages that answer them."""
    for item in messages:
        if type(item) is ChatPromptTemplate:
            yield from _items(item.messages, {**partial, **item.partial_variables}, calls)
        elif isinstance(item, MessagesPlaceholder):
            if partial.get(item.variable_name):
                raise no_form(item.variable_name, "has messages as its partial value: give them with each call")
            yield conversation(item.variable_name, item.n_messages)
        elif isinstance(item, ToolMessage) and isinstance(item.content, str):
            yield tool_response(item.tool_call_id, item.name or calls.get(item.tool_call_id, "tool"), item.content)
        elif type(item) in _SPEAKERS:
            calls |= {call["id"] or "": call["name"] for call in getattr(item, "tool_calls", ())}
            yield message(_SPEAKERS[type(item)], _content(item, partial))
        else:
            raise _no_form_of(item)


def _content(message: Any, partial: Mapping[str, Any]) -> Iterator[str]:
    for field in ("additional_kwargs", "name", "id", "response_metadata"):
        if getattr(message, field, None):
            raise no_form(field, f"of a {type(message).__name__} has no form in POML: remove it")
    if not isinstance(message, BaseMessage):
        for prompt in message.prompt if isinstance(message.prompt, list) else [message.prompt]:
            yield from _parts(prompt, partial)
        return
    for part in [message.content] if isinstance(message.content, str) else message.content:
        yield from [part] if isinstance(part, str) else _literal(part)
    for call in getattr(message, "tool_calls", ()):
        yield tool_request(call["id"] or "", call["name"], call["args"])


def _parts(prompt: Any, partial: Mapping[str, Any]) -> Iterator[str]:
    """Convert a template of a text, a picture or a content block."""
    if isinstance(prompt, PromptTemplate):
        yield from _fields(prompt.template, prompt.template_format, {**partial, **prompt.partial_variables})
    elif isinstance(prompt, ImagePromptTemplate):
        yield _picture({"type": "image_url", "image_url": prompt.template}, prompt.template_format, partial)
    elif isinstance(prompt, DictPromptTemplate):
        yield _picture(prompt.template, prompt.template_format, partial)
    else:
        raise _no_form_of(prompt)


def _fields(template: str, kind: str, partial: Mapping[str, Any]) -> Iterator[str]:
    """Convert an f-string, or a Jinja or mustache template with no syntax except variables."""
    if kind == "f-string":
        for text, name, spec, conversion in Formatter().parse(template):
            if text:
                yield text
            if name is not None:
                if spec or conversion:
                    shown = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
                    raise no_form(shown, "has a format: write it in JavaScript, as {{price.toFixed(2)}}")
                yield variable(name, partial.get(name))
        return
    pieces = re.split(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}" if kind == "jinja2" else r"\{\{[{&]\s*(\w+)\s*\}?\}\}", template)
    for text in pieces[::2]:
        if found := re.search(r"\{[{%#].{0,40}", text):
            raise no_form(found[0], f"of a {kind} template has no form here: write it with if=, for= or JavaScript")
    yield from with_variables(pieces, partial)


def _picture(block: Mapping[str, Any], kind: str, partial: Mapping[str, Any]) -> Markup:
    """Convert a content block of a picture, whose data is base64 or one variable."""
    found = _picture_data(block)
    data = list(_fields(found[1], kind, partial))
    if len(data) != 1:
        raise no_form("image", "must be one variable or base64")
    return picture(found[0], data[0])


def _picture_data(block: Mapping[str, Any]) -> tuple[str, str]:
    if block.get("type") == "image_url":
        url = block["image_url"]
        fields = {"url": url} if isinstance(url, str) else dict(url)
        uri = split_data_uri(fields.pop("url", ""))
        if uri and uri[0].startswith("image/") and not fields:
            return uri
        what = f"with {', '.join(fields)}" if fields else "by its address"
        raise no_form("image_url", f"{what} has no form in POML: use data:image/png;base64,{{name}}")
    data = block.get("base64", block.get("data"))
    rest = set(block) - {"type", "base64", "data", "mime_type", "source_type"}
    if block.get("type") == "image" and isinstance(data, str) and not rest and "mime_type" in block:
        return block["mime_type"], data
    raise no_form(str(block.get("type")), f"with {', '.join(block)} is a content block without a form in POML")


def _literal(block: Mapping[str, Any]) -> Iterator[str]:
    """Convert a content block of a message, which contains no variables."""
    if block.get("type") == "text" and set(block) == {"type", "text"}:
        yield block["text"]
        return
    mime_type, data = _picture_data(block)
    yield picture(mime_type, data)


def _no_form_of(prompt: Any) -> ConversionError:
    kind = type(prompt).__name__
    remedy = "rewrite this part in POML, and convert the rest"
    if kind.startswith("FewShot"):
        remedy = 'write its examples as <example>, or pass them as messages to <conversation messages="{{examples}}"/>'
    return no_form(kind, f"has no form in POML: {remedy}")
