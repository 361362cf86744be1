"""``validate()`` of both frameworks' prompts, without and with values."""

from __future__ import annotations

import pytest
from tests.adapters.frameworks import Framework

from pomlflow import Finding
from pomlflow.exceptions import MissingVariableError, RenderError


def test_errors_are_raised(framework: Framework) -> None:
    prompt = framework.prompts.from_template
    assert prompt('<p>{{x.y}}</p><conversation messages="{{history}}"/>').validate() == []
    assert prompt('<p>{{history[0]?.content}}</p><conversation messages="{{history}}"/>').validate() == []
    with pytest.raises(RenderError, match="Component foo not found"):
        prompt("<foo>{{x}}</foo>").validate()
    with pytest.raises(RenderError, match="Cannot read"):
        prompt("<p>{{x.y.z}}</p>").validate(x={})
    with pytest.raises(MissingVariableError):
        prompt("<p>{{x}} {{y}}</p>").validate(x=1)


def test_warnings_are_returned(framework: Framework) -> None:
    (finding,) = framework.prompts.from_template("<p>Hello {name}, {{question}}</p>").validate()
    assert isinstance(finding, Finding)
    assert (finding.rule, finding.line, finding.column, finding.file) == ("single-braces", 1, 10, None)
    assert framework.prompts.from_template("<p>{{question}} {x}</p>").validate(question="Why?") != []
