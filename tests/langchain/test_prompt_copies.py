"""Copies of a POML prompt and of its values: pickled, deep, serialised, checkpointed."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableSequence
from pydantic import BaseModel
from tests.langchain.prompts import GIVEN, MARKUP, MESSAGES, poml
from tests.programs import run_program

from pomlflow import PomlError
from pomlflow.langchain import PomlChatPromptValue, PomlPromptTemplate, PomlStringPromptValue

CLASSES = [PomlPromptTemplate, ChatPromptTemplate, RunnableSequence, StrOutputParser, AIMessage]


def loading_options(*classes: type, **options: Any) -> dict[str, Any]:
    return {"valid_namespaces": ["pomlflow"], **options, "allowed_objects": [*CLASSES, *classes]}


OPTIONS = {
    "name": "support",
    "stylesheet": {"p": {"captionStyle": "bold"}},
    "register": True,
    "partial_variables": {"role": "a poet"},
    "metadata": {"a": 1},
    "tags": ["b"],
    "output_parser": StrOutputParser(),
}

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads?` is in beta")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "greet.poml"
    file.write_text(MARKUP, encoding="utf-8")
    return file


def fields(prompt: PomlPromptTemplate) -> dict[str, Any]:
    return prompt.asdict() if hasattr(prompt, "asdict") else prompt.dict()  # langchain-core 1.4


def copies(prompt: PomlPromptTemplate) -> list[PomlPromptTemplate]:
    return [
        pickle.loads(pickle.dumps(prompt)),
        copy.deepcopy(prompt),
        copy.copy(prompt),
        prompt.model_copy(),
        loads(dumps(prompt), **loading_options()),
        load(dumpd(prompt), **loading_options()),
        PomlPromptTemplate(**prompt.__dict__),
    ]


def test_every_copy_is_equal_and_renders_alike(file: Path) -> None:
    for prompt in (
        poml(),
        poml(**OPTIONS),
        PomlPromptTemplate.from_file(file, **OPTIONS),
        PomlPromptTemplate("<p>{{question}} {{role}}</p>", chat=False, base_dir=file.parent),
    ):
        prompt.invoke(GIVEN)  # LangChain has cached its serialised form, and the copies get it
        for one in copies(prompt):
            assert one == prompt
            assert fields(one) == fields(prompt)
            assert one.invoke(GIVEN) == prompt.invoke(GIVEN)
            assert one.partial(role="x").input_variables == prompt.partial(role="x").input_variables


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"stylesheet": {}},
        {"register": False},
        {"chat": False},
        {"base_dir": "/"},
        {"partial_variables": {}},
        {"metadata": None},
        {"tags": None},
        {"output_parser": None},
    ],
    ids=str,
)
def test_prompts_that_differ_are_not_equal(change: dict[str, Any]) -> None:
    assert poml(**OPTIONS) == poml(**OPTIONS)
    assert poml(**OPTIONS) != poml(**{**OPTIONS, **change})
    assert poml() != PomlPromptTemplate(MARKUP + " ")
    assert poml() != MARKUP


def test_a_pickle_travels_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "prompt.pickle").write_bytes(pickle.dumps(poml(**OPTIONS)))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).invoke({'question': 'Why?'}).to_string())"
    done = run_program(code, str(tmp_path / "prompt.pickle"), folder=tmp_path)
    assert done.stdout == "System: You are a poet.\nHuman: Why?\n", done.stderr


def test_a_prompt_of_a_file_is_loaded_where_the_file_is_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pickle holds the file's content, and one warning is logged."""
    prompt = PomlPromptTemplate.from_file(file)
    text, pickled = dumps(prompt), pickle.dumps(prompt)
    file.unlink()
    for revive in (lambda: loads(text, **loading_options()), lambda: pickle.loads(pickled)):
        revived = revive()
        assert revived.invoke(GIVEN).to_messages() == MESSAGES
        assert revived.invoke(GIVEN).to_messages() == MESSAGES
    assert [record.name for record in caplog.records] == ["pomlflow"]
    assert "its last content stays" in caplog.text


def test_loads_follows_the_file_where_it_is(file: Path) -> None:
    text = dumps(PomlPromptTemplate.from_file(file))
    file.write_text("<p>New {{question}}</p>", encoding="utf-8")
    assert loads(text, **loading_options()).input_variables == ["question"]


def test_loads_needs_the_class_and_the_namespace() -> None:
    """LangChain revives nothing that it does not know and that is not named."""
    text = dumps(poml())
    for options in ({"allowed_objects": "all"}, {"allowed_objects": [PomlPromptTemplate]}):
        with pytest.raises(ValueError, match=r"not allowed|Invalid namespace"):
            loads(text, **options)


