"""Agents built from a POML file: its system prompt, examples, tools, settings and schema, in real agents."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

from llama_index.core import Settings
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context
from tests.llama_index.traces import span_named

from pomlflow import ConfigurationError, PomlError, ToolArgumentsError, ToolError
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

RUNTIME = '<runtime temperature="0.2" stop-sequences=\'["END"]\'/>'
TOOL = (
    '<tool-definition name="weather" description="Tells the weather.">{"type": "object", "properties": {"city": '
    '{"type": "string", "minLength": 2}}, "required": ["city"], "additionalProperties": false}</tool-definition>'
)
SCHEMA = (
    '<output-schema>{"type": "object", "title": "report", "properties": {"degrees": {"type": "integer"}}, '
    '"required": ["degrees"]}</output-schema>'
)
SYSTEM = "<system-msg>You tell of the weather, in a {{tone}} tone, and of nothing else.</system-msg>"
SYSTEM_TEXT = "You tell of the weather, in a kind tone, and of nothing else."
EXAMPLES = "<human-msg>Rome?</human-msg><ai-msg>Warm.</ai-msg>"
EXAMPLE_MESSAGES = [ChatMessage(role="user", content="Rome?"), ChatMessage(role="assistant", content="Warm.")]
ASSETS = Path(__file__).parents[1] / "corpus" / "assets"
SETTINGS = {"temperature": 0.2, "stop": ["END"]}


def prompt(*parts: str, **options: Any) -> PomlPromptTemplate:
    return PomlPromptTemplate(f"<poml>{''.join(parts)}</poml>", **options)


def weather(city: str) -> str:
    return f"3 degrees in {city}"


async def run(agent: Any, question: str = "Oslo?") -> Any:
    return await agent.run(question)


def contents(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


async def test_a_function_agent_sends_the_whole_file(scripted: Any, tool_call: Any, renders: Any) -> None:
    llm = scripted(tool_call("weather", city="Oslo"), "Cold.")
    agent = FunctionAgent(
        **prompt(RUNTIME, TOOL, SYSTEM, EXAMPLES).agent_kwargs(llm, tools=[weather], tone="kind"), name="a"
    )
    assert str(await run(agent)) == "Cold."
    assert contents(llm.sent[0]) == [SYSTEM_TEXT, "Rome?", "Warm.", "Oslo?"]
    assert contents(llm.sent[1])[:4] == [SYSTEM_TEXT, "Rome?", "Warm.", "Oslo?"]
    assert llm.sent[1][-1].content == "3 degrees in Oslo"
    assert llm.options == [{**SETTINGS, "tools": ["weather"]}] * 2
    assert len(renders) == 1


async def test_a_react_agent_sends_the_whole_file(scripted: Any) -> None:
    llm = scripted(
        'Thought: I look.\nAction: weather\nAction Input: {"city": "Oslo"}',
        "Thought: I can answer.\nAnswer: Cold.",
        calls_functions=False,
    )
    agent = ReActAgent(**prompt(RUNTIME, TOOL, SYSTEM, EXAMPLES).agent_kwargs(llm, tools=[weather], tone="kind"))
    assert str(await run(agent)) == "Cold."
    system, *rest = llm.sent[0]
    assert SYSTEM_TEXT in system.content
    assert "Tells the weather." in system.content
    assert '"minLength": 2' in system.content
    assert contents(rest) == ["Rome?", "Warm.", "Oslo?"]
    assert llm.options == [SETTINGS] * 2


async def test_two_agents_of_a_workflow_use_their_own_files(scripted: Any, tool_call: Any) -> None:
    llm = scripted(tool_call("handoff", to_agent="b", reason="tired"), "Done.")
    first, second = (
        prompt(f'<runtime temperature="{heat}"/>', f"<p>I am {who}.</p>") for heat, who in [(0, "a"), (1, "b")]
    )
    agents = [
        FunctionAgent(name=name, description=name, **file.agent_kwargs(llm))
        for name, file in (("a", first), ("b", second))
    ]
    assert str(await run(AgentWorkflow(agents, root_agent="a"))) == "Done."
    assert [call[0].content for call in llm.sent] == ["I am a.", "I am b."]
    assert [options["temperature"] for options in llm.options] == [0, 1]


async def test_the_structured_response_matches_the_files_schema(scripted: Any, tool_call: Any) -> None:
    llm = scripted("Three.", tool_call("Report", degrees=3))
    agent = FunctionAgent(**prompt(RUNTIME, SCHEMA, SYSTEM).agent_kwargs(llm, tone="kind"))
    assert (await run(agent)).structured_response == {"degrees": 3}
    assert llm.options[-1] == {**SETTINGS, "tools": ["Report"]}
    llm = scripted("Three.", tool_call("Report", degrees=3))
    agents = [FunctionAgent(name="a", description="a", llm=llm)]
    flow = AgentWorkflow(agents, output_cls=prompt(SCHEMA, SYSTEM).output_cls())
    assert (await run(flow)).structured_response == {"degrees": 3}


async def test_invalid_arguments_are_reported_to_the_model_and_the_function_is_not_called(
    scripted: Any, tool_call: Any
) -> None:
    called: list[str] = []

    def note(city: str) -> None:
        called.append(city)

    llm = scripted(tool_call("weather", city="O", unit="C"), tool_call("weather", city="Oslo"), "Cold.")
    agent = FunctionAgent(**prompt(TOOL, SYSTEM).agent_kwargs(llm, tools={"weather": note}, tone="kind"))
    handler = agent.run("Oslo?")
    results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert str(await handler) == "Cold."
    assert called == ["Oslo"]
    assert [result.tool_output.is_error for result in results] == [True, False]
    assert "'O' is too short" in llm.sent[1][-1].content
    assert "'unit' was unexpected" in llm.sent[1][-1].content


def test_a_refused_call_is_a_tool_arguments_error(scripted: Any) -> None:
    (tool,) = prompt(TOOL, SYSTEM).agent_kwargs(scripted(), tools=[weather], tone="kind")["tools"]
    with pytest.raises(ToolArgumentsError) as caught:
        tool.call(city="O")
    assert (caught.value.tool, caught.value.arguments) == ("weather", {"city": "O"})


def test_tools_and_functions_must_match(scripted: Any) -> None:
    with pytest.raises(ToolError, match="<inline> defines 'weather' without a function"):
        prompt(TOOL, SYSTEM).agent_kwargs(scripted(), tone="kind")
    with pytest.raises(ToolError, match="has no <tool-definition> for the function 'weather'"):
        prompt(TOOL.replace("weather", "rain"), SYSTEM).agent_kwargs(
            scripted(), tools={"rain": weather, "weather": weather}, tone="kind"
        )


def test_a_function_whose_tool_depends_on_a_variable_may_be_without_it(scripted: Any) -> None:
    file = prompt(TOOL.replace("<tool-definition", '<tool-definition if="admin"'), SYSTEM)
    for admin in (True, False):
        made = file.agent_kwargs(scripted(), tools=[weather], tone="kind", admin=admin)
        assert [tool.metadata.name for tool in made["tools"]] == ["weather"] * admin


def test_functions_describe_themselves_if_the_markup_defines_no_tool(scripted: Any) -> None:
    (tool,) = prompt(SYSTEM).agent_kwargs(scripted(), tools=[weather], tone="kind")["tools"]
    assert (tool.metadata.name, [*tool.metadata.get_parameters_dict()["properties"]]) == ("weather", ["city"])


def test_a_partial_function_has_its_functions_description(scripted: Any) -> None:
    def rain(city: str, unit: str) -> str:
        """Tell the rain."""
        return f"3 {unit} in {city}"

    tools = {"rain": functools.partial(rain, unit="mm")}
    (tool,) = prompt(SYSTEM).agent_kwargs(scripted(), tools=tools, tone="kind")["tools"]
    assert tool.metadata.description.splitlines()[1:] == ["Tell the rain."]
    assert tool(city="Oslo").content == "3 mm in Oslo"


class Weather:
    """A callable object and a bound method."""

    def weather(self, city: str) -> str:
        return f"engine of {city}"

    async def aweather(self, city: str) -> str:
        return f"async of {city}"

    async def in_context(self, ctx: Context, city: str) -> str:
        return f"{type(ctx).__name__} of {city}"

    def __call__(self, city: str) -> str:
        return f"object of {city}"


# LlamaIndex looks at the annotation itself, which `from __future__ import annotations` makes a text.
Weather.in_context.__annotations__["ctx"] = Context


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([weather], "3 degrees in Oslo"),
        ({"weather": Weather().weather}, "engine of Oslo"),
        ({"weather": Weather().aweather}, "async of Oslo"),
        ({"weather": Weather().in_context}, "Context of Oslo"),
        ({"weather": Weather()}, "object of Oslo"),
        ({"weather": lambda city: f"lambda of {city}"}, "lambda of Oslo"),
        ([FunctionTool.from_defaults(weather)], "3 degrees in Oslo"),
        ([FunctionTool.from_defaults(Weather().aweather, name="weather")], "async of Oslo"),
        (
            {"weather": FunctionTool.from_defaults(lambda city, unit: city + unit, partial_params={"unit": "C"})},
            "OsloC",
        ),
    ],
    ids="function method async context object lambda tool async-tool partial".split(),
)
async def test_a_tool_may_be_whatever_llama_index_calls(
    scripted: Any, tool_call: Any, given: Any, expected: str
) -> None:
    llm = scripted(tool_call("weather", city="Oslo"), "Cold.")
    await run(FunctionAgent(**prompt(TOOL, SYSTEM).agent_kwargs(llm, tools=given, tone="kind")))
    assert llm.sent[1][-1].content == expected


async def test_a_tool_of_llama_index_keeps_its_behaviour(scripted: Any, tool_call: Any, index: Any) -> None:
    """It returns its answer directly; a query engine is called; the model receives the file's description."""
    llm = scripted(tool_call("weather", city="Oslo"), "never")
    direct = FunctionTool.from_defaults(weather, return_direct=True)
    agent = FunctionAgent(**prompt(TOOL, SYSTEM).agent_kwargs(llm, tools=[direct], tone="kind"))
    assert str(await run(agent)) == "3 degrees in Oslo"
    assert agent.tools[0].metadata.description == "Tells the weather."

    ask = (
        '<tool-definition name="ask" description="Asks the book.">{"type": "object", "properties": {"input": '
        '{"type": "string"}}, "required": ["input"]}</tool-definition>'
    )
    llm = scripted(tool_call("ask", input="Oslo?"), "Cold.")
    engine = index.as_query_engine(llm=scripted("From the book."))
    tool = QueryEngineTool.from_defaults(engine, name="ask", description="of the engine")
    await run(FunctionAgent(**prompt(ask, SYSTEM).agent_kwargs(llm, tools=[tool], tone="kind")))
    assert llm.sent[1][-1].content == "From the book."


