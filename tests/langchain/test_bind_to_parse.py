"""`bind_to(llm, parse=True)` returns the object of an answer; an error has the answer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda, RunnableSequence
from tests.langchain.prompts import Model

from pomlflow import AnswerError, PomlError
from pomlflow.langchain import PomlOutputParserError, PomlPromptTemplate, PomlRefusalError

SCHEMA = '{"type": "object", "properties": {"{{field}}": {"type": "integer"}}, "required": ["{{field}}"]}'
PROMPT = PomlPromptTemplate.from_template(
    f"<poml><output-schema>{SCHEMA}</output-schema><p>Count.</p></poml>", name="count"
)
N = {"field": "n"}


def chain(*answers: Any) -> RunnableSequence:
    return PROMPT.bind_to(Model(answers=list(answers)), parse=True)


async def test_every_method_returns_the_object() -> None:
    counting = chain('{"n": 1}')
    assert counting.invoke(N) == {"n": 1}
    assert await counting.ainvoke(N) == {"n": 1}
    assert counting.batch([N, N]) == [{"n": 1}] * 2
    assert await counting.abatch([N]) == [{"n": 1}]
    assert (counting | RunnableLambda(lambda found: found["n"] + 1)).invoke(N) == 2


def test_each_call_is_read_by_its_own_schema() -> None:
    counting = chain('{"n": 1}', '{"m": 2}')
    assert [counting.invoke({"field": field}) for field in ("n", "m")] == [{"n": 1}, {"m": 2}]


async def test_a_stream_yields_the_object_as_it_grows() -> None:
    text = '{"n": 12, "more": [1, 2]}'
    counting = PROMPT.bind_to(FakeListChatModel(responses=[text]), parse=True)
    given = list(counting.stream(N))
    assert given[0] == {}
    assert {"n": 1} in given
    assert {"n": 12, "more": [1]} in given
    assert given[-1] == {"n": 12, "more": [1, 2]}
    assert [found async for found in counting.astream(N)] == given


def test_a_fenced_answer_is_read() -> None:
    counting = PROMPT.bind_to(GenericFakeChatModel(messages=iter(['```json\n{"n": 1}\n```'])), parse=True)
    assert list(counting.stream(N))[-1] == {"n": 1}


@pytest.mark.parametrize(
    ("answer", "message", "held"),
    [
        ("Sorry.", r"count: the answer is not the JSON", "Sorry."),
        ('{"n": "x"}', r"\$\.n: 'x' is not of type 'integer'", '{"n": "x"}'),
        (AIMessage("", additional_kwargs={"refusal": "I won't."}), r"the model refused: I won't\.", "I won't."),
        (
            AIMessage("Wait.", tool_calls=[{"id": "1", "name": "look", "args": {}}]),
            r"called look instead of answering",
            "Wait.",
        ),
    ],
)
def test_an_answer_without_such_an_object_is_an_error_that_holds_it(answer: Any, message: str, held: str) -> None:
    with pytest.raises(PomlOutputParserError, match=message) as caught:
        chain(answer).invoke(N)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert isinstance(error, AnswerError | OutputParserException)
        assert (error.answer, error.llm_output) == (held, held)
        assert error.message.text == held or error.message.additional_kwargs["refusal"] == held
    with pytest.raises(PomlOutputParserError, match=message):
        list(chain(answer).stream(N))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (AIMessage("", additional_kwargs={"refusal": "I won't."}), "I won't."),
        (AIMessage([{"type": "refusal", "refusal": "I won't."}]), "I won't."),
        (AIMessage([{"type": "non_standard", "value": {"type": "refusal", "refusal": "I won't."}}]), "I won't."),
        (AIMessage("I won't.", response_metadata={"stop_reason": "refusal"}), "I won't."),
        (AIMessage("", response_metadata={"stop_reason": "refusal", "stop_details": {"explanation": "No."}}), "No."),
        (AIMessage("", response_metadata={"stop_reason": "refusal"}), ""),
        (AIMessage("", response_metadata={"finish_reason": "SAFETY"}), "SAFETY"),
        (AIMessage("", response_metadata={"finish_reason": "PROHIBITED_CONTENT", "finish_message": "No."}), "No."),
        (AIMessage("", response_metadata={"prompt_feedback": {"block_reason": "OTHER"}}), "OTHER"),
        (AIMessage('{"n": ', response_metadata={"finish_reason": "content_filter"}), '{"n": '),
    ],
)
async def test_a_refusal_is_an_error_with_its_text(answer: AIMessage, text: str) -> None:
    """It is an error of LangChain's own class too, where that exists, so that fallbacks for that class work."""
    with pytest.raises(PomlRefusalError, match="count: the model refused") as caught:
        chain(answer).invoke(N)
    with pytest.raises(PomlRefusalError):
        await chain(answer).ainvoke(N)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert error.answer == text
        assert error.message.response_metadata == error.raw_message.response_metadata == answer.response_metadata
        assert text in str(error)
        assert isinstance(error, OutputParserException)
        assert isinstance(error, getattr(exceptions, "ModelRefusalError", PomlOutputParserError))
    falling_back = chain(answer).with_fallbacks([chain('{"n": 1}')], exceptions_to_handle=(PomlRefusalError,))
    assert falling_back.invoke(N) == {"n": 1}


@pytest.mark.parametrize("metadata", [{"finish_reason": "STOP", "prompt_feedback": {"block_reason": 0}}, {}])
def test_an_answer_that_was_not_withheld_is_parsed(metadata: dict[str, Any]) -> None:
    assert chain(AIMessage('{"n": 1}', response_metadata=metadata)).invoke(N) == {"n": 1}


def test_a_stream_that_ends_invalid_yields_the_valid_part_first() -> None:
    stream = PROMPT.bind_to(FakeListChatModel(responses=['{"n": 1']), parse=True).stream(N)
    assert [next(stream), next(stream)] == [{}, {"n": 1}]
    with pytest.raises(PomlOutputParserError, match="is not the JSON"):
        next(stream)


def test_a_stream_without_chunks_is_no_answer() -> None:
    """LangChain's own models raise an error for one; a model with a stream method of its own may not."""

    class Silent(FakeListChatModel):
        def stream(self, *_: Any, **__: Any) -> Any:
            yield from ()

    with pytest.raises(PomlOutputParserError, match="is not the JSON"):
        list(PROMPT.bind_to(Silent(responses=[]), parse=True).stream(N))


def test_a_wrong_answer_can_be_retried() -> None:
    model = Model(answers=["Sorry.", '{"n": 1}'])
    counting = PROMPT.bind_to(model, parse=True)
    trying = counting.with_retry(retry_if_exception_type=(OutputParserException,), wait_exponential_jitter=False)
    assert trying.invoke(N) == {"n": 1}
    assert len(model.received) == 2


def test_a_file_without_a_schema_is_an_error_before_the_call() -> None:
    model = Model()
    with pytest.raises(PomlError, match="plain has no <output-schema>"):
        PomlPromptTemplate.from_template("<p>Go.</p>", name="plain").bind_to(model, parse=True).invoke({})
    assert not model.received
