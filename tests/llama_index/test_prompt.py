"""The prompt class: formatting as in LlamaIndex's own classes, errors, files and copies."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.events.llm import LLMPredictStartEvent
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, PromptType, RichPromptTemplate
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.prompts.prompt_utils import get_empty_prompt_txt
from llama_index.core.types import BaseOutputParser

from pomlflow.exceptions import MissingVariableError
from pomlflow.llama_index import PomlPromptTemplate
from pomlflow.tracking.constructors import PromptConstructors

HELLO = "<p>hello {{text}} {{foo}}</p>"
CHAT = "<system-msg>System {{sys_param}}</system-msg><human-msg>hello {{text}} {{foo}}</human-msg>"


class Instruct(BaseOutputParser):
    """Adds a line, as LlamaIndex's parsers add a format."""

    def parse(self, output: str) -> Any:
        return output

    def format(self, query: str) -> str:
        return f"{query}\nAs JSON."

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instruct)

    __hash__ = None


# Formatting, as LlamaIndex's own prompts do it.


def test_the_method_resolution_order_and_overridden_methods() -> None:
    """Each method that LlamaIndex calls is ours or shared by both bases; a new one must be reviewed."""
    assert [cls for cls in PomlPromptTemplate.__mro__ if cls.__module__.startswith(("pomlflow", "llama_index"))] == [
        PomlPromptTemplate,
        PromptConstructors,
        RichPromptTemplate,
        PromptTemplate,
        BasePromptTemplate,
    ]
    theirs = {
        name
        for base in (RichPromptTemplate, PromptTemplate)
        for name, value in vars(base).items()
        if not name.startswith(("_", "model_")) and (callable(value) or isinstance(value, property))
    }
    assert theirs == {"is_chat_template", "partial_format", "format", "format_messages", "get_template"}
    assert all(name in vars(PomlPromptTemplate) for name in theirs)
    shared = {"_map_template_vars", "_map_function_vars", "_map_all_vars"}
    assert all(getattr(PomlPromptTemplate, name) is getattr(BasePromptTemplate, name) for name in shared)
    assert set(BasePromptTemplate.model_fields) == {
        "metadata",
        "template_vars",
        "kwargs",
        "output_parser",
        "template_var_mappings",
        "function_mappings",
    }


def test_partial_values_are_merged_with_later_ones(prompt_factory) -> None:
    prompt = prompt_factory(HELLO, "hello {{ text }} {{ foo }}")
    partly = prompt.partial_format(foo="bar")
    assert type(partly) is type(prompt)
    assert partly.format(text="world") == "hello world bar"
    assert partly.format_messages(text="world") == [ChatMessage(content="hello world bar", role="user")]
    assert (prompt.kwargs, partly.kwargs) == ({}, {"foo": "bar"})
    assert PomlPromptTemplate(HELLO, foo="bar").format(text="world") == "hello world bar"


def test_a_later_value_overrides() -> None:
    assert PomlPromptTemplate(HELLO, foo="bar").format(text="world", foo="baz") == "hello world baz"


def test_an_output_parser_formats_the_text_or_a_message() -> None:
    """A single text gets the parser's suffix; of several messages the system message."""
    assert PomlPromptTemplate(HELLO, output_parser=Instruct()).format(text="a", foo="b") == "hello a b\nAs JSON."
    variables = {"text": "a", "foo": "b", "sys_param": "c"}
    messages = PomlPromptTemplate(CHAT, output_parser=Instruct()).format_messages(**variables)
    assert [message.content for message in messages] == ["System c\nAs JSON.", "hello a b"]
    reference = ChatPromptTemplate.from_messages([("system", "System {sys_param}"), ("user", "hello {text} {foo}")])
    assert PomlPromptTemplate(CHAT).format(**variables) == reference.format(**variables)
    reference.output_parser = Instruct()
    assert messages == reference.format_messages(**variables)
    with_parser = PomlPromptTemplate(CHAT, output_parser=Instruct())
    assert with_parser.format(messages_to_prompt=lambda m: m[0].content, **variables) == "System c\nAs JSON."


