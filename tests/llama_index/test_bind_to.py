"""A model bound to a POML prompt: each method renders once and passes on the whole frame."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.types import BaseOutputParser
from pydantic import BaseModel

from pomlflow import AnswerError, ConfigurationError, MissingVariableError, PomlError
from pomlflow.llama_index import PomlPromptTemplate

RUNTIME = '<runtime temperature="0.2" max-tokens="300" stop-sequences=\'["END"]\'/>'
TOOL = (
    '<tool-definition name="weather" description="Tells the weather.">{"type": "object", "properties": {"city": '
    '{"type": "string"}}, "required": ["city"]}</tool-definition>'
)
SCHEMA = (
    '<output-schema>{"type": "object", "title": "report", "properties": {"city": {"type": "string"}, "degrees": '
    '{"type": "integer"}}, "required": ["city", "degrees"], "additionalProperties": false}</output-schema>'
)
TALK = "<system-msg>Be {{tone}}.</system-msg><human-msg>{{q}}</human-msg>"
GIVEN = {"tone": "kind", "q": "Why?"}
MESSAGES = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="Why?")]
SETTINGS = {"temperature": 0.2, "max_tokens": 300, "stop": ["END"]}
ANSWER = '{"city": "Oslo", "degrees": 3}'


def prompt(*parts: str, **options: Any) -> PomlPromptTemplate:
    return PomlPromptTemplate(f"<poml>{''.join(parts)}</poml>", **options)


async def _chat(bound: Any) -> str:
    return bound.chat(**GIVEN).message.content


async def _achat(bound: Any) -> str:
    return (await bound.achat(**GIVEN)).message.content


async def _stream_chat(bound: Any) -> str:
    return "|".join(piece.delta for piece in bound.stream_chat(**GIVEN))


async def _astream_chat(bound: Any) -> str:
    return "|".join([piece.delta async for piece in await bound.astream_chat(**GIVEN)])


async def _predict(bound: Any) -> str:
    return bound.predict(**GIVEN)


async def _apredict(bound: Any) -> str:
    return await bound.apredict(**GIVEN)


async def _stream(bound: Any) -> str:
    return "|".join(bound.stream(**GIVEN))


async def _astream(bound: Any) -> str:
    return "|".join([piece async for piece in await bound.astream(**GIVEN)])


CHATS = [_chat, _achat, _stream_chat, _astream_chat]
PREDICTIONS = [_predict, _apredict, _stream, _astream]


@pytest.mark.parametrize("method", [*CHATS, *PREDICTIONS])
async def test_a_chat_sends_the_whole_frame_of_one_render(method: Any, scripted: Any, renders: Any) -> None:
    llm = scripted("So it is.")
    answer = await method(prompt(RUNTIME, TOOL, TALK).bind_to(llm))
    assert answer == ("So| it| is." if "stream" in method.__name__ else "So it is.")
    assert llm.sent == [MESSAGES]
    assert llm.options == [{**SETTINGS, "tools": ["weather"]}]
    assert len(renders) == 1
    assert renders[0].span_id.startswith(f"PomlLLM.{method.__name__[1:]}-")


@pytest.mark.parametrize("method", PREDICTIONS)
async def test_a_completion_sends_one_text(method: Any, scripted: Any, renders: Any) -> None:
    llm = scripted("So it is.", chat_model=False)
    answer = await method(prompt(RUNTIME, TALK).bind_to(llm))
    assert answer == ("So| it| is." if "stream" in method.__name__ else "So it is.")
    assert llm.prompts == ["system: Be kind.\nuser: Why?\nassistant: "]
    assert llm.options == [SETTINGS]
    assert len(renders) == 1


def test_a_stream_stays_a_stream(scripted: Any) -> None:
    """The first piece is there before the model has produced the second."""
    answer: list[str] = []

    class Slow(type(scripted())):
        def stream_chat(self, messages: Any, **options: Any) -> Any:
            for piece in ("a", "b"):
                answer.append(piece)
                yield from super().stream_chat(messages, **options)

    stream = prompt(TALK).bind_to(Slow.of("x")).stream_chat(**GIVEN)
    next(stream)
    assert answer == ["a"]


def test_the_callers_arguments_override_the_file_and_the_calls_override_the_bindings(scripted: Any) -> None:
    llm = scripted()
    bound = prompt(RUNTIME, TALK).bind_to(llm, temperature=0.5, seed=7)
    bound.chat(**GIVEN)
    bound.chat(**GIVEN, llm_kwargs={"temperature": 1.0, "max_completion_tokens": 5})
    assert llm.options == [
        {"temperature": 0.5, "max_tokens": 300, "stop": ["END"], "seed": 7},
        {"temperature": 1.0, "stop": ["END"], "seed": 7, "max_completion_tokens": 5},
    ]


def test_parts_that_depend_on_variables_differ_with_each_call(scripted: Any) -> None:
    llm = scripted()
    bound = prompt("<runtime temperature='{{heat}}'/>", "<p>{{q}}</p>").bind_to(llm)
    for heat in (0.1, 0.9):
        bound.chat(heat=heat, q="Why?")
    assert [options["temperature"] for options in llm.options] == [0.1, 0.9]


def test_a_models_fields_are_set_for_one_call_only() -> None:
    """MockLLM reads its field and ignores arguments."""
    llm = MockLLM(max_tokens=2)
    assert prompt('<runtime max-tokens="3"/>', TALK).bind_to(llm).predict(**GIVEN) == "text text text"
    assert prompt('<runtime max-tokens="3"/>', TALK).bind_to(llm, max_tokens=1).predict(**GIVEN) == "text"
    assert llm.max_tokens == 2


class Own(CustomLLM):
    """A user's model class with arguments of its own."""

    temperature: float = 1.0
    seen: list[Any] = []  # noqa: RUF012 - pydantic copies it

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, seed: int = 0) -> CompletionResponse:
        self.seen.append((self.temperature, seed))
        return CompletionResponse(text="Fine.")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, seed: int = 0) -> Any:
        yield self.complete(prompt, formatted, seed=seed)


