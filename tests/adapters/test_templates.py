"""Making and validating a prompt, which no framework changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.adapters.frameworks import Framework
from tests.templates import HELLO, write

from pomlflow import MissingVariableError, PomlError, TemplateNotFoundError


def test_a_path_is_no_markup_and_markup_is_no_path(framework: Framework) -> None:
    with pytest.raises(TemplateNotFoundError, match="cannot read the template"):
        framework.prompts.from_file(HELLO)
    assert framework.text(framework.prompts.from_template("support/answer.poml")) == "support/answer.poml"
    with pytest.raises(TypeError, match="markup or a path"):
        framework.prompts()


def test_sources_are_relative_to_the_file_or_to_base_dir(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "support" / "note.txt", "a note")
    markup = "<poml><document src='note.txt'/></poml>"
    file = write(tmp_path / "support" / "answer.poml", markup)
    assert framework.text(framework.prompts.from_file(file)) == "a note"
    assert framework.text(framework.prompts.from_template(markup, base_dir="support")) == "a note"
    with pytest.raises(PomlError, match="no such file"):
        framework.text(framework.prompts.from_template(markup))


def test_validate_raises_before_a_render(framework: Framework) -> None:
    prompt = framework.prompts.from_template("<p>{{role}} {{question}}</p>")
    assert prompt.validate(role="a", question="b") == []
    with pytest.raises(MissingVariableError, match="question"):
        prompt.validate(role="a")
    with pytest.raises(PomlError, match="<inline>:1"):
        framework.prompts.from_template("<poml><p>").validate()
