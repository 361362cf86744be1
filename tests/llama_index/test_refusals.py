"""A model that refuses is a `PomlRefusalError` with its text: in bound models, structured answers and agents."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.model_server import ModelServer, Refusal

pytest.importorskip("llama_index.core")

from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import PrivateAttr
from tests.llama_index.conftest import ScriptedLLM

from pomlflow import AnswerError
from pomlflow.llama_index import PomlPromptTemplate, PomlRefusalError

SCHEMA = (
    '<output-schema>{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}</output-schema>'
)
COUNT = PomlPromptTemplate(f"<poml><p>{{{{q}}}}</p>{SCHEMA}</poml>", name="count")
REFUSED = "count: the model refused"


class Responding(ScriptedLLM):
    """Answers with the same responses each time: the last one, or all of them in a stream."""

    _responses: list[ChatResponse] = PrivateAttr(default_factory=list)

    @classmethod
    def with_responses(cls, *responses: ChatResponse) -> Responding:
        made = cls()
        made._responses = list(responses)
        return made

    def _each(self) -> Iterator[ChatResponse]:
        yield from self._responses

    @llm_chat_callback()
    def chat(self, messages: Any, **_: Any) -> ChatResponse:
        return self._responses[-1]

    @llm_chat_callback()
    async def achat(self, messages: Any, **_: Any) -> ChatResponse:
        return self._responses[-1]

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **_: Any) -> Iterator[ChatResponse]:
        return self._each()

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **_: Any) -> AsyncIterator[ChatResponse]:
        async def pieces() -> AsyncIterator[ChatResponse]:
            for piece in self._each():
                yield piece

        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        last = self._responses[-1]
        return CompletionResponse(
            text=last.message.content or "", raw=last.raw, additional_kwargs=last.additional_kwargs
        )


def response(text: str | None = None, **fields: Any) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role="assistant", content=text), delta=text or "", **fields)


def chunk(**delta: Any) -> ChatResponse:
    return response(raw={"choices": [{"delta": delta, "finish_reason": None}]})


class Sdk:
    """An object of a provider's SDK."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


REFUSING = {"type": "refusal", "refusal": "I won't."}
OUTPUT = [{"type": "reasoning", "content": None}, {"type": "message", "content": [REFUSING]}]
STREAMED = {"type": "response.completed", "response": {"output": OUTPUT}}

# The responses of a stream, the last of which is also that of a call, and the refusal's text.
REFUSALS: dict[str, tuple[list[ChatResponse], str]] = {
    "openai": ([response(raw={"choices": [{"message": {"refusal": "I won't."}}]})], "I won't."),
    "openai-object": ([response(raw=Sdk(choices=[Sdk(message=Sdk(refusal="I won't."))]))], "I won't."),
    "openai-kwargs": ([response(additional_kwargs={"refusal": "I won't."})], "I won't."),
    "openai-filter": ([response("So", raw={"choices": [{"finish_reason": "content_filter"}]})], "So"),
    "responses": ([response(raw={"output": OUTPUT})], "I won't."),
    "responses-object": ([response(raw=Sdk(output=[Sdk(content=[Sdk(**REFUSING)])]))], "I won't."),
    "responses-filter": ([response(raw={"incomplete_details": {"reason": "content_filter"}})], ""),
    "responses-event": ([response(raw={"type": "response.refusal.delta"}), response(raw=STREAMED)], "I won't."),
    "anthropic": ([response("Well.", raw={"stop_reason": "refusal"})], "Well."),
    "anthropic-why": ([response(raw={"stop_reason": "refusal", "stop_details": {"explanation": "No."}})], "No."),
    "anthropic-event": ([response("Well."), response("Well.", raw={"delta": {"stop_reason": "refusal"}})], "Well."),
    "gemini": ([response(raw={"finish_reason": 3, "block_reason": "OTHER"})], "OTHER"),
    "vertex": ([response(raw={"finish_reason": "FinishReason.PROHIBITED_CONTENT", "finish_message": "No."})], "No."),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_each_call_raises_the_refusal_with_its_text(kind: str) -> None:
    responses, text = REFUSALS[kind]
    bound = COUNT.bind_to(Responding.with_responses(*responses))
    calls: list[Callable[[], Any]] = [
        lambda: bound.chat(q="?"),
        lambda: bound.predict(q="?"),
        lambda: bound.structured_predict(q="?"),
        lambda: list(bound.stream_chat(q="?")),
        lambda: list(bound.stream(q="?")),
        lambda: list(bound.stream_structured_predict(q="?")),
    ]
    for call in calls:
        with pytest.raises(PomlRefusalError, match=REFUSED) as caught:
            call()
        assert caught.value.answer == text
    for start in (bound.achat, bound.apredict, bound.astructured_predict):
        with pytest.raises(PomlRefusalError, match=REFUSED):
            await start(q="?")
    for open_stream in (bound.astream_chat, bound.astream, bound.astream_structured_predict):
        with pytest.raises(PomlRefusalError, match=REFUSED):
            [piece async for piece in await open_stream(q="?")]
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, AnswerError)
    assert (str(again), again.answer) == (str(caught.value), text)


@pytest.mark.parametrize("agent", [FunctionAgent, ReActAgent])
@pytest.mark.parametrize("kind", ["openai", "responses-event", "anthropic-event"])
async def test_an_agents_run_raises_the_refusal(kind: str, agent: Any) -> None:
    responses, text = REFUSALS[kind]
    prompt = PomlPromptTemplate("<system-msg>Be kind.</system-msg>", name="count")
    with pytest.raises(PomlRefusalError, match=REFUSED) as caught:
        await agent(**prompt.agent_kwargs(Responding.with_responses(*responses))).run("?")
    assert caught.value.answer == text


def test_the_pieces_of_a_streamed_refusal_are_joined() -> None:
    pieces = [chunk(role="assistant", refusal="I "), chunk(refusal="won't."), chunk()]
    stream = COUNT.bind_to(Responding.with_responses(*pieces)).stream_chat(q="?")
    assert [next(stream) for _ in pieces] == pieces
    with pytest.raises(PomlRefusalError, match=r"count: the model refused: I won't\."):
        next(stream)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"choices": []},
        {"choices": [{"message": {"refusal": None}, "finish_reason": "stop"}], "output": {"message": {"content": []}}},
        {"finish_reason": "STOP", "prompt_feedback": {"block_reason": 0}},
        {"stop_reason": "end_turn", "delta": None, "incomplete_details": None},
    ],
)
def test_an_answer_is_no_refusal(raw: Any) -> None:
    bound = COUNT.bind_to(Responding.with_responses(response('{"n": 1}', raw=raw)))
    assert bound.structured_predict(q="?").n == 1
    assert list(bound.stream_structured_predict(q="?"))[-1].n == 1


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_real_clients_refuse_with_the_text(server: ModelServer, provider: str) -> None:
    server.answers[:] = [Refusal("I cannot help with that.")]
    if provider == "openai":
        llms = pytest.importorskip("llama_index.llms.openai")
        llm = llms.OpenAI(model="gpt-4o", api_base=f"{server.url}/v1", api_key="none", max_retries=0)
    else:
        llms = pytest.importorskip("llama_index.llms.anthropic")
        llm = llms.Anthropic(model="claude-sonnet-4-5", base_url=server.url, api_key="none", max_retries=0)
    bound = COUNT.bind_to(llm)
    for call in (bound.structured_predict, lambda **given: list(bound.stream_chat(**given))):
        with pytest.raises(PomlRefusalError, match=r"count: the model refused: I cannot help with that\."):
            call(q="?")
