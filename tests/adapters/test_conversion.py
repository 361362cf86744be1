"""`to_poml`: a framework's own prompt as markup with the same messages, or an error that names what POML lacks."""

from __future__ import annotations

import base64
import importlib
import io
import json
from typing import Any

import pytest
from PIL import Image
from tests.adapters.frameworks import Framework, LangChain
from tests.corpus.cases import cases

from pomlflow import ConversionError

ODD = "  <b> & \"x\" 'y' #lt; # h {{z}} } {\n\n\ttab  end\u2028\r\n \U0001f600\ue000 "


def picture() -> str:
    """A red picture of two by one pixels, in base64."""
    file = io.BytesIO()
    Image.new("RGB", (2, 1), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def chat(framework: Framework, *messages: tuple[str, Any], **partial: Any) -> Any:
    """The framework's own chat prompt."""
    if isinstance(framework, LangChain):
        from langchain_core.prompts import ChatPromptTemplate

        return ChatPromptTemplate(list(messages), partial_variables=partial)
    from llama_index.core.prompts import ChatPromptTemplate as LlamaIndexPrompt

    return LlamaIndexPrompt.from_messages(list(messages), **partial)


def to_poml(framework: Framework, prompt: Any) -> str:
    package = "langchain" if isinstance(framework, LangChain) else "llama_index"
    markup: str = importlib.import_module(f"pomlflow.{package}").to_poml(prompt)
    return markup


def test_texts_and_values_come_out_the_same(framework: Framework) -> None:
    # LlamaIndex takes {name} alone for a variable, and all other braces for text.
    escaped = ODD.replace("{", "{{").replace("}", "}}") if isinstance(framework, LangChain) else ODD.replace("z", " z ")
    prompt = chat(framework, ("system", f"{escaped}{{a}}{escaped}"), ("user", "{b}{a}"), ("assistant", '{{"k": {a}}}'))
    converted = framework.prompts.from_template(to_poml(framework, prompt))
    values = {"a": ODD, "b": "<system-msg>{{1 + 1}}</system-msg>"}
    assert framework.messages(converted, **values) == framework.messages(prompt, **values)
    assert framework.variables(converted) == ["a", "b"]


def test_a_partial_value_is_the_default(framework: Framework) -> None:
    prompt = chat(framework, ("user", "{greeting} {name}"), greeting="It's <Hello> & {so}:")
    converted = framework.prompts.from_template(to_poml(framework, prompt))
    for values in ({"name": "Ada"}, {"name": "Ada", "greeting": "Hi"}):
        assert framework.messages(converted, **values) == framework.messages(prompt, **values)


def test_the_markup_is_what_a_person_would_write(framework: Framework) -> None:
    prompt = chat(framework, ("system", "Answer for {shop}:\n- in one line"), ("user", "{question}"))
    assert to_poml(framework, prompt) == (
        "<poml>\n"
        '  <system-msg whiteSpace="pre">Answer for {{shop}}:\n- in one line</system-msg>\n'
        '  <human-msg whiteSpace="pre">{{question}}</human-msg>\n'
        "</poml>\n"
    )


@pytest.mark.parametrize(
    ("messages", "part", "words"),
    [
        ([("user", "a"), ("user", "b")], "messages", "two human messages in a row are one message in POML"),
        ([("system", ""), ("user", "b")], "messages", "an empty system message disappears in POML"),
        ([("user", "{class}")], "class", "'class' is not a name in JavaScript: rename it"),
    ],
)
def test_what_has_no_form_is_named(framework: Framework, messages: Any, part: str, words: str) -> None:
    with pytest.raises(ConversionError, match=words) as raised:
        to_poml(framework, chat(framework, *messages))
    assert raised.value.part == part


def test_other_prompts_are_refused_by_name(framework: Framework) -> None:
    with pytest.raises(ConversionError, match="PomlPromptTemplate has no form"):
        to_poml(framework, framework.prompts.from_template("<p>Hello</p>"))


class TestLangChain:
    """What only LangChain has."""

    def same(self, prompt: Any, **values: Any) -> str:
        from pomlflow.langchain import PomlPromptTemplate, to_poml

        markup = to_poml(prompt)
        old, new = prompt.invoke(values).to_messages(), PomlPromptTemplate.from_template(markup).invoke(values)
        assert [(type(m), m.text, getattr(m, "tool_calls", None)) for m in new.to_messages()] == [
            (type(m), m.text, getattr(m, "tool_calls", None)) for m in old
        ]
        return markup

    def test_the_error_for_examples_names_their_form(self) -> None:
        from langchain_core.prompts import (
            ChatPromptTemplate,
            FewShotChatMessagePromptTemplate,
            FewShotPromptTemplate,
            PromptTemplate,
        )

        from pomlflow.langchain import to_poml

        examples: dict[str, Any] = {"examples": [{"a": "b"}], "input_variables": []}
        texts = FewShotPromptTemplate(example_prompt=PromptTemplate.from_template("{a}"), suffix="?", **examples)
        chats = FewShotChatMessagePromptTemplate(example_prompt=ChatPromptTemplate([("human", "{a}")]), **examples)
        for prompt in (texts, chats, ChatPromptTemplate([("system", "s"), chats])):
            with pytest.raises(ConversionError, match=r"^FewShot\w+ has no form in POML: .* <example>.*<conv"):
                to_poml(prompt)

    @pytest.mark.parametrize("values", [{}, {"history": [("human", "1"), ("ai", "2"), ("human", "3")]}])
    def test_placeholders(self, values: dict[str, Any]) -> None:
        from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

        prompt = ChatPromptTemplate([("system", "s"), ("placeholder", "{history}"), ("ai", "{q}")])
        assert '<conversation messages="{{history}}"/>' in self.same(prompt, q="?", **values)
        last = MessagesPlaceholder("history", optional=True, n_messages=2)
        self.same(ChatPromptTemplate([("system", "s"), last, ("human", "{q}")]), q="?", **values)

    def test_messages_and_tool_calls(self) -> None:
        from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
        from langchain_core.prompts import ChatPromptTemplate

        call = {"name": "look", "args": {"at": {"x": [1, None, True, f"{ODD}}}}}"]}}, "id": "c1", "type": "tool_call"}
        call_message, tool_message = (
            AIMessage("One moment.", tool_calls=[call]),
            ToolMessage(ODD.strip(), tool_call_id="c1"),
        )
        inner = ChatPromptTemplate([("human", "{q}")], partial_variables={"q": "Look!"})
        markup = self.same(
            ChatPromptTemplate([SystemMessage("{literal}"), inner, call_message, tool_message, ("human", "{r}")]),
            r="Why?",
        )
        assert '<tool-request id="c1" name="look"' in markup
        assert '<tool-response id="c1" name="look">' in markup

    def test_jinja_and_mustache_with_variables_alone(self) -> None:
        from langchain_core.prompts import ChatPromptTemplate

        for kind, template in (("jinja2", "{{ a }} {b} {{c}}"), ("mustache", "{{{a}}} {b} {{&c}}")):
            markup = self.same(ChatPromptTemplate([("human", template)], template_format=kind), a="<a>", c="c & c")
            assert "{{a}} {b} {{c}}" in markup

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,{picture}"}},
            {"type": "image", "base64": "{picture}", "mime_type": "image/png"},
            {"type": "image_url", "image_url": f"data:image/png;base64,{picture()}"},
        ],
        ids=["url", "block", "constant"],
    )
    def test_pictures(self, part: dict[str, Any]) -> None:
        from langchain_core.prompts import ChatPromptTemplate

        from pomlflow.langchain import PomlPromptTemplate, to_poml

        prompt = ChatPromptTemplate([("human", [{"type": "text", "text": "Look at {what}:"}, part])])
        converted = PomlPromptTemplate.from_template(to_poml(prompt))
        [message] = converted.invoke({"what": "this", "picture": picture()}).to_messages()
        text, image = message.content_blocks
        assert text["text"] == "Look at this:"
        shown = Image.open(io.BytesIO(base64.b64decode(image["base64"]))).convert("RGB")
        assert (shown.size, shown.getpixel((0, 0))) == ((2, 1), (255, 0, 0))

    @pytest.mark.parametrize(
        ("message", "kind", "words"),
        [
            (("human", "{x:.2f}"), "f-string", r"\{x:.2f\} has a format"),
            (("human", "{% if x %}y{% endif %}"), "jinja2", r"\{% if x %\}"),
            (("human", "{{#a}}x{{/a}}"), "mustache", r"\{\{#a\}\}"),
            (("human", [{"type": "image_url", "image_url": "https://a/{b}.png"}]), "f-string", "image_url by its addr"),
            (("human", [{"type": "file", "file_id": "{x}"}]), "f-string", "file with type, file_id"),
        ],
    )
    def test_templates_without_a_form(self, message: Any, kind: str, words: str) -> None:
        from langchain_core.prompts import ChatPromptTemplate

        from pomlflow.langchain import to_poml

        with pytest.raises(ConversionError, match=words):
            to_poml(ChatPromptTemplate([message], template_format=kind))

    def test_messages_without_a_form(self) -> None:
        from langchain_core.messages import ChatMessage, HumanMessage
        from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

        from pomlflow.langchain import to_poml

        for message, words in (
            (HumanMessage("x", name="bob"), "name of a HumanMessage"),
            (ChatMessage("x", role="critic"), "ChatMessage"),
            (("human", "{n}"), "n has a partial value of type int"),
            (MessagesPlaceholder("h", optional=True), "h has messages as its partial value"),
        ):
            with pytest.raises(ConversionError, match=words):
                to_poml(ChatPromptTemplate([message], partial_variables={"h": [HumanMessage("x")], "n": 3}))
        with pytest.raises(ConversionError, match="today has a partial value of type function"):
            to_poml(ChatPromptTemplate([("human", "{today}")], partial_variables={"today": lambda: "Monday"}))


