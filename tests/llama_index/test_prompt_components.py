"""A POML prompt in LlamaIndex's other components: SQL, graphs, structured output, evaluators, indices, extractors."""

from __future__ import annotations

import pytest
from llama_index.core import KeywordTableIndex, SQLDatabase, TreeIndex
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.evaluation import (
    AnswerRelevancyEvaluator,
    ContextRelevancyEvaluator,
    CorrectnessEvaluator,
    FaithfulnessEvaluator,
    GuidelineEvaluator,
    PairwiseComparisonEvaluator,
    RelevancyEvaluator,
)
from llama_index.core.extractors import KeywordExtractor, SummaryExtractor, TitleExtractor
from llama_index.core.indices.property_graph import (
    DynamicLLMPathExtractor,
    SchemaLLMPathExtractor,
    SimpleLLMPathExtractor,
)
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.prompts.default_prompts import DEFAULT_REFINE_PROMPT, DEFAULT_TEXT_TO_SQL_PROMPT
from llama_index.core.query_engine import NLSQLTableQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.question_gen.output_parser import SubQuestionOutputParser
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import ToolMetadata
from pydantic import BaseModel
from sqlalchemy import create_engine, text

from pomlflow.exceptions import MissingVariableError
from pomlflow.llama_index import PomlPromptTemplate

PIXEL = b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def requests(llm) -> list[str]:
    return [call[-1].content for call in llm.sent]


@pytest.fixture
def database():
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("create table cake (name text, minutes integer)"))
        connection.execute(text("insert into cake values ('plum', 40)"))
    yield SQLDatabase(engine)
    engine.dispose()


SQL = "<p>{{dialect}}:</p><p>{{schema}}</p><p>Question: {{query_str}}</p>"
SYNTHESIS = "<p>{{query_str}}: {{sql_query}}</p><p>{{context_str}}</p>"
REFINE = "<p>{{query_str}} {{existing_answer}} {{context_msg}}</p>"


def test_an_sql_engine_uses_its_prompts(database, scripted, renders):
    """It compares variables with an ordered list, which RichPromptTemplate fails; the schema keeps its lines."""
    llm = scripted("select minutes from cake", "40 minutes")
    engine = NLSQLTableQueryEngine(
        database,
        tables=["cake"],
        llm=llm,
        text_to_sql_prompt=PomlPromptTemplate(SQL),
        response_synthesis_prompt=PomlPromptTemplate(SYNTHESIS),
        refine_synthesis_prompt=PomlPromptTemplate(REFINE),
    )
    assert str(engine.query("how long?")) == "40 minutes"
    schema = database.get_single_table_info("cake")
    assert requests(llm)[0] == f"sqlite:\n\n{schema}\n\nQuestion: how long?"
    assert requests(llm)[1].startswith("how long?: select minutes from cake\n\n")
    assert "[(40,)]" in requests(llm)[1]
    assert len(renders) == 2


def test_the_order_of_variables_is_that_of_their_first_use():
    """As the SQL engines compare it."""
    assert PomlPromptTemplate(REFINE).template_vars == DEFAULT_REFINE_PROMPT.template_vars
    assert PomlPromptTemplate(SQL).template_vars == ["dialect", "schema", "query_str"]
    assert sorted(PomlPromptTemplate(SQL).template_vars) == sorted(DEFAULT_TEXT_TO_SQL_PROMPT.template_vars)


async def test_path_extractors_use_the_prompt(scripted, renders):
    """Their fields are typed PromptTemplate, which RichPromptTemplate is not."""
    node = TextNode(text="Ada likes tea.\n  Tea is hot.")
    llm = scripted("(Ada, likes, tea)")
    simple = SimpleLLMPathExtractor(
        llm=llm, extract_prompt=PomlPromptTemplate("<p>At most {{max_knowledge_triplets}}:</p><p>{{text}}</p>")
    )
    (found,) = await simple.acall([node])
    assert found.metadata["relations"]
    dynamic = DynamicLLMPathExtractor(
        llm=llm,
        extract_prompt=PomlPromptTemplate(
            "<p>{{max_knowledge_triplets}} of {{allowed_entity_types}}</p><p>{{text}}</p>"
        ),
        allowed_entity_types=["PERSON"],
    )
    await dynamic.acall([TextNode(text="Ada")])
    assert requests(llm) == ["At most 10:\n\nAda likes tea.\n  Tea is hot.", "10 of PERSON\n\nAda"]
    assert len(renders) == 2


