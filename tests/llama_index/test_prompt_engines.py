"""A POML prompt in LlamaIndex's query engines, compared with RichPromptTemplate."""

from __future__ import annotations

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.prompts import SelectorPromptTemplate
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer

from pomlflow import settings
from pomlflow.exceptions import ConfigurationError, MissingVariableError, RenderError
from pomlflow.llama_index import PomlPromptTemplate

QA = (
    "<p>Answer from this alone:</p><p>{{context_str}}</p><p>Question: {{query_str}}</p>",
    "Answer from this alone:\n\n{{ context_str }}\n\nQuestion: {{ query_str }}",
)
REFINE = (
    "<p>So far: {{existing_answer}}</p><p>{{context_msg}}</p><p>Question: {{query_str}}</p>",
    "So far: {{ existing_answer }}\n\n{{ context_msg }}\n\nQuestion: {{ query_str }}",
)
SIMPLE = ("<p>Question: {{query_str}}</p>", "Question: {{ query_str }}")
MODES = ["refine", "compact", "simple_summarize", "tree_summarize", "generation", "accumulate", "compact_accumulate"]


def qa(context: str) -> str:
    return f"Answer from this alone:\n\n{context}\n\nQuestion: why?"


def refine(answer: str, context: str) -> str:
    return f"So far: {answer}\n\n{context}\n\nQuestion: why?"


def expected(mode: str, texts: tuple[str, ...], prompts: dict) -> list[str]:
    """The texts that the model receives, in order, when it answers "one", then "two"."""
    if mode == "simple_summarize":
        text = "\n".join(texts)
        # LlamaIndex passes a list of one text, which its own prompts show as such.
        return [qa(text if isinstance(prompts["text_qa_template"], PomlPromptTemplate) else str([text]))]
    if mode == "refine":
        return [qa(texts[0]), refine("one", texts[1])]
    if mode == "accumulate":
        return [qa(text) for text in texts]
    if mode == "generation":
        return ["Question: why?"]
    return [qa("\n\n".join(texts))]


@pytest.fixture
def prompts(prompt_factory):
    return {
        "text_qa_template": prompt_factory(*QA),
        "refine_template": prompt_factory(*REFINE),
        "summary_template": prompt_factory(*QA),
        "simple_template": prompt_factory(*SIMPLE),
    }


@pytest.mark.parametrize("mode", MODES)
def test_each_response_mode_sends_the_prompts(mode, prompts, index, texts, scripted, renders, render_count):
    """The context reaches the model as it was retrieved, with one render for each call of the model."""
    llm = scripted("one", "two")
    engine = index.as_query_engine(llm=llm, response_mode=mode, **prompts)
    engine.query("why?")
    requests = expected(mode, texts, prompts)
    assert [[message.content for message in call] for call in llm.sent] == [[text] for text in requests]
    assert len(renders) == render_count(len(requests))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mode", ["refine", "compact", "simple_summarize", "tree_summarize"])
