"""A POML prompt in LlamaIndex's agents, workflows and memory."""

from __future__ import annotations

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import FactExtractionMemoryBlock, Memory, StaticMemoryBlock
from llama_index.core.prompts import PromptTemplate

from pomlflow.llama_index import PomlPromptTemplate

STATE = (
    "<p>State: {{state.done}} of {{state.all}}</p><p>{{msg}}</p>",
    "State: {{ state.done }} of {{ state.all }}\n\n{{ msg }}",
)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_an_agents_state_prompt_reads_the_state_as_an_object(
    prompt_factory, scripted, tool_call, renders, render_count
):
    """A function agent puts its state into the user's message, once."""
    llm = scripted(tool_call("add", a=1, b=2), "three")
    agent = FunctionAgent(
        tools=[add], llm=llm, state_prompt=prompt_factory(*STATE), initial_state={"done": 1, "all": 3}
    )
    assert str(await agent.run("1+2?\n  please")) == "three"
    assert [call[0].content for call in llm.sent] == ["State: 1 of 3\n\n1+2?\n  please"] * 2
    assert len(renders) == render_count(1)
    assert all(event.span_id for event in renders)


async def test_a_react_agents_header_is_rendered_at_each_step(scripted, renders):
    """update_prompts formats the header without values; each step fills in the tools and renders."""
    llm = scripted(
        'Thought: I add.\nAction: add\nAction Input: {"a": 1, "b": 2}', "Thought: I can answer.\nAnswer: three"
    )
    agent = ReActAgent(tools=[add], llm=llm)
    header = PomlPromptTemplate(
        '<task>Write #lbrace;"a": 1#rbrace; for a tool.</task><p>{{tool_desc}}</p><p>Of: {{tool_names}}</p>', name="re"
    )
    agent.update_prompts({"react_header": header})
    assert renders == []
    assert str(await agent.run("1+2?")) == "three"
    system = llm.sent[0][0]
    assert system.content.startswith('# Task\n\nWrite {"a": 1} for a tool.\n\n> Tool Name: add\n')
    assert system.content.endswith("\n\nOf: add")
    assert [(event.record.name, bool(event.span_id)) for event in renders] == [("re", True), ("re", True)]


async def test_a_workflows_prompts_are_formatted_at_their_place(scripted, tool_call, renders):
    """AgentWorkflow: the handoff tool's description, the handoff's answer and the state."""
    llm = scripted(tool_call("handoff", to_agent="b", reason="tired"), "done")
    agents = [
        FunctionAgent(name=name, description=f"agent {name}", tools=[], llm=llm, system_prompt=f"I am {name}")
        for name in ("a", "b")
    ]
    flow = AgentWorkflow(
        agents,
        root_agent="a",
        initial_state={"done": 1, "all": 2},
        handoff_prompt=PomlPromptTemplate("<p>Pass on to: {{agent_info}}</p>", name="handoff"),
        handoff_output_prompt=PomlPromptTemplate(
            "<p>#lbrace;{{to_agent}}#rbrace; goes on: {{reason}}</p>", name="output"
        ),
        state_prompt=PomlPromptTemplate(STATE[0], name="state"),
    )
    assert str(await flow.run("go")) == "done"
    assert llm.sent[0][-1].content == "State: 1 of 2\n\ngo"
    assert [message.content for message in llm.sent[1] if message.role == "tool"] == ["{b} goes on: tired"]
    # The handoff tool is made for each step of an agent, and again for its call.
    assert [event.record.name for event in renders if event.record.name != "handoff"] == ["state", "output"]
    assert next(e.record.output["messages"] for e in renders if e.record.name == "handoff")[0]["content"].startswith(
        "Pass on to: {"
    )
    assert all(event.span_id for event in renders)


async def test_a_code_agents_prompt_is_joined_to_its_system_prompt(scripted):
    """CodeActAgent makes a PromptTemplate of get_template() and the system prompt, as far as its API allows."""
    llm = scripted("I need no code.")
    agent = CodeActAgent(
        code_execute_fn=lambda code: code,
        tools=[add],
        llm=llm,
        code_act_system_prompt=PomlPromptTemplate('<task>Give #lbrace;"x"#rbrace;.</task><p>{{tool_descriptions}}</p>'),
        system_prompt="Be brief.",
    )
    await agent.run("hi")
    system = llm.sent[0][0].content
    assert system.startswith('# Task\n\nGive {"x"}.\n\n')
    assert "Add two numbers." in system
    assert system.endswith("\nBe brief.")


def test_a_code_agent_alone_cannot_take_a_prompt(scripted):
    """Without a system prompt CodeActAgent fails with any prompt object (llama-index-core 0.14.25)."""
    for prompt in (PomlPromptTemplate("<p>{{tool_descriptions}}</p>"), PromptTemplate("{tool_descriptions}")):
        with pytest.raises(UnboundLocalError):
            CodeActAgent(code_execute_fn=add, llm=scripted(), code_act_system_prompt=prompt)


async def test_a_system_prompt_is_the_rendered_text(scripted, tool_call):
    """Where LlamaIndex accepts only strings, format() returns one."""
    prompt = PomlPromptTemplate("<role>You are {{who}}</role>")
    llm = scripted("hi")
    await FunctionAgent(tools=[add], llm=llm, system_prompt=prompt.format(who="Ada")).run("hi")
    assert llm.sent[0][0].content == "# Role\n\nYou are Ada"


async def test_agents_cannot_change_the_prompts_own_messages(scripted):
    """Agents write into the blocks of the messages that they are given."""
    prompt = PomlPromptTemplate("<p>Hello</p>")
    message = prompt.format_messages()[0]
    message.blocks[0].text = "changed"
    message.additional_kwargs["x"] = 1
    assert prompt.format_messages()[0] == ChatMessage(role="user", content="Hello")


async def test_memory_blocks_are_shown_by_a_prompt(prompt_factory, scripted, renders):
    """Memory's template is typed RichPromptTemplate and formatted with a list of pairs."""
    memory = Memory.from_defaults(
        memory_blocks=[StaticMemoryBlock(name="facts", static_content="A is B.\n  C")],
        memory_blocks_template=prompt_factory(
            '<p for="block in memory_blocks" whiteSpace="pre">{{block[0]}}: {{block[1][0].text}}</p>',
            "{% for name, blocks in memory_blocks %}{{ name }}: {{ blocks[0].text }}{% endfor %}",
        ),
    )
    messages = await memory.aget(input="hi")
    assert messages[0].content == "facts: A is B.\n  C"
    await memory.sql_store._async_engine.dispose()  # noqa: SLF001 - it has no public close


async def test_a_fact_memory_uses_its_prompts(prompt_factory, scripted):
    """FactExtractionMemoryBlock formats messages with the facts that it has."""
    llm = scripted("<facts><fact>Ada likes tea</fact></facts>")
    block = FactExtractionMemoryBlock(
        llm=llm,
        fact_extraction_prompt_template=prompt_factory(
            "<p>Known:{{existing_facts}} Go</p>", "Known:{{ existing_facts }} Go"
        ),
    )
    await block.aput([ChatMessage(role="user", content="I like tea")])
    assert block.facts == ["Ada likes tea"]
    assert [message.content for message in llm.sent[0]] == ["I like tea", "Known: Go"]