async def test_a_schema_path_extractor_uses_the_prompt(scripted, tool_call):
    """It predicts a structure, with the schema of the graph as a function."""
    llm = scripted(tool_call("KGSchema", triplets=[]))
    extractor = SchemaLLMPathExtractor(
        llm=llm,
        extract_prompt=PomlPromptTemplate("<p>At most {{max_triplets_per_chunk}}: {{text}}</p>"),
        possible_entities=["PERSON"],
        possible_relations=["LIKES"],
        strict=False,
    )
    await extractor.acall([TextNode(text="Ada")])
    assert requests(llm)[0] == "At most 10: Ada"


class Cake(BaseModel):
    """A cake."""

    name: str
    minutes: int


CAKE = ("<p>Make one of</p><p>{{stuff}}</p>", "Make one of\n\n{{ stuff }}")


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_structured_predict_fills_a_class(way, prompt_factory, scripted, tool_call, renders, render_count):
    """By a function call, if the model supports it."""
    llm = scripted(tool_call("Cake", name="plum", minutes=40))
    if way == "sync":
        cake = llm.structured_predict(Cake, prompt_factory(*CAKE), stuff="plums\n  flour")
    else:
        cake = await llm.astructured_predict(Cake, prompt_factory(*CAKE), stuff="plums\n  flour")
    assert cake == Cake(name="plum", minutes=40)
    assert requests(llm) == ["Make one of\n\nplums\n  flour"]
    assert len(renders) == render_count(1)
    assert all(event.span_id for event in renders)


@pytest.mark.parametrize("chat_model", [True, False])
def test_a_text_program_adds_its_output_format(chat_model, scripted):
    """LLMTextCompletionProgram writes its output parser into the prompt, which adds the JSON schema to its text."""
    llm = scripted('{"name": "plum", "minutes": 40}', chat_model=chat_model, calls_functions=False)
    assert llm.structured_predict(Cake, PomlPromptTemplate(CAKE[0]), stuff="plums") == Cake(name="plum", minutes=40)
    sent = requests(llm)[0] if chat_model else llm.prompts[0]
    assert sent.startswith("Make one of\n\nplums\n\n")
    assert '"minutes"' in sent


def test_a_text_program_formats_a_system_message(scripted):
    """Of several messages the first system message gets the output format, as LlamaIndex's parsers do it."""
    llm = scripted('{"name": "plum", "minutes": 40}', calls_functions=False)
    prompt = PomlPromptTemplate("<system-msg>Bake</system-msg><human-msg>{{stuff}}</human-msg>")
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(output_cls=Cake), prompt=prompt, llm=llm
    )
    assert program(stuff="plums").name == "plum"
    assert llm.sent[0][0].content.startswith("Bake\n\n")
    assert "Here's a JSON schema to follow:" in llm.sent[0][0].content
    assert llm.sent[0][1].content == "plums"


def test_a_function_program_uses_the_prompt(prompt_factory, scripted, tool_call):
    """FunctionCallingProgram renders messages for the model's tool call."""
    llm = scripted(tool_call("Cake", name="plum", minutes=40))
    program = FunctionCallingProgram.from_defaults(output_cls=Cake, prompt=prompt_factory(*CAKE), llm=llm)
    assert program(stuff="plums").minutes == 40
    assert requests(llm) == ["Make one of\n\nplums"]


EVALUATORS = {
    CorrectnessEvaluator: ("query generated_answer reference_answer", "4.5\nGood", (True, 4.5)),
    GuidelineEvaluator: ("query response guidelines", '{"passing": true, "feedback": "Good"}', (True, 1.0)),
    AnswerRelevancyEvaluator: ("query response", "Good [RESULT] 2", (None, 1.0)),
    PairwiseComparisonEvaluator: ("query answer_1 answer_2 reference", "[[A]]", (True, 1.0)),
    FaithfulnessEvaluator: ("query_str context_str", "YES", (True, 1.0)),
    RelevancyEvaluator: ("query_str context_str", "YES", (True, 1.0)),
    ContextRelevancyEvaluator: ("query_str context_str", "Good [RESULT] 4", (None, 1.0)),
}


