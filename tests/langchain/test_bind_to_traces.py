"""Traces of `bind_to`: no additional span, and the settings on the model's span."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from mlflow.entities import Trace
from tests.langchain.trees import CHAIN, GIVEN, model, tree

from pomlflow.langchain import PomlCallbackHandler, PomlPromptTemplate

MARKUP = """\
<poml>
  <runtime temperature="0.5" max-tokens="50"/>
  <output-schema>{"type": "object", "properties": {}}</output-schema>
  <task>Greet {{name}}.</task>
</poml>
"""
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda chain, config: chain.invoke(GIVEN, config),
    "stream": lambda chain, config: list(chain.stream(GIVEN, config)),
    "batch": lambda chain, config: chain.batch([GIVEN], config),
    "ainvoke": lambda chain, config: asyncio.run(chain.ainvoke(GIVEN, config)),
}


def prompt(markup: str = MARKUP) -> PomlPromptTemplate:
    return PomlPromptTemplate.from_template(markup, name="greet")


@pytest.mark.parametrize("call", CALLS)
def test_the_tree_is_that_of_prompt_and_model_and_the_settings_are_on_the_models_span(
    call: str, stored_traces: Callable[[], list[Trace]]
) -> None:
    config = {"callbacks": [PomlCallbackHandler()]}
    CALLS[call](prompt().bind_to(model()) | StrOutputParser(), config)
    # LangChain nests a model right under its fallbacks where something is bound to it, and else as their sibling.
    bound = model().bind(seed=1)
    for llm in (bound.with_retry(), bound.with_fallbacks([model()])):
        CALLS[call](prompt() | llm | StrOutputParser(), config)
        CALLS[call](prompt().bind_to(llm) | StrOutputParser(), config)
    traces = stored_traces()
    plain, *pairs = (tree(trace) for trace in traces)
    assert plain == CHAIN
    assert pairs[::2] == pairs[1::2]
    for trace in (traces[0], *traces[2::2]):
        (span,) = (span for span in trace.data.spans if span.span_type == "CHAT_MODEL")
        settings = span.attributes["invocation_params"]
        assert (settings["temperature"], settings["max_tokens"]) == (0.5, 50)
        assert settings["response_format"]["json_schema"]["name"] == "answer"


def test_a_parsed_answer_is_no_span_of_its_own(stored_traces: Callable[[], list[Trace]]) -> None:
    from langchain_core.language_models import FakeListChatModel

    llm = FakeListChatModel(responses=["{}"])
    assert prompt().bind_to(llm, parse=True).invoke(GIVEN, {"callbacks": [PomlCallbackHandler()]}) == {}
    (trace,) = stored_traces()
    assert tree(trace) == CHAIN.replace("  StrOutputParser CHAIN\n", "")
    (root,) = (span for span in trace.data.spans if span.parent_id is None)
    assert root.outputs == {}


def test_a_setting_that_is_refused_is_the_error_of_the_chain(stored_traces: Callable[[], list[Trace]]) -> None:
    pytest.importorskip("langchain_anthropic")
    from langchain_anthropic import ChatAnthropic

    from pomlflow import SettingError

    chain = prompt('<poml><runtime seed="1"/><p>{{name}}</p></poml>').bind_to(
        ChatAnthropic(model="claude", api_key="none")
    )
    with pytest.raises(SettingError, match="greet: Anthropic does not support the <runtime> setting seed"):
        chain.invoke(GIVEN, {"callbacks": [PomlCallbackHandler()]})
    (trace,) = stored_traces()
    assert tree(trace).startswith("RunnableSequence CHAIN ERROR\n")
