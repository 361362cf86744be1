"""An agent that is a POML file: each call of its model renders prompt, examples, tools, settings and schema."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from tests.langchain.agents import (
    ADA,
    MARKUP,
    QUESTION,
    SCHEMA,
    PomlMiddleware,
    agents,
    middlewares,
    poml_agent,
    prompt,
    tool_call,
    weather,
)
from tests.langchain.prompts import Agent

from pomlflow import ConfigurationError, SettingError
from pomlflow.langchain import PomlOutputParserError, PomlPromptTemplate


def test_prompt_examples_tools_and_settings_are_rendered_for_each_call() -> None:
    model = Agent(answers=[tool_call(city="Oslo"), "It rains."])
    state = poml_agent(model).invoke(QUESTION)
    assert [message.content for message in state["messages"]] == ["Oslo?", "", "Rain in Oslo for 1", "It rains."]
    first, second = model.received
    examples = [HumanMessage("Example?"), AIMessage("Yes.")]
    assert first[:3] == [SystemMessage("You serve the Ada. 1 so far."), *examples]
    assert second[:3] == [SystemMessage("You serve the Ada. 3 so far."), *examples]
    assert [message.content for message in first[3:]] == ["Oslo?"]
    assert [type(message) for message in second[3:]] == [HumanMessage, AIMessage, ToolMessage]
    for options in model.options:
        assert (options["temperature"], options["stop"]) == (0.5, ["END"])
        (function,) = (found["function"] for found in options["tools"])
        assert function["description"] == "At the Ada"
        assert function["parameters"]["properties"]["days"] == {"type": "integer", "maximum": 7}


async def test_an_async_agent_does_the_same_with_an_async_function() -> None:
    async def aweather(city: str, days: int = 1) -> str:
        return f"Async rain in {city}"

    model = Agent(answers=[tool_call(city="Oslo"), "It rains."])
    state = await poml_agent(model, tools={"weather": aweather}).ainvoke(QUESTION)
    assert state["messages"][2].content == "Async rain in Oslo"
    assert model.received[1][0] == SystemMessage("You serve the Ada. 3 so far.")


@dataclass
class Ship:
    """A runtime context."""

    ship: str


class Voyage(agents.AgentState):
    """A state of the user's own."""

    ship: str


def test_variables_come_from_the_context_and_the_state() -> None:
    model = Agent(answers=["Aye."])
    by_context = poml_agent(model, variables=None, context_schema=Ship)
    by_context.invoke(QUESTION, context=Ship("the Bob"))
    by_state = poml_agent(model, variables=None, state_schema=Voyage)
    by_state.invoke({**QUESTION, "ship": "the Cyd"})
    assert [messages[0].content for messages in model.received] == [
        "You serve the Bob. 1 so far.",
        "You serve the Cyd. 1 so far.",
    ]


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(KeyError, match="ship"):
        poml_agent(Agent(), variables=None).invoke(QUESTION)


PLACED = """\
<poml>
  <system-msg>Be kind.</system-msg>
  <conversation messages="{{messages.slice(-2)}}"/>
  <human-msg>Answer in one word.</human-msg>
</poml>
"""


def test_a_file_that_places_the_conversation_itself_is_all_that_the_model_gets() -> None:
    model = Agent()
    given = {"messages": [HumanMessage("One", id="1"), AIMessage("Two", id="2"), HumanMessage("Three", id="3")]}
    poml_agent(model, markup=PLACED, tools=()).invoke(given)
    (messages,) = model.received
    assert [message.content for message in messages] == ["Be kind.", "Two", "Three", "Answer in one word."]
    assert messages[2].id == "3"


def test_the_agents_own_system_prompt_and_that_of_other_middleware_are_kept() -> None:
    class Before(middlewares.AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(messages=[*request.messages, HumanMessage("Added.")]))

    model = Agent()
    poml = PomlMiddleware(prompt(), tools=[weather], **ADA)
    agent = agents.create_agent(model, middleware=[Before(), poml], system_prompt="Own.")
    agent.invoke(QUESTION)
    (messages,) = model.received
    assert messages[0].content == "You serve the Ada. 2 so far.\n\nOwn."
    assert messages[-1].content == "Added."