@pytest.mark.parametrize("kind", EVALUATORS)
async def test_evaluators_use_the_prompt(kind, prompt_factory, scripted):
    """Each evaluator's own variables arrive, and its verdict is read."""
    names, verdict, read = EVALUATORS[kind]
    markup = "".join(f"<p>{name}: {{{{{name}}}}}</p>" for name in names.split())
    jinja = "\n\n".join(f"{name}: {{{{ {name} }}}}" for name in names.split())
    llm = scripted(verdict)
    options = {"enforce_consensus": False} if kind is PairwiseComparisonEvaluator else {}
    evaluator = kind(llm=llm, eval_template=prompt_factory(markup, jinja), **options)
    result = await evaluator.aevaluate(
        query="why?", response="because\n  so", contexts=["some\n  text"], reference="R", second_response="not"
    )
    assert (result.passing, result.score) == read
    sent = requests(llm)[0]
    assert ("because\n  so" if kind is FaithfulnessEvaluator else "why?") in sent
    assert ("some\n  text" if "context_str" in names else "because\n  so") in sent
    assert [line.split(":")[0] for line in sent.split("\n\n") if ": " in line][: len(names.split())] == names.split()


def test_a_tree_index_is_built_and_searched_with_the_prompt(prompt_factory, scripted, renders, render_count):
    """Summaries of nodes, then the choice of a branch, whose prompt is measured before it is sent."""
    nodes = [TextNode(text=f"note {number}") for number in range(3)]
    llm = scripted("sum one", "sum two", "ANSWER: 1", "Found.")
    summary = prompt_factory("<p>Sum up:</p><p>{{context_str}}</p>", "Sum up:\n\n{{ context_str }}")
    index = TreeIndex(nodes, num_children=2, llm=llm, summary_template=summary)
    choose = prompt_factory(
        "<p>1 to {{num_chunks}}: {{context_list}} {{query_str}}</p>",
        "1 to {{ num_chunks }}: {{ context_list }} {{ query_str }}",
    )
    engine = index.as_query_engine(
        llm=llm, query_template=choose, text_qa_template=prompt_factory("<p>{{context_str}}!</p>", "{{ context_str }}!")
    )
    engine.query("why?")
    assert [text.split() for text in requests(llm)[:2]] == ["Sum up: note 0 note 1".split(), "Sum up: note 2".split()]
    assert requests(llm)[2].startswith("1 to 2: (1)")
    assert len(renders) == render_count(len(llm.sent))


def test_a_keyword_index_uses_the_prompt(prompt_factory, scripted):
    """The template is filled partly, with a number, when the index is made."""
    llm = scripted("KEYWORDS: tea, cake")
    template = prompt_factory("<p>{{max_keywords}} of {{text}}</p>", "{{ max_keywords }} of {{ text }}")
    index = KeywordTableIndex([TextNode(text="tea\n  time")], llm=llm, keyword_extract_template=template)
    assert "tea" in index.index_struct.keywords
    assert requests(llm)[0] == "10 of tea\n  time"


async def test_extractors_take_the_prompts_f_string(scripted):
    """Their templates are typed str."""
    llm = scripted("A title")
    node = PomlPromptTemplate("<p>Title of #lbrace;this#rbrace;:</p><p>{{context_str}}</p>")
    extractor = TitleExtractor(llm=llm, node_template=node.template, combine_template=node.template)
    assert await extractor.aextract([TextNode(text="some\n  text")]) == [{"document_title": "A title"}]
    assert (llm.prompts + requests(llm))[0] == "Title of {this}:\n\nsome\n  text"
    for kind, key in ((SummaryExtractor, "section_summary"), (KeywordExtractor, "excerpt_keywords")):
        llm = scripted("Short")
        extractor = kind(llm=llm, prompt_template=node.template)
        assert await extractor.aextract([TextNode(text="some\n  text")]) == [{key: "Short"}]
        assert (llm.prompts + requests(llm))[0].startswith("Title of {this}:\n\n")