async def test_one_text_is_the_system_prompt(scripted: Any) -> None:
    llm = scripted("Fine.")
    agent = FunctionAgent(**prompt("<role>You are {{who}}.</role>").agent_kwargs(llm, who="Ada"))
    await run(agent)
    assert contents(llm.sent[0]) == ["# Role\n\nYou are Ada.", "Oslo?"]


async def test_the_callers_arguments_override_the_file_and_the_model_is_not_changed(scripted: Any) -> None:
    llm = scripted("Fine.")
    Settings.llm = llm
    await run(FunctionAgent(**prompt(RUNTIME, SYSTEM).agent_kwargs(llm_kwargs={"temperature": 1}, tone="kind")))
    assert llm.options[0]["temperature"] == 1
    llm.chat(EXAMPLE_MESSAGES)
    assert llm.options[-1] == {}


def test_a_tool_that_must_be_called_is_the_agents_first(scripted: Any) -> None:
    made = prompt('<runtime tool-choice="weather"/>', TOOL, SYSTEM).agent_kwargs(
        scripted(), tools=[weather], tone="kind"
    )
    assert FunctionAgent(**made).initial_tool_choice == "weather"


def test_the_bound_model_calls_functions_like_its_delegate_and_can_be_copied(scripted: Any) -> None:
    file = prompt('<runtime max-tokens="2"/>', SYSTEM, EXAMPLES)
    model = file.agent_kwargs(MockLLM(), tone="kind")["llm"]
    assert isinstance(model, LLM)
    assert isinstance(model, FunctionCallingLLM) is isinstance(MockLLM(), FunctionCallingLLM)
    assert isinstance(file.agent_kwargs(scripted(), tone="kind")["llm"], FunctionCallingLLM)
    for one in (model, pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
        assert one.complete("x").text == "text text"
        assert one.chat([ChatMessage("Oslo?")]).message.content == "text text"
        assert one.metadata.num_output == 2


def test_a_system_prompt_cannot_hold_an_image(scripted: Any) -> None:
    image = f'<img src="{ASSETS.as_posix()}/box.png" syntax="multimedia"/>'
    with pytest.raises(PomlError, match="an agent's system prompt is a text, which cannot hold its image"):
        prompt(f"<system-msg>See {image}</system-msg>").agent_kwargs(scripted())


def test_output_cls_without_a_schema_is_an_error(scripted: Any) -> None:
    with pytest.raises(ConfigurationError, match="has no <output-schema>"):
        prompt(SYSTEM).output_cls()


def test_a_trace_shows_the_files_settings_and_the_tools_description(traced: Any, scripted: Any, tool_call: Any) -> None:
    llm = scripted(tool_call("weather", city="Oslo"), "Cold.")
    file = prompt(RUNTIME, TOOL, SYSTEM, EXAMPLES)
    agent = FunctionAgent(**file.agent_kwargs(llm, tools=[weather], tone="kind"))
    with PomlCallbackHandler():
        (trace,) = traced(lambda: asyncio.run(run(agent)))
    calls = [span.inputs["kwargs"] for span in trace.data.spans if span.name == "ScriptedLLM.astream_chat"]
    assert calls == [{**SETTINGS, "tools": ["weather"]}] * 2
    assert span_named(trace, "FunctionTool.acall").attributes["description"] == "Tells the weather."