class TestLlamaIndex:
    """What only LlamaIndex has."""

    def test_a_text_prompt_with_mappings(self) -> None:
        from llama_index.core.prompts import PromptTemplate

        from pomlflow.llama_index import PomlPromptTemplate, to_poml

        prompt = PromptTemplate("{passages}\n\n{query_str}", template_var_mappings={"context_str": "passages"})
        converted = PomlPromptTemplate.from_template(to_poml(prompt))
        values = {"context_str": ODD, "query_str": "Why?"}
        assert converted.format(**values) == prompt.format(**values)

    def test_pictures(self) -> None:
        from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
        from llama_index.core.prompts import ChatPromptTemplate

        from pomlflow.llama_index import PomlPromptTemplate, to_poml

        block = ImageBlock(image=picture().encode(), image_mimetype="image/png")
        message = ChatMessage(role="user", blocks=[TextBlock(text="Look at {what}:"), block])
        converted = PomlPromptTemplate.from_template(to_poml(ChatPromptTemplate([message])))
        text, image = converted.format_messages(what="this")[0].blocks
        assert text.text == "Look at this:"
        shown = Image.open(image.resolve_image()).convert("RGB")
        assert (shown.size, shown.getpixel((0, 0))) == ((2, 1), (255, 0, 0))

    def test_what_has_no_form_is_named(self) -> None:
        from llama_index.core.base.llms.types import ChatMessage, ImageBlock
        from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate

        from pomlflow.llama_index import to_poml

        by_address = ChatMessage(role="user", blocks=[ImageBlock(url="https://example.org/a.png")])
        for prompt, words in (
            (PromptTemplate("{x}", function_mappings={"x": lambda **_: "1"}), "x is a function"),
            (ChatPromptTemplate([ChatMessage(role="tool", content="x")]), "the role tool"),
            (ChatPromptTemplate([by_address]), "a content block of type image"),
            (RichPromptTemplate("{{x}}"), r"RichPromptTemplate is written in Jinja.* docs/migration\.md"),
        ):
            with pytest.raises(ConversionError, match=words):
                to_poml(prompt)