def test_a_custom_model_receives_the_arguments_of_its_class() -> None:
    llm = Own()
    assert prompt('<runtime random-seed="7"/>', TALK).bind_to(llm).predict(**GIVEN) == "Fine."
    assert llm.seen == [(1.0, 7)]


def test_a_missing_variable_is_an_error_before_the_model_is_called(scripted: Any) -> None:
    llm = scripted()
    with pytest.raises(MissingVariableError, match="tone"):
        prompt(TALK).bind_to(llm).chat(q="Why?")
    assert llm.sent == []


def test_llama_indexs_additions_to_a_prediction_are_applied(scripted: Any) -> None:
    """The model's system prompt and output parser, the prompt's parser, partial variables and mappings."""

    class Parser(BaseOutputParser):
        def parse(self, output: str) -> str:
            return output.upper()

        def format(self, query: str) -> str:
            return f"{query} Shout."

    llm = scripted("yes", system_prompt="House rules.", output_parser=Parser())
    bound = prompt(TALK, template_var_mappings={"question": "q"}).partial_format(tone="kind").bind_to(llm)
    assert bound.predict(question="Why?") == "YES"
    assert [message.content for message in llm.sent[0]] == ["House rules.", "Be kind. Shout.", "Why?"]


# Structured answers.


def test_a_function_calling_model_answers_by_calling_the_schema(scripted: Any, tool_call: Any, renders: Any) -> None:
    llm = scripted(tool_call("Report", city="Oslo", degrees=3))
    answer = prompt(RUNTIME, SCHEMA, TALK).bind_to(llm).structured_predict(**GIVEN)
    assert (answer.city, answer.degrees, answer.model_dump()) == ("Oslo", 3, {"city": "Oslo", "degrees": 3})
    assert llm.options == [{**SETTINGS, "tools": ["Report"]}]
    assert len(renders) == 1


def test_tools_are_called_in_chats_also_with_a_completion_model(scripted: Any, tool_call: Any) -> None:
    """As LlamaIndex's own ``chat_with_tools`` does; its mock model is such a model."""
    llm = scripted(tool_call("Report", city="Oslo", degrees=3), "So.", chat_model=False)
    assert prompt(SCHEMA, TALK).bind_to(llm).structured_predict(**GIVEN).degrees == 3
    assert prompt(TOOL, TALK).bind_to(llm).predict(**GIVEN) == "So."
    assert llm.sent == [MESSAGES, MESSAGES]