def test_chains_and_templates_with_a_prompt_are_serialised(file: Path) -> None:
    prompt = PomlPromptTemplate.from_file(file)
    chain = prompt.partial(role="a poet", history=[AIMessage("x")]) | StrOutputParser()
    revived = loads(dumps(chain), **loading_options())
    assert revived.first == chain.first
    outer = ChatPromptTemplate([prompt, ("human", "{more}")])
    assert loads(dumps(outer), **loading_options(type(outer[1]), type(outer[1].prompt))) == outer


def test_a_field_without_json_form_is_serialised_as_not_implemented() -> None:
    serialised = dumpd(poml(partial_variables={"role": lambda: "a poet"}))
    assert serialised["kwargs"]["partial_variables"]["role"]["type"] == "not_implemented"


def test_asdict_returns_all_fields() -> None:
    assert fields(poml(name="support")) == {
        "_type": "poml",
        "name": "support",
        "template": MARKUP,
        "input_variables": ["role", "question"],
        "optional_variables": ["history"],
        "partial_variables": {"history": []},
        "chat": True,
        "register_prompt": None,
        **dict.fromkeys(["path", "base_dir", "stylesheet", "metadata", "tags", "output_parser"]),
        **dict.fromkeys(["registry_uri", "registry_refresh"]),
    }


def test_a_prompt_may_be_a_field_of_a_pydantic_model() -> None:
    class Settings(BaseModel):
        prompt: PomlPromptTemplate

    assert Settings(prompt=poml()).prompt == poml()
    assert Settings.model_validate({"prompt": {"template": MARKUP}}).prompt == poml()
    assert Settings.model_validate(Settings(prompt=poml()).model_dump()).prompt == poml()


# --- prompt values ---


@pytest.fixture(params=["messages", "text"])
def value(request: pytest.FixtureRequest) -> Any:
    prompt = poml() if request.param == "messages" else PomlPromptTemplate("<p>{{role}}</p>", chat=False)
    return prompt.invoke(GIVEN)


def test_a_prompt_value_passes_for_langchains_own(value: Any) -> None:
    plain = ChatPromptValue(messages=MESSAGES) if value.to_messages() == MESSAGES else StringPromptValue(text="a poet")
    assert value == plain
    assert plain == value
    assert value != type(plain).model_validate({**plain.model_dump(), "messages": [], "text": ""})
    assert dumpd(value) == dumpd(plain)
    assert value.model_dump() == plain.model_dump()
    revived = loads(dumps(value), **loading_options(type(plain), *map(type, MESSAGES)))
    assert type(revived) is type(plain)
    assert revived == value


def test_copies_of_a_prompt_value_keep_the_frame(value: Any) -> None:
    for one in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), value.model_copy()):
        assert one == value
        assert one.frame == value.frame
        assert one.to_messages() == value.to_messages()


def test_a_value_of_messages_alone_has_no_frame() -> None:
    for value in (PomlChatPromptValue(messages=MESSAGES), PomlStringPromptValue(text="x")):
        with pytest.raises(PomlError, match="no POML frame"):
            _ = value.frame
    assert PomlStringPromptValue(text="x").to_messages() == [HumanMessage("x")]


class State(TypedDict, total=False):
    question: str
    value: Any


async def test_a_checkpoint_of_a_prompt_value_is_that_of_langchains_own(caplog: pytest.LogCaptureFixture) -> None:
    """LangGraph stores and loads it with the same warnings as ChatPromptValue."""
    checkpoint = pytest.importorskip("langgraph.checkpoint.memory")
    graph = pytest.importorskip("langgraph.graph")
    results = {}
    for prompt in (poml(), ChatPromptTemplate([("system", "You are {role}."), ("human", "{question}")])):
        builder = graph.StateGraph(State)
        builder.add_node("ask", lambda state, prompt=prompt: {"value": prompt.invoke({**GIVEN, **state})})
        builder.add_edge(graph.START, "ask")
        compiled = builder.compile(checkpointer=checkpoint.InMemorySaver())
        config = {"configurable": {"thread_id": "1"}}
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            compiled.invoke({"question": "Why?"}, config)
            restored = compiled.get_state(config).values["value"]
        # LangGraph 1.2 returns the messages as plain BaseMessages, LangChain's own too.
        found = [(type(message), message.type, message.content) for message in restored.to_messages()]
        assert [content for _, _, content in found] == ["You are a poet.", "Why?"]
        assert (await compiled.ainvoke({"question": "How?"}, config))["value"].to_messages()[1].content == "How?"
        levels = [record.levelname for record in caplog.records if record.name.startswith("langgraph")]
        results[type(prompt)] = found, levels
    assert results[PomlPromptTemplate] == results[ChatPromptTemplate]
