"""Arguments that the prompts and handlers do not have: an error names what to use instead."""

from __future__ import annotations

from typing import Any

import pytest
from tests.adapters.frameworks import Framework
from tests.templates import HELLO

from pomlflow.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("given", "replacement"),
    [
        ({"template_file": "a.poml"}, r"use PomlPromptTemplate\.from_file\(path\)"),
        ({"speaker_mode": False}, "use chat=True for messages"),
        ({"template_format": "jinja2"}, "POML is the only format"),
        ({"message_templates": []}, "write the messages in the markup"),
    ],
)
def test_an_argument_of_other_prompt_classes_is_an_error(
    framework: Framework, given: dict[str, Any], replacement: str
) -> None:
    for arguments in ((), (HELLO,)):
        with pytest.raises(ConfigurationError, match=f"PomlPromptTemplate has no argument {next(iter(given))}=: "):
            framework.prompts(*arguments, **given)
    with pytest.raises(ConfigurationError, match=replacement):
        framework.prompts.from_template(HELLO, **given)


@pytest.mark.parametrize("framework", ["langchain"], indirect=True)
def test_messages_is_an_error_in_langchain(framework: Framework) -> None:
    with pytest.raises(ConfigurationError, match=r"no argument messages=: .*<human-msg>"):
        framework.prompts(messages=[("human", "Hi")])


@pytest.mark.parametrize("framework", ["llama_index"], indirect=True)
def test_messages_may_be_a_variable_in_llama_index(framework: Framework) -> None:
    assert framework.messages(framework.prompts("<p>{{messages}}</p>", messages="Hi")) == ["Hi"]


def test_register_prompts_of_a_handler_is_an_error(framework: Framework) -> None:
    with pytest.raises(ConfigurationError, match="use register="):
        framework.handler(register_prompts=False)
