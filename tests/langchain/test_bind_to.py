"""`bind_to`: settings, tools and schema reach the model in every method; call-time arguments override them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import Runnable, RunnableBinding, RunnableLambda, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.tools import tool
from tests.langchain.prompts import Agent, Model, TextModel

from pomlflow import PomlError, ToolError
from pomlflow.langchain import PomlPromptTemplate
from pomlflow.langchain.binding import PomlModel

MARKUP = """\
<poml>
  <runtime temperature="{{heat}}" max-tokens="50" stop-sequences='["END"]'/>
  <tool-definition name="weather" description="In {{place}}">
    {"type": "object", "properties": {"day": {"enum": {{days}} }}, "required": ["day"]}
  </tool-definition>
  <output-schema>
    {"type": "object", "properties": {"{{field}}": {"type": "string"}}, "required": ["{{field}}"]}
  </output-schema>
  <p>Go.</p>
</poml>
"""
OSLO = {"heat": 0.5, "place": "Oslo", "days": ["Mon"], "field": "sky"}
ROME = {"heat": 1, "place": "Rome", "days": ["Tue", "Wed"], "field": "sun"}


def expected_options(given: dict[str, Any]) -> dict[str, Any]:
    """What the model is called with for these variables."""
    field = given["field"]
    schema = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    parameters = {"type": "object", "properties": {"day": {"enum": given["days"]}}, "required": ["day"]}
    function = {"name": "weather", "description": f"In {given['place']}", "parameters": parameters}
    return {
        "temperature": given["heat"],
        "max_tokens": 50,
        "stop": ["END"],
        "tools": [{"type": "function", "function": function}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {**schema, "additionalProperties": False}, "strict": True},
        },
    }


def prompt(markup: str = MARKUP, **options: Any) -> PomlPromptTemplate:
    return PomlPromptTemplate.from_template(markup, **options)


SETTING = '<poml><runtime temperature="0.5"/><p>Go.</p></poml>'
TOOL = '<poml><tool-definition name="weather" description="POML">{"type": "object"}</tool-definition><p>Go.</p></poml>'


async def _ainvoke(chain: Runnable[Any, Any]) -> None:
    await chain.ainvoke(OSLO)


async def _astream(chain: Runnable[Any, Any]) -> None:
    [_ async for _ in chain.astream(OSLO)]


async def _abatch(chain: Runnable[Any, Any]) -> None:
    await chain.abatch([OSLO])


async def _events(chain: Runnable[Any, Any]) -> None:
    [_ async for _ in chain.astream_events(OSLO, version="v2")]


async def _abatch_as_completed(chain: Runnable[Any, Any]) -> None:
    [_ async for _ in chain.abatch_as_completed([OSLO])]


VERBS: dict[str, Callable[[Runnable[Any, Any]], Any]] = {
    "invoke": lambda chain: chain.invoke(OSLO),
    "stream": lambda chain: list(chain.stream(OSLO)),
    "batch": lambda chain: chain.batch([OSLO]),
    "batch_as_completed": lambda chain: list(chain.batch_as_completed([OSLO])),
    "ainvoke": _ainvoke,
    "astream": _astream,
    "abatch": _abatch,
    "abatch_as_completed": _abatch_as_completed,
    "astream_events": _events,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("parser", [False, True], ids=["alone", "with a parser"])
async def test_every_method_passes_the_whole_frame(verb: str, parser: bool) -> None:
    model = Model()
    chain = prompt().bind_to(model)
    done = VERBS[verb](chain | StrOutputParser() if parser else chain)
    if done is not None and hasattr(done, "__await__"):
        await done
    assert model.received == [[HumanMessage("Go.")]]
    assert model.options == [expected_options(OSLO)]


def test_each_call_and_each_item_of_a_batch_has_its_own_frame() -> None:
    model = Model()
    chain = prompt().bind_to(model)
    chain.batch([OSLO, ROME], {"max_concurrency": 1})
    chain.invoke(OSLO)
    assert model.options == [expected_options(OSLO), expected_options(ROME), expected_options(OSLO)]


def test_a_file_with_only_messages_changes_no_argument() -> None:
    model = Model()
    prompt("<p>Go.</p>").bind_to(model).invoke({})
    assert model.options == [{"stop": None}]


def test_a_prompt_of_one_text_passes_its_frame_too() -> None:
    model = Model()
    prompt(SETTING, chat=False).bind_to(model).invoke({})
    assert model.options == [{"stop": None, "temperature": 0.5}]


class CountingStream(Model):
    """A model that streams its answer by letters and counts them."""

    given: list[str] = []  # noqa: RUF012 - pydantic copies it for each model

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        self.options.append({**kwargs, "stop": stop})
        for letter in self.answers[0]:
            self.given.append(letter)
            yield ChatGenerationChunk(message=AIMessageChunk(letter))


def test_streaming_stays_streaming() -> None:
    model = CountingStream(answers=["abc"])
    stream = (prompt().bind_to(model) | StrOutputParser()).stream(OSLO)
    assert next(stream) == "a"
    assert model.given == ["a"]
    assert "".join(stream) == "bc"


async def test_async_streaming_stays_streaming() -> None:
    model = CountingStream(answers=["abc"])
    stream = prompt().bind_to(model).astream(OSLO)
    assert (await anext(stream)).content == "a"
    assert model.given == ["a"]
    assert [chunk.content async for chunk in stream][:2] == ["b", "c"]


BOUND: dict[str, Callable[[Any], Any]] = {
    "bind": lambda chain: chain.bind(temperature=0),
    "twice": lambda chain: chain.bind(temperature=9).bind(temperature=0),
    "with a parser": lambda chain: (chain | StrOutputParser()).bind(temperature=0),
    "then a parser": lambda chain: chain.bind(temperature=0) | StrOutputParser(),
    "after a mapping": lambda chain: {"x": RunnableLambda(len)} | chain.bind(temperature=0),
    "after a sequence": lambda chain: RunnableLambda(dict) | RunnableLambda(dict) | chain.bind(temperature=0),
    "with config": lambda chain: chain.with_config(tags=["x"]).bind(temperature=0),
    "retried": lambda chain: chain.with_retry().bind(temperature=0),
    "with fallbacks": lambda chain: chain.with_fallbacks([chain]).bind(temperature=0),
    "model with fallbacks": lambda chain: chain.bind(temperature=0),
}


@pytest.mark.parametrize("way", BOUND)
async def test_arguments_bound_to_the_chain_override_the_file(way: str) -> None:
    model = Model()
    llm = model.with_fallbacks([model]) if way == "model with fallbacks" else model
    chain = BOUND[way](prompt(SETTING).bind_to(llm))
    chain.invoke({})
    await chain.ainvoke({})
    list(chain.stream({}))
    [_ async for _ in chain.astream({})]
    chain.batch([{}])
    await chain.abatch([{}])
    assert model.options == [{"stop": None, "temperature": 0}] * 6


def test_arguments_of_one_call_override_the_file() -> None:
    model = Model()
    prompt(SETTING).bind_to(model).invoke({}, temperature=0, seed=3)
    assert model.options == [{"stop": None, "temperature": 0, "seed": 3}]


def test_a_setting_given_to_bind_to_is_an_error_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"'temperature'; .*\.bind\(temperature=…\) or the file's <runtime>"):
        prompt(SETTING).bind_to(Model(), temperature=1)


def test_the_frame_overrides_arguments_bound_to_the_model() -> None:
    model = Model()
    prompt(SETTING).bind_to(model.bind(temperature=9, seed=1)).invoke({})
    assert model.options == [{"stop": None, "temperature": 0.5, "seed": 1}]


@tool
def weather(city: str) -> str:
    """LangChain's."""
    return city