def test_an_engine_raises_what_a_prompt_raises(mode, streaming, index, scripted, monkeypatch):
    """LlamaIndex logs a ValueError or a TypeError, and answers "Empty Response"."""

    def engine(markup):
        prompts = dict.fromkeys(("text_qa_template", "summary_template"), PomlPromptTemplate(markup))
        return index.as_query_engine(llm=scripted("Fine."), response_mode=mode, streaming=streaming, **prompts)

    def query(engine):
        response = engine.query("why?")
        return "".join(response.response_gen) if streaming else str(response)

    whole = engine(QA[0])
    assert query(whole) == "Fine."
    with pytest.raises(MissingVariableError, match="tone"):
        query(engine("<p>{{context_str}} in a {{tone}} way</p>"))
    with pytest.raises(RenderError, match="reading 'no'"):
        query(engine("<p>{{context_str.is.no}}</p>"))
    monkeypatch.setattr(settings, "_current", None)
    monkeypatch.setenv("POMLFLOW_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="POMLFLOW_TIMEOUT"):
        query(whole)


@pytest.mark.parametrize("mode", MODES)
async def test_each_response_mode_works_async(mode, prompts, index, texts, scripted, renders, render_count):
    """`aquery` requests accumulated answers concurrently, in any order."""
    llm = scripted("one", "two")
    await index.as_query_engine(llm=llm, response_mode=mode, use_async=True, **prompts).aquery("why?")
    requests = expected(mode, texts, prompts)
    assert sorted(call[0].content for call in llm.sent) == sorted(requests)
    assert len(renders) == render_count(len(requests))


@pytest.mark.parametrize("mode", ["refine", "compact", "simple_summarize", "tree_summarize", "generation"])
def test_streamed_answers_are_requested_alike(mode, prompts, index, texts, scripted, renders, render_count):
    """The prompt of a stream is rendered once, before the stream is read."""
    llm = scripted("one", "two words")
    answer = index.as_query_engine(llm=llm, response_mode=mode, streaming=True, **prompts).query("why?")
    assert isinstance(answer, StreamingResponse)
    assert "".join(answer.response_gen) == ("two words" if mode == "refine" else "one")
    requests = expected(mode, texts, prompts)
    assert [call[0].content for call in llm.sent] == requests
    assert len(renders) == render_count(len(requests))


@pytest.mark.parametrize("mode", MODES)
def test_a_completion_model_receives_the_same_text(mode, prompts, index, texts, scripted, renders, render_count):
    """Models without messages receive the text of format()."""
    llm = scripted("one", "two", chat_model=False)
    index.as_query_engine(llm=llm, response_mode=mode, **prompts).query("why?")
    assert llm.prompts == expected(mode, texts, prompts)
    assert len(renders) == render_count(len(llm.prompts))


def test_a_completion_models_own_wrappers_are_used(scripted):
    """completion_to_prompt wraps a user's text, as it does for PromptTemplate; messages_to_prompt wraps messages."""
    wrappers = {
        "completion_to_prompt": lambda text: f"<s>{text}</s>",
        "messages_to_prompt": lambda messages: " | ".join(f"{m.role.value}={m.content}" for m in messages),
    }
    for template in (PomlPromptTemplate("<p>Hi {{name}}</p>"), PromptTemplate("Hi {name}")):
        llm = scripted(chat_model=False, **wrappers)
        llm.predict(template, name="Ada")
        assert llm.prompts == ["<s>Hi Ada</s>"]
    llm = scripted(chat_model=False, **wrappers)
    llm.predict(PomlPromptTemplate("<system-msg>Be kind</system-msg><human-msg>Hi {{name}}</human-msg>"), name="Ada")
    assert llm.prompts == ["system=Be kind | user=Hi Ada"]


def test_messages_of_each_role_reach_a_chat_model(index, texts, scripted, renders):
    """A system message and an example in the markup are messages of their own."""
    template = PomlPromptTemplate(
        "<system-msg>Be brief</system-msg><human-msg>2+2?</human-msg><ai-msg>4</ai-msg>"
        "<human-msg><p>{{context_str}}</p><p>{{query_str}}</p></human-msg>"
    )
    llm = scripted()
    index.as_query_engine(llm=llm, text_qa_template=template).query("why?")
    context = "\n\n".join(texts)
    assert [[(m.role.value, m.content) for m in call] for call in llm.sent] == [
        [("system", "Be brief"), ("user", "2+2?"), ("assistant", "4"), ("user", f"{context}\n\nwhy?")]
    ]
    assert len(renders) == 1


def test_a_long_context_is_packed_into_the_room_that_the_prompt_leaves(prompts, scripted, renders, render_count):
    """Chunks are packed to the window less the prompt's own length, and still one render per call."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=" ".join(f"w{number}x{word}" for word in range(60))) for number in range(6)]
    llm = scripted("one", context_window=900)
    VectorStoreIndex(nodes).as_query_engine(llm=llm, similarity_top_k=6, **prompts).query("why?")
    assert len(llm.sent) > 1
    requests = " ".join(call[0].content for call in llm.sent)
    assert all(f"w{number}x59" in requests for number in range(6))
    assert len(renders) == render_count(len(llm.sent))


def test_prompts_are_read_and_replaced_in_an_engine(prompts, index, texts, scripted):
    """get_prompts returns equal copies, and update_prompts replaces a prompt."""
    llm = scripted("one")
    engine = index.as_query_engine(llm=llm, **prompts)
    found = engine.get_prompts()["response_synthesizer:text_qa_template"]
    assert found == prompts["text_qa_template"]
    assert found is not prompts["text_qa_template"]
    engine.update_prompts({"response_synthesizer:text_qa_template": PomlPromptTemplate("<p>{{query_str}}!</p>")})
    engine.query("why?")
    assert llm.sent[0][0].content == "why?!"


def test_a_selector_chooses_the_prompt(prompt_factory, index, texts, scripted, renders, render_count):
    """A SelectorPromptTemplate writes the output parser, drops the model, and is measured without an event."""
    selector = SelectorPromptTemplate(
        default_template=PromptTemplate("{context_str}{query_str}"),
        conditionals=[(lambda llm: llm.metadata.is_chat_model, prompt_factory(*QA))],
    )
    llm = scripted()
    index.as_query_engine(llm=llm, text_qa_template=selector).query("why?")
    assert llm.sent[0][0].content == qa("\n\n".join(texts))
    default = SelectorPromptTemplate(default_template=prompt_factory(*QA))
    index.as_query_engine(llm=llm, text_qa_template=default).query("why?")
    assert llm.sent[1][0].content == qa("\n\n".join(texts))
    assert len(renders) == render_count(2)


def test_a_synthesizer_takes_variables_of_its_own(prompts, texts, scripted):
    """get_response_synthesizer with the prompts alone, fed with texts."""
    llm = scripted("one")
    synthesizer = get_response_synthesizer(llm=llm, response_mode=ResponseMode.COMPACT, **prompts)
    assert synthesizer.get_response("why?", list(texts)) == "one"
    assert llm.sent[0][0].content == qa("\n\n".join(text.strip() for text in texts))