RANK = ("<p>{{query_str}}</p><p>{{context_str}}</p>", "{{ query_str }}\n\n{{ context_str }}")


def test_a_reranker_uses_the_prompt(prompt_factory, scripted):
    """LLMRerank predicts with numbered documents, whose lines stay lines."""
    llm = scripted("Doc: 2, Relevance: 9\nDoc: 1, Relevance: 3", chat_model=False)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("a\n  b", "c")]
    rerank = LLMRerank(llm=llm, choice_select_prompt=prompt_factory(*RANK))
    assert [node.text for node in rerank.postprocess_nodes(nodes, QueryBundle("why?"))] == ["c", "a\n  b"]
    assert llm.prompts == ["why?\n\nDocument 1:\na\n  b\n\nDocument 2:\nc"]


def test_context_of_messages_reaches_the_model_unchanged(scripted, renders):
    """With multimodal=True the retrieved images are blocks of messages, as is an LLMRerank's context for a chat."""
    prompt = PomlPromptTemplate(
        '<system-msg>Look:</system-msg><conversation messages="{{context_messages}}"/>'
        "<human-msg>{{query_str}}</human-msg>"
    )
    context = [
        ChatMessage(role="user", blocks=[TextBlock(text="a\n  b"), ImageBlock(image=PIXEL, image_mimetype="image/png")])
    ]
    for mode in ("compact", "refine", "simple_summarize", "accumulate"):
        llm = scripted(context_window=9000)
        synthesizer = get_response_synthesizer(
            llm=llm, response_mode=mode, chat_content_qa_template=prompt, multimodal=True
        )
        synthesizer.get_response_from_messages("why?", context)
        assert [message.role.value for message in llm.sent[0]] == ["system", "user", "user"]
        assert llm.sent[0][1].blocks == context[0].blocks
        assert llm.sent[0][2].content == "why?"
        assert len(renders) == len(llm.sent)
        renders.clear()
    llm = scripted("Doc: 2, Relevance: 9")
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("a\n  b", "c")]
    LLMRerank(llm=llm, choice_select_prompt=prompt).postprocess_nodes(nodes, QueryBundle("why?"))
    assert "a\n  b" in llm.sent[0][1].content


def test_a_rerankers_prompt_without_the_context_messages_names_them(scripted):
    """An LLMRerank passes context_messages instead of context_str to a chat model's prompt."""
    rerank = LLMRerank(llm=scripted(), choice_select_prompt=PomlPromptTemplate(RANK[0]))
    with pytest.raises(
        MissingVariableError, match=r"needs the variable context_str; given: context_messages, query_str"
    ):
        rerank.postprocess_nodes([NodeWithScore(node=TextNode(text="a"))], QueryBundle("why?"))


def test_a_question_generator_uses_the_prompt(prompt_factory, scripted):
    """LLMQuestionGenerator reads the model's answer with the prompt's output parser."""
    llm = scripted('```json\n{"items": [{"sub_question": "why?", "tool_name": "a"}]}\n```')
    prompt = prompt_factory("<p>{{tools_str}}</p><p>{{query_str}}</p>", "{{ tools_str }}\n\n{{ query_str }}")
    prompt.output_parser = SubQuestionOutputParser()
    (question,) = LLMQuestionGenerator(llm, prompt).generate([ToolMetadata("tool a", "a")], QueryBundle("why?"))
    assert question.sub_question == "why?"
    assert requests(llm) == ['{\n    "a": "tool a"\n}\n\nwhy?']


def test_a_models_query_wrapper_can_be_a_prompt(prompt_factory, scripted):
    """An LLM's query_wrapper_prompt is typed BasePromptTemplate and formatted around a completion's text."""
    wrapper = prompt_factory("<p>Q: {{query_str}}</p>", "Q: {{ query_str }}")
    llm = scripted(chat_model=False, query_wrapper_prompt=wrapper)
    llm.predict(prompt_factory("<p>Hi {{name}}</p>", "Hi {{ name }}"), name="Ada")
    assert llm.prompts == ["Q: Hi Ada"]