RESULT = "application/vnd.poml.toolresponse"


def test_all_messages_that_poml_renders_are_converted_without_loss(framework: Framework) -> None:
    """To the framework's messages and back, over the whole corpus."""
    convert = importlib.import_module(f"{framework.prompts.__module__.rpartition('.')[0]}.messages")
    convert_back = convert.message_to_poml if isinstance(framework, LangChain) else convert.to_poml
    frames = {case.name: case.expected["messages"] for case in cases() if case.chat and "messages" in case.expected}
    assert len(frames) > 100
    for name, messages in frames.items():
        back = [convert_back(message) for message in convert.from_poml(messages)]
        assert _merged(back) == [_plain(framework, message) for message in messages], name


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As POML puts neighbouring tool responses into one message."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        if merged and message["speaker"] == merged[-1]["speaker"] == "tool":
            merged[-1] = {"speaker": "tool", "content": merged[-1]["content"] + message["content"]}
        else:
            merged.append(message)
    return merged


def _plain(framework: Framework, message: dict[str, Any]) -> dict[str, Any]:
    """A message after the way back: results are a tool's, None is an empty text, some formats have other names."""
    content = json.loads(json.dumps(message["content"] or "").replace("audio/x-wav", "audio/wav"))
    parts = content if isinstance(content, list) else []
    for part in (part for part in parts if isinstance(part, dict)):
        if isinstance(framework, LangChain):
            part["type"] = part["type"].replace("audio/mpeg", "audio/mp3")
        elif part["type"] == RESULT:  # LlamaIndex's messages have no field for the name
            part["name"] = ""
        elif part["type"].startswith("audio/"):  # nor for this
            part.pop("alt", None)
    results = bool(parts) and all(isinstance(part, dict) and part["type"] == RESULT for part in parts)
    return {"speaker": "tool" if results else message["speaker"], "content": content}
