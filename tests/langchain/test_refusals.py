"""A refusal of each provider's real client is a `PomlRefusalError` with its text, so that fallbacks work."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.messages import AIMessage
from tests.langchain.agents import SCHEMA, agents, middlewares, poml_agent, tool_call
from tests.langchain.prompts import Agent, Model
from tests.langchain.wire_clients import client_of
from tests.model_server import ModelServer, Raw

from pomlflow.langchain import PomlMiddleware, PomlPromptTemplate, PomlRefusalError

structured_output = pytest.importorskip("langchain.agents.structured_output")

MARKUP = f"<poml><p>Count.</p>{SCHEMA}</poml>"
QUESTION = {"messages": [("user", "Count.")]}
REFUSED = AIMessage("", additional_kwargs={"refusal": "I won't."})
# By LangChain's own class where langchain-core has it.
REFUSAL = getattr(exceptions, "ModelRefusalError", PomlRefusalError)

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": None, "refusal": "I won't."}, "finish_reason": "stop"}
COMPLETION = {"id": "1", "created": 1, "model": "m", "object": "chat.completion", "choices": [CHOICE], "usage": USAGE}
CHUNK = {"id": "1", "created": 1, "model": "m", "object": "chat.completion.chunk"}
CHUNKS = [
    {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "refusal": "I "}, "finish_reason": None}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {"refusal": "won't."}, "finish_reason": None}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
OUTPUT = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "refusal", "refusal": "I won't."}],
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "m",
    "output": [OUTPUT],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
PART = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
RESPONSE_EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": []}},
    {"type": "response.output_item.added", "output_index": 0, "item": {**OUTPUT, "content": []}},
    {"type": "response.content_part.added", **PART, "part": {"type": "refusal", "refusal": ""}},
    {"type": "response.refusal.delta", **PART, "delta": "I won't."},
    {"type": "response.refusal.done", **PART, "refusal": "I won't."},
    {"type": "response.content_part.done", **PART, "part": OUTPUT["content"][0]},
    {"type": "response.output_item.done", "output_index": 0, "item": OUTPUT},
    {"type": "response.completed", "response": RESPONSE},
]
RESPONSE_EVENTS = [{**event, "sequence_number": number} for number, event in enumerate(RESPONSE_EVENTS)]
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "I won't."}],
    "stop_reason": "refusal",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
MESSAGE_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I won't."}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "refusal", "stop_sequence": None},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]
WITHHELD = {"candidates": [{"content": {"role": "model", "parts": []}, "index": 0, "finishReason": "SAFETY"}]}
BLOCKED = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}

# Of each provider: its client, the response, the events of a stream, and the text of the refusal.
PROVIDERS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]], str]] = {
    "OpenAI": ("ChatOpenAI", COMPLETION, CHUNKS, "I won't."),
    "OpenAI's Responses": ("ChatOpenAI", RESPONSE, RESPONSE_EVENTS, "I won't."),
    "Anthropic": ("ChatAnthropic", MESSAGE, MESSAGE_EVENTS, "I won't."),
    "Google, the answer": ("ChatGoogleGenerativeAI", WITHHELD, [WITHHELD], "SAFETY"),
    "Google, the prompt": ("ChatGoogleGenerativeAI", BLOCKED, [BLOCKED], "PROHIBITED_CONTENT"),
}


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(provider: str, server: ModelServer) -> Any:
    model = client_of(PROVIDERS[provider][0], server.url)
    if model is None:
        pytest.skip("the provider's package is missing")
    return model.model_copy(update={"use_responses_api": True}) if "Responses" in provider else model


def counting(model: Any) -> Any:
    return PomlPromptTemplate.from_template(MARKUP, name="count").bind_to(model, parse=True)


def test_a_chain_raises_the_refusal_of_its_provider(provider: str, client: Any, server: ModelServer) -> None:
    _, response, _, text = PROVIDERS[provider]
    server.answers[:] = [Raw([response])]
    with pytest.raises(PomlRefusalError, match="count: the model refused") as caught:
        counting(client).invoke({})
    assert caught.value.answer == text
    falling_back = counting(client).with_fallbacks(
        [counting(Model(answers=['{"n": 1}']))], exceptions_to_handle=(REFUSAL,)
    )
    assert falling_back.invoke({}) == {"n": 1}
    inside = counting(client.with_fallbacks([Model(answers=['{"n": 1}'])], exceptions_to_handle=(REFUSAL,)))
    assert inside.invoke({}) == {"n": 1}


def test_a_stream_raises_the_refusal_of_its_provider(provider: str, client: Any, server: ModelServer) -> None:
    _, _, events, text = PROVIDERS[provider]
    server.answers[:] = [Raw(events)]
    with pytest.raises(PomlRefusalError, match="count: the model refused") as caught:
        list(counting(client).stream({}))
    assert caught.value.answer == text


def test_an_agent_raises_the_refusal_of_its_provider(provider: str, client: Any, server: ModelServer) -> None:
    _, response, _, text = PROVIDERS[provider]
    server.answers[:] = [Raw([response])]
    with pytest.raises(PomlRefusalError, match="crew: the model refused") as caught:
        poml_agent(client, markup=MARKUP, tools=()).invoke(QUESTION)
    assert caught.value.answer == text
    assert isinstance(caught.value.message, AIMessage)


async def test_a_refusal_to_an_agent_falls_back_to_another_model() -> None:
    poml = PomlMiddleware(PomlPromptTemplate.from_template(MARKUP, name="count"))
    fallback = middlewares.ModelFallbackMiddleware(Agent(answers=['{"n": 1}']))
    agent = agents.create_agent(Agent(answers=[REFUSED]), middleware=[fallback, poml])
    assert (await agent.ainvoke(QUESTION))["structured_response"] == {"n": 1}


def test_a_refusal_in_place_of_the_agents_own_response_format_is_one_too() -> None:
    own = {"title": "Own", "type": "object", "properties": {"m": {"type": "integer"}}}
    strategy = structured_output.ProviderStrategy(own)
    with pytest.raises(PomlRefusalError, match=r"crew: the model refused: I won't\."):
        poml_agent(Agent(answers=[REFUSED]), markup="<p>Hi</p>", tools=(), response_format=strategy).invoke(QUESTION)


def test_an_agent_without_a_schema_answers_with_the_refusal() -> None:
    state = poml_agent(Agent(answers=[tool_call(city="Oslo"), REFUSED])).invoke(QUESTION)
    assert state["messages"][-1].additional_kwargs["refusal"] == "I won't."
