"""A POML prompt in LlamaIndex's chat engines and retrievers, which read ``.template`` as an f-string."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.retrievers import QueryFusionRetriever

from pomlflow.exceptions import PomlError, VariableError
from pomlflow.llama_index import PomlPromptTemplate

# As an f-string this is "Use {"a": {b}} & that:\n\n{context_str}\n\n", braces of its own in it.
CONTEXT = '<p>Use #lbrace;"a": #lbrace;b#rbrace;#rbrace; #amp; that:</p><p>{{context_str}}</p>'
SHOWN = 'Use {"a": {b}} & that:'


def memory(*texts: str) -> ChatMemoryBuffer:
    roles = itertools.cycle(["user", "assistant"])
    history = [ChatMessage(role=role, content=text) for text, role in zip(texts, roles, strict=False)]
    return ChatMemoryBuffer.from_defaults(token_limit=3000, chat_history=history)


@pytest.mark.parametrize("way", ["sync", "async", "stream"])
async def test_a_context_chat_engine_shows_the_context(way, index, texts, scripted, renders):
    """ContextChatEngine makes its system message of .template and fills the context in, braces and all."""
    llm = scripted()
    engine = ContextChatEngine.from_defaults(
        index.as_retriever(),
        llm=llm,
        context_template=PomlPromptTemplate(CONTEXT),
        system_prompt=" Be brief",
        memory=memory(),
    )
    if way == "sync":
        await asyncio.to_thread(engine.chat, "why?")
    elif way == "async":
        await engine.achat("why?")
    else:
        answer = await engine.astream_chat("why?")
        assert "".join([token async for token in answer.async_response_gen()]) == "Fine."
    system, user = llm.sent[0]
    assert system.content == f"{SHOWN}\n\n" + "\n\n".join(texts) + "Be brief"
    assert (system.role, user.content) == ("system", "why?")
    assert [dict(event.record.variables) for event in renders] == [{"context_str": "{context_str}"}]
    assert renders[0].span_id is not None


def test_a_condense_plus_context_engine_shows_both_prompts(index, texts, scripted, renders):
    """The condense prompt is rendered with the history's text; of the context prompt, the f-string is used."""
    llm = scripted("Why is it so?", "Fine.")
    engine = CondensePlusContextChatEngine.from_defaults(
        index.as_retriever(),
        llm=llm,
        context_prompt=PomlPromptTemplate(CONTEXT, name="context"),
        condense_prompt=PomlPromptTemplate("<p>{{chat_history}}</p><p>New: {{question}}</p>", name="condense"),
        memory=memory("Hi", "Hello"),
    )
    engine.chat("why?")
    assert llm.prompts == ["user: Hi\nassistant: Hello\n\nNew: why?"]
    assert llm.sent[0][0].content == f"{SHOWN}\n\n" + "\n\n".join(texts)
    assert [event.record.name for event in renders] == ["condense", "context"]


async def test_a_condense_question_engine_uses_the_prompt(prompt_factory, index, scripted, renders, render_count):
    """CondenseQuestionChatEngine predicts with the history as one text."""
    llm = scripted("Why is it so?", "Fine.")
    engine = CondenseQuestionChatEngine.from_defaults(
        index.as_query_engine(llm=llm),
        llm=llm,
        condense_question_prompt=prompt_factory(
            "<p>{{chat_history}}</p><p>New: {{question}}</p>", "{{ chat_history }}\n\nNew: {{ question }}"
        ),
        memory=memory("Hi", "Hello"),
    )
    await engine.achat("why?")
    assert llm.sent[0][0].content == "user: Hi\nassistant: Hello\n\nNew: why?"
    assert len(renders) == render_count(1)


def test_a_fusion_retriever_uses_the_prompt(index, scripted, renders):
    """QueryFusionRetriever keeps .template and formats it as a Python string: there it is a render of its own."""
    llm = scripted("how?\nwhen?")
    retriever = QueryFusionRetriever([index.as_retriever()], llm=llm, num_queries=3, use_async=False)
    prompt = PomlPromptTemplate('<p>Give {{num_queries}} like {{query}}, as #lbrace;"q": 1#rbrace;</p>', name="fuse")
    retriever.update_prompts({"query_gen_prompt": prompt})
    renders.clear()  # LlamaIndex's spans hold update_prompts as well
    retriever.retrieve("why?")
    assert llm.prompts == ['Give 2 like why?, as {"q": 1}']
    assert [(event.record.name, event.span_id is None) for event in renders] == [("fuse", False)]


def test_the_f_string_can_be_filled_like_a_prompt_templates():
    """As in a field of type str: PromptTemplate(prompt.template) formats to the same text as the prompt."""
    prompt = PomlPromptTemplate(CONTEXT)
    value = "a {b} {context_str}\n  c"
    assert PromptTemplate(prompt.template).format(context_str=value) == prompt.format(context_str=value)
    assert prompt.template.format(context_str=value) == prompt.format(context_str=value)
    assert str(prompt.template) == f"{SHOWN}\n\n{{context_str}}"


def test_the_f_string_holds_partial_values_and_llama_indexs_names():
    """It contains partial_format's values; a mapped variable has the name that the component uses."""
    prompt = PomlPromptTemplate(
        "<p>{{tone}} {{stuff}} {{now}}</p>",
        tone="Be\n  kind",
        template_var_mappings={"context_str": "stuff"},
        function_mappings={"now": lambda **_: "noon"},
    )
    assert prompt.template == "Be\n  kind {context_str} {now}"


def test_an_f_string_that_would_be_wrong_is_an_error():
    """An expression that computes with a variable, or an image, cannot be an f-string."""
    with pytest.raises(VariableError, match=r"show 'context_str' but not compute .*trim"):
        _ = PomlPromptTemplate("<p>{{context_str.trim()}}</p>").template
    assert PomlPromptTemplate("<p>{{context_str.trim()}}</p>", context_str=" a ").template == "a"
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    with pytest.raises(PomlError, match="cannot hold its image"):
        _ = PomlPromptTemplate(f'<img base64="{pixel}" syntax="multimedia" alt="dot"/>').template


def test_a_template_read_outside_of_any_run_dispatches_no_event(renders):
    """Reading it during set-up dispatches no event; inside a span it does, see the chat engines above."""
    prompt = PomlPromptTemplate(CONTEXT)
    assert prompt.template
    assert prompt.format()
    assert renders == []