@tool
def now() -> str:
    """The time."""
    return "noon"


def test_tools_bound_to_the_model_are_kept_unless_the_file_defines_the_name() -> None:
    model = Agent()
    prompt(TOOL).bind_to(model.bind_tools([weather, now])).invoke({})
    functions = [found["function"] for found in model.options[0]["tools"]]
    assert [(function["name"], function["description"]) for function in functions] == [
        ("now", "The time."),
        ("weather", "POML"),
    ]


def test_the_choice_of_a_tool_goes_through_the_clients_own_bind_tools() -> None:
    model = Model()
    prompt(TOOL.replace("<tool", '<runtime tool-choice="required"/><tool', 1)).bind_to(model).invoke({})
    assert model.options[0]["tool_choice"] == "any"


def test_copies_of_a_chain_behave_as_the_chain() -> None:
    chain = prompt().bind_to(GenericFakeChatModel(messages=iter([])).bind(seed=1)).bind(temperature=0)
    for copied in (pickle.loads(pickle.dumps(prompt().bind_to(Model()).bind(temperature=0))), copy.deepcopy(chain)):
        assert isinstance(copied.bound.last, RunnableBindingBase)  # a PomlModel, or the model's binding around it
        assert copied.kwargs == {"temperature": 0}
    copied = pickle.loads(pickle.dumps(prompt(SETTING).bind_to(Model())))
    copied.invoke({})
    assert copied.last.bound.options == [{"stop": None, "temperature": 0.5}]


