"""Arguments that do not exist: an error names the replacement, or the argument that was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pomlflow
from pomlflow.exceptions import ConfigurationError

HELLO = "<p>Hello {{name}}</p>"
FRAMEWORKS = pytest.mark.parametrize("framework", ["langchain", "llama_index"])


def adapter(framework: str) -> Any:
    pytest.importorskip({"langchain": "langchain_core", "llama_index": "llama_index.core"}[framework])
    return import_module(f"pomlflow.{framework}")


@FRAMEWORKS
@pytest.mark.parametrize(
    ("given", "replacement"),
    [
        ({"template_file": "a.poml"}, r"use PomlPromptTemplate\.from_file\(path\)"),
        ({"speaker_mode": False}, "use chat=True for messages"),
        ({"template_format": "jinja2"}, "POML is the only format"),
        ({"message_templates": []}, "write the messages in the markup"),
    ],
)
def test_an_argument_of_another_template_names_ours(framework: str, given: dict[str, Any], replacement: str) -> None:
    template = adapter(framework).PomlPromptTemplate
    for arguments in ((), (HELLO,)):
        with pytest.raises(ConfigurationError, match=f"PomlPromptTemplate has no argument {next(iter(given))}=: "):
            template(*arguments, **given)
    with pytest.raises(ConfigurationError, match=replacement):
        template.from_template(HELLO, **given)


def test_langchains_messages_are_written_in_the_markup() -> None:
    with pytest.raises(ConfigurationError, match=r"no argument messages=: .*<human-msg>"):
        adapter("langchain").PomlPromptTemplate(messages=[("human", "Hi")])


def test_a_variable_may_be_called_messages_in_llama_index() -> None:
    prompt = adapter("llama_index").PomlPromptTemplate("<p>{{messages}}</p>", messages="Hi")
    assert prompt.format_messages()[0].content == "Hi"


def test_autolog_names_register_for_register_prompts() -> None:
    with pytest.raises(ConfigurationError, match=r"register_prompts was removed in pomlflow 0\.2: use register="):
        pomlflow.autolog(register_prompts=False)


@FRAMEWORKS
def test_register_prompts_is_register_in_handlers(framework: str) -> None:
    with pytest.raises(ConfigurationError, match="use register="):
        adapter(framework).PomlCallbackHandler(register_prompts=False)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: pomlflow.autolog(registr=False), "'registr'; did you mean 'register'"),
        (lambda: pomlflow.configure(timout=1), "'timout'; did you mean 'timeout'"),
        (lambda: pomlflow.render(HELLO, nam="a"), "'nam'; did you mean 'name'"),
        (
            lambda: pomlflow.render(Path("a"), zzz=1),
            "'zzz'; pass a variable in a mapping, .*: {\"zzz\": …}$",
        ),
        (lambda: pomlflow.configure(**dict.fromkeys("hgfedcba")), "'a'$"),  # the first of several, always
    ],
)
def test_a_misspelled_argument_names_the_one_that_was_meant(call: Callable[[], Any], meant: str) -> None:
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument {meant}"):
        call()