def test_instructions_follow_a_conversation_that_does_not_end_with_the_user(scripted: Any) -> None:
    llm = scripted(ANSWER, calls_functions=False)
    prompt(SCHEMA, TALK, "<ai-msg>Because.</ai-msg>").bind_to(llm).structured_predict(**GIVEN)
    assert [message.role for message in llm.sent[0]] == ["system", "user", "assistant", "user"]
    assert llm.sent[0][-1].content.startswith("Here's a JSON schema to follow")


@pytest.mark.parametrize("chat_model", [True, False])
def test_a_model_without_structured_output_receives_instructions(scripted: Any, chat_model: bool) -> None:
    llm = scripted(f"```json\n{ANSWER}\n```", calls_functions=False, chat_model=chat_model)
    bound = prompt(SCHEMA, TALK).bind_to(llm)
    assert bound.structured_predict(**GIVEN).degrees == 3
    bound.predict(**GIVEN)
    for sent in [call[-1].content for call in llm.sent] if chat_model else llm.prompts:
        assert '"degrees": {"type": "integer"}' in sent
        assert "Output a valid JSON object" in sent
        assert sent.count("{{") == 0


async def test_structured_answers_may_be_streamed_or_awaited(scripted: Any) -> None:
    llm = scripted('{"city": "Oslo by the sea", "degrees": 3}', calls_functions=False)
    bound = prompt(SCHEMA, TALK).bind_to(llm)
    assert (await bound.astructured_predict(**GIVEN)).degrees == 3
    grown = [answer.model_dump() for answer in bound.stream_structured_predict(**GIVEN)]
    assert grown[-1] == {"city": "Oslo by the sea", "degrees": 3}
    assert grown[0]["degrees"] is None
    agrown = [answer.model_dump() async for answer in await bound.astream_structured_predict(**GIVEN)]
    assert agrown == grown


def test_an_answer_that_violates_the_schema_is_an_error_that_holds_it(scripted: Any, tool_call: Any) -> None:
    bound = prompt(SCHEMA, TALK).bind_to(scripted(tool_call("Report", city="Oslo", degrees="three"), "I do not know."))
    with pytest.raises(AnswerError, match="'three' is not of type 'integer'") as caught:
        bound.structured_predict(**GIVEN)
    assert caught.value.answer == '{"city": "Oslo", "degrees": "three"}'
    with pytest.raises(AnswerError, match="is not the JSON") as caught:
        bound.structured_predict(**GIVEN)
    assert caught.value.answer == "I do not know."


class City(BaseModel):
    city: str


def test_a_users_class_may_read_the_answer(scripted: Any, tool_call: Any) -> None:
    llm = scripted(tool_call("City", city="Oslo", degrees=3), tool_call("City", city="Oslo"))
    assert prompt(SCHEMA, TALK).bind_to(llm).structured_predict(City, **GIVEN) == City(city="Oslo")
    assert prompt(TALK).bind_to(llm).structured_predict(City, **GIVEN) == City(city="Oslo")
    with pytest.raises(ConfigurationError, match="has no <output-schema>"):
        prompt(TALK).bind_to(llm).structured_predict(**GIVEN)


def test_a_schema_that_describes_no_object_is_an_error(scripted: Any) -> None:
    with pytest.raises(ConfigurationError, match="models answer with objects only"):
        prompt('<output-schema>{"type": "array"}</output-schema>', TALK).bind_to(scripted()).structured_predict(**GIVEN)


def test_a_completion_cannot_hold_an_image(scripted: Any) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    bound = prompt(f'<p><img base64="{pixel}" syntax="multimedia"/></p>').bind_to(scripted(chat_model=False))
    with pytest.raises(PomlError, match="use chat, since a completion is a text, which cannot hold its image"):
        bound.predict()


def test_only_a_model_can_be_bound() -> None:
    with pytest.raises(TypeError, match="takes one of LlamaIndex's LLMs, not a str"):
        prompt(TALK).bind_to("gpt-4o")


def test_a_bound_model_is_copied_and_shown() -> None:
    bound = prompt(TALK, name="talk").bind_to(MockLLM(max_tokens=1), temperature=0.5)
    copied = pickle.loads(pickle.dumps(bound))
    assert copied.predict(**GIVEN) == "text"
    assert (copied.llm_kwargs, repr(copied)) == ({"temperature": 0.5}, "PomlLLM('talk', MockLLM)")