@pytest.mark.filterwarnings("ignore:The function `loads?` is in beta")
def test_a_chain_survives_langchains_serialisation() -> None:
    openai = pytest.importorskip("langchain_openai").ChatOpenAI
    chain = prompt(SETTING).bind_to(openai(model="gpt-4o", api_key="none"), parse=True).bind(stop=["x"])
    classes = [PomlPromptTemplate, RunnableBinding, RunnableSequence, PomlModel, openai]
    copied = loads(
        dumps(chain),
        valid_namespaces=["pomlflow", "langchain_openai"],
        secrets_map={"OPENAI_API_KEY": "none"},
        allowed_objects=classes,
    )
    assert (copied.bound.first, copied.kwargs, copied.bound.last.parse) == (chain.bound.first, {"stop": ["x"]}, True)
    assert copied.bound.last.bound.model_name == "gpt-4o"


def test_a_text_model_gets_the_settings_and_refuses_the_rest() -> None:
    assert prompt('<poml><runtime temperature="0.5"/><p>Go.</p></poml>').bind_to(TextModel()).invoke({}) == "the answer"
    with pytest.raises(ToolError, match="TextModel is a text model and takes no tools"):
        prompt(TOOL).bind_to(TextModel()).invoke({})
    with pytest.raises(PomlError, match="takes no <output-schema>"):
        prompt('<poml><output-schema>{"type": "object"}</output-schema><p>Go.</p></poml>').bind_to(TextModel()).invoke(
            {}
        )


def test_a_model_without_tools_is_named() -> None:
    with pytest.raises(ToolError, match="GenericFakeChatModel takes no tools"):
        prompt(TOOL).bind_to(GenericFakeChatModel(messages=iter(["x"]))).invoke({})


def test_binding_to_anything_but_a_model_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="bind_to takes a LangChain model"):
        prompt().bind_to(RunnableLambda(str))


def test_functions_and_tools_that_do_not_match_are_refused_at_the_call() -> None:
    model = Model()
    prompt(TOOL).bind_to(model, tools=[weather]).invoke({})
    prompt(TOOL).bind_to(model, tools={"weather": len}).invoke({})
    with pytest.raises(ToolError, match="no <tool-definition> for the function 'now'"):
        prompt(TOOL).bind_to(model, tools=[weather, now]).invoke({})
    with pytest.raises(ToolError, match="defines 'weather' without a function"):
        prompt(TOOL).bind_to(model, tools=[]).invoke({})
    assert len(model.received) == 2


def test_functions_of_a_file_without_tools_describe_themselves() -> None:
    model = Model()
    prompt("<p>Go.</p>").bind_to(model, tools=[weather]).invoke({})
    assert [given["function"]["name"] for given in model.options[0]["tools"]] == ["weather"]
    with pytest.raises(ToolError, match="TextModel is a text model and takes no tools"):
        prompt("<p>Go.</p>").bind_to(TextModel(), tools=[weather]).invoke({})
    with pytest.raises(TypeError, match="bind_to takes a LangChain model"):
        prompt("<p>Go.</p>").bind_to(5, tools=[weather])  # type: ignore[arg-type]


def test_a_bound_model_takes_other_inputs_unchanged() -> None:
    model = Model()
    step = prompt().bind_to(model).last
    step.invoke("Hi", seed=1)
    assert model.received == [[HumanMessage("Hi")]]
    assert model.options == [{"stop": None, "seed": 1}]