def test_settings_of_other_middleware_override_the_file() -> None:
    class Before(middlewares.AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model_settings={"temperature": 0}, tool_choice="auto"))

    model = Agent()
    poml = PomlMiddleware(prompt(), tools=[weather], **ADA)
    agents.create_agent(model, middleware=[Before(), poml]).invoke(QUESTION)
    assert (model.options[0]["temperature"], model.options[0]["stop"]) == (0, ["END"])


def test_a_picture_in_the_system_prompt_stays_a_picture() -> None:
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    model = Agent()
    markup = f"<poml><system-msg>See <img base64='{dot}' type='image/png' syntax='multimedia'/></system-msg></poml>"
    poml_agent(model, markup=markup, tools=(), system_prompt="Own.").invoke(QUESTION)
    assert [block["type"] for block in model.received[0][0].content] == ["text", "image", "text"]


def test_a_model_that_another_middleware_selects_gets_its_own_parameters() -> None:
    """OpenAI has no top_k: the file is refused there, and the fallback is called."""
    openai, anthropic = pytest.importorskip("langchain_openai"), pytest.importorskip("langchain_anthropic")
    from tests.model_server import model_server

    with model_server() as server:
        first = openai.ChatOpenAI(model="gpt-4o", base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        second = anthropic.ChatAnthropic(model="claude", base_url=server.url, api_key="none", max_retries=0)
        markup = '<poml><runtime top-k="5" stop="END"/><system-msg>Be kind.</system-msg></poml>'
        poml = PomlMiddleware(prompt(markup))
        agents.create_agent(first, middleware=[middlewares.ModelFallbackMiddleware(second), poml]).invoke(QUESTION)
    assert server.paths == ["/v1/messages"]
    assert (server.bodies[0]["top_k"], server.bodies[0]["stop_sequences"]) == (5, ["END"])


def test_only_variables_of_the_file_are_passed_to_the_render() -> None:
    """An agent's state may hold megabytes, and data that must not be stored in a trace."""
    seen = []

    class Watched(PomlPromptTemplate):
        def invoke(self, given: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(set(given))
            return super().invoke(given, *args, **kwargs)

    poml = PomlMiddleware(Watched("<system-msg>You serve {{ship}}.</system-msg>"))
    agent = agents.create_agent(Agent(), middleware=[poml], state_schema=Voyage)
    agent.invoke({**QUESTION, "ship": "the Ada"})
    assert seen == [{"ship"}]


def test_the_middleware_takes_poml_prompts_only() -> None:
    assert PomlMiddleware(PomlPromptTemplate("<p>Hi</p>"), tools=None).tools == []
    with pytest.raises(ConfigurationError, match="takes a PomlPromptTemplate, not a str"):
        PomlMiddleware("<p>Hi</p>")


def test_the_output_schema_is_the_response_format_and_its_object_is_in_the_state() -> None:
    model = Agent(answers=[tool_call(city="Oslo"), '{"n": 1}'])
    state = poml_agent(model, markup=MARKUP.replace("</poml>", f"{SCHEMA}</poml>")).invoke(QUESTION)
    assert state["structured_response"] == {"n": 1}
    sent = model.options[1]["response_format"]["json_schema"]
    assert sent["name"] == "answer"
    assert sent["schema"]["properties"] == {"n": {"type": "integer"}}


def test_an_object_against_the_schema_is_an_error_that_holds_the_answer() -> None:
    with pytest.raises(PomlOutputParserError, match=r"\$\.n: 'x' is not of type 'integer'") as caught:
        poml_agent(Agent(answers=['{"n": "x"}']), markup=f"<poml><p>Hi</p>{SCHEMA}</poml>", tools=()).invoke(QUESTION)
    assert caught.value.answer == '{"n": "x"}'


def test_a_response_format_of_the_agents_own_overrides_the_schema() -> None:
    own = {"title": "Own", "type": "object", "properties": {"m": {"type": "integer"}}}
    strategy = pytest.importorskip("langchain.agents.structured_output").ProviderStrategy(own)
    model = Agent(answers=['{"m": 1}'])
    agent = poml_agent(model, markup=f"<poml><p>Hi</p>{SCHEMA}</poml>", tools=(), response_format=strategy)
    assert agent.invoke(QUESTION)["structured_response"] == {"m": 1}
    assert model.options[0]["response_format"]["json_schema"]["schema"] == own


def test_a_setting_that_the_model_lacks_is_named() -> None:
    anthropic = pytest.importorskip("langchain_anthropic").ChatAnthropic(model="claude", api_key="none")
    markup = '<poml><runtime seed="1"/><p>Hi</p></poml>'
    with pytest.raises(SettingError, match="crew: Anthropic does not support the <runtime> setting seed"):
        poml_agent(anthropic, markup=markup, tools=()).invoke(QUESTION)


def test_the_prompt_is_not_in_the_checkpoint_and_a_thread_can_be_resumed() -> None:
    memory = pytest.importorskip("langgraph.checkpoint.memory").InMemorySaver()
    model = Agent(answers=["One.", "Two."])
    agent = poml_agent(model, checkpointer=memory)
    config = {"configurable": {"thread_id": "1"}}
    agent.invoke(QUESTION, config)
    agent.invoke({"messages": [HumanMessage("More?")]}, config)
    kept: list[AnyMessage] = agent.get_state(config).values["messages"]
    assert [message.content for message in kept] == ["Oslo?", "One.", "More?", "Two."]
    assert model.received[1][0].content == "You serve the Ada. 3 so far."


async def test_tokens_are_streamed_as_they_come() -> None:
    class Streaming(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self.bind(**kwargs)

    for streamed in ("sync", "async"):
        agent = poml_agent(Streaming(messages=iter([AIMessage("It rains today.")])))
        if streamed == "sync":
            chunks = [chunk for chunk, _ in agent.stream(QUESTION, stream_mode="messages")]
        else:
            chunks = [chunk async for chunk, _ in agent.astream(QUESTION, stream_mode="messages")]
        texts = [chunk.content for chunk in chunks if chunk.content]
        assert texts[:5] == ["It", " ", "rains", " ", "today."]


def test_two_poml_files_may_make_one_agent() -> None:
    model = Agent()
    more = PomlMiddleware(PomlPromptTemplate.from_template("<system-msg>Be brief.</system-msg>", name="brief"))
    poml_agent(model, more).invoke(QUESTION)
    assert model.received[0][0].content == "Be brief.\n\nYou serve the Ada. 1 so far."


def test_openais_client_and_the_function_each_get_their_own_form() -> None:
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI
    from tests.model_server import Call, model_server

    with model_server() as server:
        server.answers[:] = [[Call("weather", {"city": "Oslo", "days": None})], '{"n": 1}']
        model = ChatOpenAI(model="gpt-4o", base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        state = poml_agent(model, markup=MARKUP.replace("</poml>", f"{SCHEMA}</poml>")).invoke(QUESTION)
    assert state["messages"][2].content == "Rain in Oslo for 1", "a null of strict mode reached the function"
    assert state["structured_response"] == {"n": 1}
    first, second = server.bodies
    assert (first["temperature"], first["stop"]) == (0.5, ["END"])
    (function,) = (found["function"] for found in first["tools"])
    assert function["strict"] is True
    assert function["parameters"]["required"] == ["city", "days"]
    assert first["response_format"]["json_schema"]["name"] == "answer"
    assert json.loads(second["messages"][-2]["tool_calls"][0]["function"]["arguments"]) == {
        "city": "Oslo",
        "days": None,
    }


def test_without_langchain_the_middleware_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import pomlflow.langchain

    for name in [name for name in sys.modules if name == "langchain" or name.startswith("langchain.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pomlflow.langchain.middleware")
    monkeypatch.setitem(sys.modules, "langchain", None)
    with pytest.raises(ImportError, match=r"pip install 'langchain>=1\.3'"):
        _ = pomlflow.langchain.PomlMiddleware