def test_variables_have_other_names_in_the_markup() -> None:
    """LlamaIndex's names are mapped, given at once or partly."""
    prompt = PomlPromptTemplate(
        "<p>{{foo}}: {{bar}}</p>", template_var_mappings={"context_str": "foo", "query_str": "bar"}
    )
    reference = PromptTemplate("{foo}: {bar}", template_var_mappings={"context_str": "foo", "query_str": "bar"})
    variables = {"query_str": "abc", "context_str": "def\n  g"}
    assert prompt.format(**variables) == reference.format(**variables) == "def\n  g: abc"
    assert prompt.partial_format(query_str="x").format(context_str="y") == "y: x"
    assert prompt.template_vars == reference.template_vars


def test_function_mappings_return_values() -> None:
    """A function receives all variables, by LlamaIndex's names, and overrides a given value."""
    both = {"abc": lambda **given: f"{given['abc']}-{given['xyz']}"}
    assert PomlPromptTemplate("<p>{{abc}} {{xyz}}</p>", function_mappings=both).format(abc="1", xyz="2") == "1-2 2"
    partly = PomlPromptTemplate("<p>{{abc}} {{xyz}}</p>", function_mappings=both).partial_format(xyz="2")
    assert partly.format(abc="3") == "3-2 2"
    alone = PomlPromptTemplate("<p>{{abc}} {{xyz}}</p>", function_mappings={"abc": lambda **given: given["xyz"] * 2})
    assert alone.format(xyz="4") == "44 4"
    with pytest.raises(KeyError):
        alone.format(abc="1")
    mapped = PomlPromptTemplate(
        "<p>{{abc}} {{xyz}}</p>",
        template_var_mappings={"one": "abc", "two": "xyz"},
        function_mappings={"one": lambda **given: f"{given['one']}!"},
    )
    assert mapped.format(one="1", two="2") == "1! 2"


def test_json_and_braces_need_no_escape() -> None:
    """Neither in values nor in the text of a file with a stylesheet."""
    prompt = PomlPromptTemplate('<poml><p>{{x}} is #lbrace;"a": 1#rbrace;</p></poml>', stylesheet={"p": {}})
    assert prompt.template_vars == ["x"]
    assert prompt.format(x='{x} {{y}} {"b": 2}') == '{x} {{y}} {"b": 2} is {"a": 1}'


def test_the_callers_metadata_is_not_changed() -> None:
    given = {"team": "rag", "prompt_type": "theirs"}
    first = PomlPromptTemplate(HELLO, metadata=given)
    second = PomlPromptTemplate(HELLO, metadata=given, prompt_type="custom_two")
    assert given == {"team": "rag", "prompt_type": "theirs"}
    assert first.metadata == {"team": "rag", "prompt_type": PromptType.CUSTOM, "poml": HELLO}
    assert second.metadata["prompt_type"] == "custom_two"
    first.partial_format(text="x").metadata["more"] = 1
    assert "more" not in first.metadata
    assert PomlPromptTemplate(HELLO).metadata == {"prompt_type": PromptType.CUSTOM, "poml": HELLO}


def test_with_chat_off_a_prompt_returns_one_text() -> None:
    """It has one text, even if the markup has messages."""
    prompt = PomlPromptTemplate("<p>Hi {{name}}</p>", chat=False)
    assert prompt.format(name="Ada") == "Hi Ada"
    assert prompt.format_messages(name="Ada") == [ChatMessage(role="user", content="Hi Ada")]
    assert not prompt.is_chat_template
    assert not PomlPromptTemplate(HELLO).is_chat_template
    assert PomlPromptTemplate(CHAT).is_chat_template
    assert PomlPromptTemplate("<HumanMessage>hi</HumanMessage>").is_chat_template
    assert not PomlPromptTemplate(CHAT, chat=False).is_chat_template


async def test_aformat_messages_gives_the_same_messages(renders) -> None:
    prompt = PomlPromptTemplate(HELLO, output_parser=Instruct())
    assert await prompt.aformat_messages(text="a\nb", foo="c") == prompt.format_messages(text="a\nb", foo="c")
    assert len(renders) == 2


# Errors.


def test_missing_variables_are_named(renders) -> None:
    """The error is a KeyError, and the failed render is dispatched too."""
    with pytest.raises(MissingVariableError, match=r"needs the variable foo; given: text") as caught:
        PomlPromptTemplate(HELLO).format(text="a")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(MissingVariableError):
        PomlPromptTemplate(HELLO).format_messages()
    assert [type(event.record.error) for event in renders] == [MissingVariableError] * 2


