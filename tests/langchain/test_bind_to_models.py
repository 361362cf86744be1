"""Models that LangChain wraps (fallbacks, retries, alternatives): the frame reaches each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from tests.langchain.prompts import Model

from pomlflow.langchain import PomlPromptTemplate

SETTING = '<poml><runtime temperature="0.5"/><p>Go.</p></poml>'
TOOL = '<poml><tool-definition name="weather" description="POML">{"type": "object"}</tool-definition><p>Go.</p></poml>'

WHOLE = """\
<poml>
  <runtime temperature="0.5" max-tokens="50"/>
  <tool-definition name="weather">{"type": "object"}</tool-definition>
  <output-schema>{"type": "object", "properties": {}}</output-schema>
  <p>Go.</p>
</poml>
"""


def prompt(markup: str) -> PomlPromptTemplate:
    return PomlPromptTemplate.from_template(markup)


@tool
def now() -> str:
    """The time."""
    return "noon"


class Failing(Model):
    """A model that records its arguments and fails."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        super()._generate(messages, *args, **kwargs)
        raise RuntimeError("out of order")


def test_googles_older_client_gets_its_settings_by_their_names() -> None:
    """It ignores all other arguments, ``generation_config`` among them."""
    model = type("ChatVertexAI", (Model,), {"__module__": "langchain_google_vertexai.chat_models"})()
    prompt('<runtime temperature="0.5" max-tokens="50" top-k="3"/><p>Go.</p>').bind_to(model).invoke({})
    assert model.options == [{"stop": None, "temperature": 0.5, "max_output_tokens": 50, "top_k": 3}]


def test_fallbacks_get_the_frame_too() -> None:
    first, second = Failing(), Model()
    chain = prompt(SETTING).bind_to(first.with_fallbacks([second]))
    assert chain.invoke({}).content == "the answer"
    assert first.options == second.options == [{"stop": None, "temperature": 0.5}]


def test_the_frame_overrides_arguments_bound_around_fallbacks() -> None:
    first, second = Failing(), Model()
    prompt(SETTING).bind_to(first.with_fallbacks([second]).bind(temperature=9, seed=1)).invoke({})
    assert first.options == second.options == [{"stop": None, "temperature": 0.5, "seed": 1}]


def test_a_retried_model_gets_the_frame_each_time() -> None:
    model = Failing()
    again = {"stop_after_attempt": 3, "wait_exponential_jitter": False}
    for llm in (
        model.with_retry(**again),
        model.bind(seed=1).with_retry(**again),
        model.with_retry(**again).bind(seed=1),
    ):
        model.options.clear()
        with pytest.raises(RuntimeError):
            prompt(SETTING).bind_to(llm).invoke({})
        assert [options["temperature"] for options in model.options] == [0.5] * 3
        assert llm.__class__.__name__ != "RunnableBinding" or model.options[0]["seed"] == 1


def test_a_chain_that_begins_with_a_model_gets_the_frame() -> None:
    model = Model()
    assert prompt(SETTING).bind_to(model | StrOutputParser()).invoke({}) == "the answer"
    assert model.options == [{"stop": None, "temperature": 0.5}]


def test_a_model_with_configurable_fields_stays_configurable() -> None:
    model = Model().configurable_fields(answers=ConfigurableField(id="answers"))
    chain = prompt(SETTING).bind_to(model.bind(seed=1))
    assert chain.invoke({}, {"configurable": {"answers": ["other"]}}).content == "other"
    assert chain.with_config(configurable={"answers": ["bound"]}).invoke({}).content == "bound"


def test_each_alternative_of_a_model_gets_its_own_parameters() -> None:
    first, second, third = Model(), Model(), Model()
    llm = first.configurable_alternatives(
        ConfigurableField(id="llm"), default_key="first", second=second, third=third.with_fallbacks([first])
    )
    chain = prompt(SETTING).bind_to(llm)
    for key in ("first", "second", "third"):
        chain.invoke({}, {"configurable": {"llm": key}})
    assert first.options == second.options == third.options == [{"stop": None, "temperature": 0.5}]


def sail(port: str) -> str:
    """Sail there."""
    return port


def test_functions_that_describe_themselves_change_nothing_else_that_is_bound() -> None:
    model = Model()
    for llm in (
        model.bind(seed=1).with_config(tags=["x"]),
        model.bind_tools([now], seed=1),
        model.bind(seed=1).with_retry(stop_after_attempt=2),
        Failing().with_fallbacks([model]).bind(seed=1),
        Failing().configurable_alternatives(ConfigurableField(id="llm"), second=model).bind(seed=1),
    ):
        chain = prompt("<p>Go.</p>").bind_to(llm, tools=[sail])
        chain.invoke({}, {"configurable": {"llm": "second"}})
    assert [options["seed"] for options in model.options] == [1] * 5
    assert [[tool_name(found) for found in options["tools"]] for options in model.options] == [
        ["sail"],
        ["now", "sail"],
        ["sail"],
        ["sail"],
        ["sail"],
    ]


def tool_name(found: Any) -> str:
    """The name of a tool, LangChain's or in OpenAI's format."""
    return found["function"]["name"] if isinstance(found, dict) else found.name


def test_functions_that_describe_themselves_keep_tags() -> None:
    seen: list[list[str]] = []

    class Tags(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, tags: list[str] | None = None, **__: Any) -> None:
            seen.append(tags or [])

    llm = Model().bind(seed=1).with_config(tags=["x"])
    prompt("<p>Go.</p>").bind_to(llm, tools=[sail]).invoke({}, {"callbacks": [Tags()]})
    assert "x" in seen[0]


def request_of_a_configurable_model(bind: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the request of a chain that `bind` makes of a model that ``init_chat_model`` chooses at each call."""
    chat_models = pytest.importorskip("langchain.chat_models")
    pytest.importorskip("langchain_openai")
    from tests.model_server import model_server

    with model_server() as server:
        llm = chat_models.init_chat_model(
            configurable_fields="any", base_url=f"{server.url}/v1", api_key="none", max_retries=0
        )
        bind(llm).invoke({}, {"configurable": {"model": "gpt-4o", "model_provider": "openai"}})
    (body,) = server.bodies
    return body


def test_a_model_that_init_chat_model_chooses_at_each_call_gets_the_frame() -> None:
    body = request_of_a_configurable_model(lambda llm: prompt(WHOLE).bind_to(llm.bind_tools([now])))
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("gpt-4o", 0.5, 50)
    assert [found["function"]["name"] for found in body["tools"]] == ["now", "weather"]
    assert all(found["function"]["strict"] for found in body["tools"])


def test_a_configurable_model_takes_functions_that_describe_themselves() -> None:
    body = request_of_a_configurable_model(
        lambda llm: prompt("<p>Go.</p>").bind_to(llm.bind_tools([now]), tools=[sail])
    )
    assert [tool_name(found) for found in body["tools"]] == ["now", "sail"]
