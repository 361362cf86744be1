"""A prompt keeps its content in dumps, hashes, caches, contexts and pickles, and formats afterwards."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.indices.property_graph import (
    DynamicLLMPathExtractor,
    SchemaLLMPathExtractor,
    SimpleLLMPathExtractor,
)
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.memory import FactExtractionMemoryBlock, Memory
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.postprocessor.structured_llm_rerank import StructuredLLMRerank
from llama_index.core.prompts import SelectorPromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.workflow import Context, JsonSerializer
from workflows.context.serializers import PickleSerializer

from pomlflow.llama_index import PomlPromptTemplate

EXTRACT = "<p>{{text}} {{max_knowledge_triplets}}</p>"


def test_another_prompt_is_not_served_the_cached_results_of_the_first(scripted: Any) -> None:
    cache = IngestionCache()
    models = [scripted("(Ada, likes, tea)"), scripted("(Ada, drinks, tea)")]
    for markup, llm in zip((EXTRACT, f"<p>Again:</p>{EXTRACT}"), models, strict=True):
        extractor = SimpleLLMPathExtractor(llm=llm, extract_prompt=PomlPromptTemplate(markup), num_workers=1)
        for _ in range(2):
            IngestionPipeline(transformations=[extractor], cache=cache).run(
                nodes=[TextNode(id_="n", text="Ada likes tea")]
            )
    assert [len(llm.sent) + len(llm.prompts) for llm in models] == [1, 1]


def test_a_file_that_a_prompt_includes_is_part_of_its_content(tmp_path: Path, scripted: Any) -> None:
    nodes = [TextNode(id_="n", text="Ada likes tea")]
    hashes = []
    for tone in ("kind", "stern"):
        (tmp_path / "tone.txt").write_text(tone)
        prompt = PomlPromptTemplate(f'<document src="tone.txt"/>{EXTRACT}', base_dir=tmp_path)
        for made in (prompt, prompt.partial_format(max_knowledge_triplets="3")):
            extractor = SimpleLLMPathExtractor(llm=scripted(), extract_prompt=made)
            hashes += [get_transformation_hash(nodes, extractor)] * 2
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("field", ["extract_prompt", "template"])
def test_each_dump_differs_with_the_content(field: str, scripted: Any) -> None:
    def dumped(markup: str) -> str:
        prompt = PomlPromptTemplate(markup)
        if field == "extract_prompt":
            return json.dumps(SimpleLLMPathExtractor(llm=scripted(), extract_prompt=prompt).to_dict(), default=str)
        return json.dumps(prompt.model_dump(mode="json"))

    assert dumped(EXTRACT) == dumped(EXTRACT)
    assert dumped(EXTRACT) != dumped(EXTRACT.replace("<p>", "<p>!"))


def test_a_prompt_is_read_from_its_own_dump(tmp_path: Path) -> None:
    file = tmp_path / "greet.poml"
    file.write_text("<system-msg>{{tone}}</system-msg><human-msg>Hi {{name}}</human-msg>")
    prompts = [
        PomlPromptTemplate("<p>{{a}} {{b}}</p>", name="n", register=False, chat=False, metadata={"x": 1}, a="1"),
        PomlPromptTemplate.from_file(file, stylesheet={"p": {"syntax": "text"}}, tone="kind"),
        PomlPromptTemplate("<p>{{c}} {{d}}</p>", template_var_mappings={"query_str": "c"}),
    ]
    for prompt in prompts:
        for read in (
            PomlPromptTemplate.model_validate(json.loads(prompt.model_dump_json())),
            JsonSerializer().deserialize(JsonSerializer().serialize(prompt)),
            pickle.loads(pickle.dumps(prompt)),
        ):
            assert read == prompt
            assert read.template_vars == prompt.template_vars
            given = dict.fromkeys(prompt.template_vars, "v")
            assert read.format(**given) == prompt.format(**given)


@pytest.mark.filterwarnings("ignore:Skipping serialization of known unserializable key")
async def test_a_handoff_prompt_formats_in_every_run_of_one_context(scripted: Any, tool_call: Any) -> None:
    """Also after the context went through JSON or pickle."""
    prompt = PomlPromptTemplate("<p>HO {{to_agent}} because {{reason}}</p>")

    def flow() -> tuple[Any, AgentWorkflow]:
        llm = scripted(tool_call("handoff", to_agent="b", reason="r"), "done")
        agents = [FunctionAgent(name=name, description=name, llm=llm) for name in "ab"]
        return llm, AgentWorkflow(agents, root_agent="a", handoff_output_prompt=prompt)

    _, first = flow()
    context = Context(first)
    await first.run("go", ctx=context)
    llm, second = flow()
    pickled = PickleSerializer()
    for again in (
        context,
        Context.from_dict(second, json.loads(json.dumps(context.to_dict()))),
        Context.from_dict(second, context.to_dict(pickled), pickled),
    ):
        await again.store.set("current_agent_name", "a")
        llm, second = flow()
        await second.run("go", ctx=again)
        assert [m.content for m in llm.sent[-1] if m.role == "tool"][-1] == "HO b because r"


# Each component that stores a prompt in a field, with that field.
COMPONENTS: dict[str, Callable[[Any, Any], tuple[Any, str]]] = {
    "simple": lambda llm, prompt: (SimpleLLMPathExtractor(llm=llm, extract_prompt=prompt), "extract_prompt"),
    "schema": lambda llm, prompt: (SchemaLLMPathExtractor(llm=llm, extract_prompt=prompt), "extract_prompt"),
    "dynamic": lambda llm, prompt: (DynamicLLMPathExtractor(llm=llm, extract_prompt=prompt), "extract_prompt"),
    "rerank": lambda llm, prompt: (LLMRerank(llm=llm, choice_select_prompt=prompt), "choice_select_prompt"),
    "structured": lambda llm, prompt: (
        StructuredLLMRerank(llm=llm, choice_select_prompt=prompt),
        "choice_select_prompt",
    ),
    "memory": lambda _, prompt: (Memory.from_defaults(memory_blocks_template=prompt), "memory_blocks_template"),
    "facts": lambda llm, prompt: (
        FactExtractionMemoryBlock(llm=llm, fact_extraction_prompt_template=prompt),
        "fact_extraction_prompt_template",
    ),
    "selector": lambda _, prompt: (SelectorPromptTemplate(default_template=prompt), "default_template"),
}


@pytest.mark.filterwarnings("ignore:<aiosqlite.core.Connection object:ResourceWarning")
@pytest.mark.parametrize("kind", COMPONENTS)
def test_each_component_keeps_its_prompt(kind: str, scripted: Any) -> None:
    def content(markup: str, **values: Any) -> str:
        component, _ = COMPONENTS[kind](scripted(), PomlPromptTemplate(markup, **values))
        dumped = component.to_dict() if hasattr(component, "to_dict") else component.model_dump()
        return re.sub(r"0x[0-9a-f]+|[0-9a-f-]{36}", "", str(dumped))

    contents = [content(EXTRACT), content(f"<p>!</p>{EXTRACT}"), content(EXTRACT, text="given")]
    assert len(set(contents)) == 3
    assert content(EXTRACT) == contents[0]
    component, field = COMPONENTS[kind](scripted(), PomlPromptTemplate(EXTRACT))
    for again in (pickle.loads(pickle.dumps(component)), copy.deepcopy(component), component.model_copy(deep=True)):
        prompt = getattr(again, field)
        assert prompt == getattr(component, field)
        assert prompt.format(text="Ada", max_knowledge_triplets=3) == "Ada 3"
