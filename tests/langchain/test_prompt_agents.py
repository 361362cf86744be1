"""A POML prompt in the constructors of langchain-classic and in LangGraph; LangChain's own as the reference."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph, add_messages
from tests.langchain.prompts import Model, TextModel

from pomlflow.langchain import PomlPromptTemplate

# These constructors are deprecated in favour of create_agent, and in use nonetheless.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*was deprecated"),
    pytest.mark.filterwarnings("ignore:create_react_agent has been moved"),
]

BOTH = ["ChatPromptTemplate", "PomlPromptTemplate"]
CALL = AIMessage("", tool_calls=[{"id": "c1", "name": "weather", "args": {"city": "Oslo"}}])
AGENT = """\
<poml>
  <system-msg>You are helpful.</system-msg>
  <conversation messages="{{chat_history}}"/>
  <human-msg>{{input}}</human-msg>
  <conversation messages="{{agent_scratchpad}}"/>
</poml>
"""


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}"


@pytest.fixture(autouse=True)
def _quiet_imports() -> None:
    """langchain-classic warns of deprecations while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("langchain_classic.agents")


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPromptTemplate(
            [
                ("system", "You are helpful."),
                MessagesPlaceholder("chat_history", optional=True),
                ("human", "{input}"),
                MessagesPlaceholder("agent_scratchpad"),
            ]
        ),
        PomlPromptTemplate(AGENT),
    ],
    ids=BOTH,
)
@pytest.mark.parametrize("constructor", ["create_tool_calling_agent", "create_openai_tools_agent"])
def test_a_tool_calling_agent_uses_the_prompt(prompt: Any, constructor: str) -> None:
    """The model receives its earlier steps as tool messages."""
    import langchain_classic.agents as classic

    model = Model(answers=[CALL, "It rains."])
    agent = getattr(classic, constructor)(model, [weather], prompt)
    executor = classic.AgentExecutor(agent=agent, tools=[weather])
    history = [HumanMessage("Hi"), AIMessage("Hello")]
    assert executor.invoke({"input": "Oslo?", "chat_history": history})["output"] == "It rains."
    start = [SystemMessage("You are helpful."), *history, HumanMessage("Oslo?")]
    first, second = model.received
    assert first == start
    assert second[:4] == start
    request, response = second[4:]
    assert isinstance(request, AIMessage)
    assert request.tool_calls == CALL.tool_calls
    assert isinstance(response, ToolMessage)
    assert (response.content, response.tool_call_id) == ("Rain in Oslo", "c1")
    assert model.options[0]["tools"]


REACT = """\
Answer with these tools: {tools}

Name one of [{tool_names}].

Question: {input}
Thought:{agent_scratchpad}"""


@pytest.mark.parametrize(
    "prompt",
    [
        PromptTemplate.from_template(REACT),
        PomlPromptTemplate(
            f'<text whiteSpace="pre">{REACT.replace("{", "{{").replace("}", "}}")}</text>',
            chat=False,
        ),
    ],
    ids=["PromptTemplate", "PomlPromptTemplate"],
)
def test_a_react_agent_of_a_text_model_uses_the_prompt(prompt: Any) -> None:
    """Blanks and line ends of a value stay under whiteSpace="pre"."""
    from langchain_classic.agents import AgentExecutor, create_react_agent

    model = TextModel(
        answers=[" Look.\nAction: weather\nAction Input: Oslo", " I now know the final answer\nFinal Answer: It rains."]
    )
    executor = AgentExecutor(agent=create_react_agent(model, [weather], prompt), tools=[weather])
    assert executor.invoke({"input": "Oslo?"})["output"] == "It rains."
    assert model.received[0] == REACT.format(
        tools="weather(city: 'str') -> 'str' - The weather in a city.",
        tool_names="weather",
        input="Oslo?",
        agent_scratchpad="",
    )
    assert model.received[1].endswith("Action Input: Oslo\nObservation: Rain in Oslo\nThought: ")


@pytest.mark.parametrize(
    ("prompt", "document_prompt"),
    [
        (
            ChatPromptTemplate([("system", "Use: {context}"), ("human", "{input}")]),
            PromptTemplate.from_template("{page}. {page_content}"),
        ),
        (
            PomlPromptTemplate(
                '<poml><system-msg whiteSpace="pre">Use: {{context}}</system-msg>'
                "<human-msg>{{input}}</human-msg></poml>"
            ),
            PomlPromptTemplate("<p>{{page}}. {{page_content}}</p>", chat=False),
        ),
    ],
    ids=BOTH,
)
def test_documents_are_stuffed_into_the_prompt(prompt: Any, document_prompt: Any) -> None:
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain

    model = Model()
    chain = create_stuff_documents_chain(model, prompt, document_prompt=document_prompt)
    documents = [Document("One", metadata={"page": 1}), Document("Two", metadata={"page": 2})]
    assert chain.invoke({"context": documents, "input": "Why?"}) == "the answer"
    assert model.received == [[SystemMessage("Use: 1. One\n\n2. Two"), HumanMessage("Why?")]]


class Documents(BaseRetriever):
    """Finds a document about the query."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(query)]


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPromptTemplate([MessagesPlaceholder("chat_history", optional=True), ("human", "Rephrase {input}")]),
        PomlPromptTemplate(
            '<poml><conversation messages="{{chat_history}}"/><human-msg>Rephrase {{input}}</human-msg></poml>'
        ),
    ],
    ids=BOTH,
)
def test_a_history_aware_retriever_uses_the_prompt(prompt: Any) -> None:
    from langchain_classic.chains.history_aware_retriever import create_history_aware_retriever

    model = Model()
    chain = create_history_aware_retriever(model, Documents(), prompt)
    assert chain.invoke({"input": "Why?"}) == [Document("Why?")]
    assert chain.invoke({"input": "Why?", "chat_history": [("ai", "So.")]}) == [Document("the answer")]
    assert model.received == [[AIMessage("So."), HumanMessage("Rephrase Why?")]]


STATE = """\
<poml>
  <system-msg>You are helpful. {{ messages.length }} so far.</system-msg>
  <conversation messages="{{messages}}"/>
</poml>
"""


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    lock: Any


async def test_a_prompt_reads_the_history_of_a_graphs_state() -> None:
    model = Model()
    chain = PomlPromptTemplate(STATE) | model
    builder = StateGraph(State)
    builder.add_node("ask", lambda state: {"messages": [chain.invoke(state)]})
    builder.add_node("again", chain | (lambda message: {"messages": [message]}))
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "again")
    graph = builder.compile()
    given = {"messages": [("human", "Hi")], "lock": object()}
    assert [m.content for m in graph.invoke(given)["messages"]] == ["Hi", "the answer", "the answer"]
    assert [m.content for m in (await graph.ainvoke(given))["messages"]] == ["Hi", "the answer", "the answer"]
    assert [messages[0].content for messages in model.received] == [
        "You are helpful. 1 so far.",
        "You are helpful. 2 so far.",
    ] * 2


@pytest.mark.parametrize("constructor", ["create_tool_calling_agent", "create_react_agent"])
def test_a_prompt_without_what_an_agent_needs_is_refused(constructor: str) -> None:
    import langchain_classic.agents as classic

    with pytest.raises(ValueError, match=r"missing required variables.*agent_scratchpad"):
        getattr(classic, constructor)(
            Model(), [weather], PomlPromptTemplate("<p>{{input}} {{tools}} {{tool_names}}</p>")
        )