def test_a_text_without_values_keeps_the_variables_in_braces() -> None:
    """As PromptTemplate does it, where a component formats a prompt before it has them."""
    assert PomlPromptTemplate(HELLO).format() == PromptTemplate("hello {text} {foo}").format() == "hello {text} {foo}"
    assert PomlPromptTemplate(HELLO, foo="bar").format() == "hello {text} bar"
    assert PomlPromptTemplate("<p>hello</p>").format() == "hello"


# Files.


def test_a_changed_file_is_followed(tmp_path: Path) -> None:
    """Its text, its variables and what LlamaIndex reads of them."""
    file = tmp_path / "a.poml"
    file.write_text("<p>{{a}}</p>")
    prompt = PomlPromptTemplate.from_file(file, name="mine")
    assert (prompt.source, prompt.template_vars, prompt.path) == ("<p>{{a}}</p>", ["a"], str(file))
    text = prompt.get_template()
    file.write_text("<p>new {{b}}</p>")
    os.utime(file, ns=(1, 1))
    assert prompt.format(b="x") == "new x"
    assert text + "!" == "new {b}!"  # never the old markup, which a model would get
    assert (prompt.source, prompt.get_template(), prompt.template_vars) == (*["<p>new {{b}}</p>"] * 2, ["b"])


# Copies.


PROMPTS = {
    "plain": lambda: PomlPromptTemplate(HELLO),
    "all": lambda: PomlPromptTemplate(
        HELLO,
        name="n",
        base_dir=str(Path(__file__).parent),
        stylesheet={"p": {"x": 1}},
        chat=False,
        register=True,
        output_parser=Instruct(),
        metadata={"a": 1},
        template_var_mappings={"x": "text"},
        function_mappings={"foo": str},
        text="t",
    ),
}


@pytest.mark.parametrize("make", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda prompt: pickle.loads(pickle.dumps(prompt)), lambda p: p.partial_format()]
)
def test_copies_are_equal_and_work(make, again) -> None:
    prompt = make()
    other = again(prompt)
    assert other == prompt == make()
    assert (other.source, other.template_vars, other.register_prompt) == (
        prompt.source,
        prompt.template_vars,
        prompt.register_prompt,
    )
    assert get_empty_prompt_txt(other) == get_empty_prompt_txt(prompt)
    other.kwargs["text"] = "changed"
    changed = other.partial_format(foo="b", text="a")
    assert changed != prompt


def test_the_prompts_texts_survive_copies() -> None:
    """Workflows keep them in a context that may be copied."""
    for text in (PomlPromptTemplate(HELLO).get_template(), PomlPromptTemplate(HELLO).template):
        for other in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
            assert other == text
            assert other.format(text="a", foo="b") == "hello a b"
            assert other + "!" == "hello {text} {foo}!"


def test_prompts_that_differ_are_not_equal() -> None:
    same = PomlPromptTemplate(HELLO, name="a")
    for other in (
        PomlPromptTemplate(CHAT, name="a"),
        PomlPromptTemplate(HELLO, name="b"),
        PomlPromptTemplate(HELLO, name="a", text="x"),
        PomlPromptTemplate(HELLO, name="a", metadata={"x": 1}),
        PomlPromptTemplate(HELLO, name="a", register=False),
        RichPromptTemplate("hello"),
    ):
        assert other != same


def test_a_deep_copy_shares_the_immutable_template() -> None:
    """get_prompts copies deeply at each call; the template itself is not read and measured again."""
    prompt = PomlPromptTemplate(HELLO, metadata={"a": [1]})
    other = copy.deepcopy(prompt)
    assert other._core is prompt._core  # noqa: SLF001 - what is shared
    assert other.metadata["a"] is not prompt.metadata["a"]


def test_events_of_the_handler_can_be_serialised() -> None:
    """LlamaIndex's events hold prompts, and handlers dump them."""
    event = LLMPredictStartEvent(template=PomlPromptTemplate(HELLO, name="n"), template_args={"text": "a"})
    dumped = json.loads(event.model_dump_json())["template"]
    assert (dumped["template_str"], dumped["template_vars"], dumped["name"]) == (HELLO, ["text", "foo"], "n")
