"""The handler's trees are those of MLflow's own tracer, with POML's spans added."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("mlflow")

import mlflow
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.tools.function_tool import sync_to_async
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step
from tests.llama_index.traces import QA, open_spans, parent, poml_spans, span_named, tree, without_poml

from pomlflow.exceptions import RenderError
from pomlflow.llama_index import PomlCallbackHandler, PomlPromptTemplate

REFINE = "<p>{{query_str}} {{existing_answer}} {{context_msg}}</p>"
QUESTION = PomlPromptTemplate("<p>Say {{topic}}</p>", name="say")


@pytest.fixture
def trace_like_autologs(traced: Any, autolog_trees: Any) -> Callable[..., Any]:
    """Run something twice, under autolog and under the handler, compare, and return the handler's only trace.

    What is run is made anew for each, because scripts and memories are used up.
    """

    def compare(make: Callable[[], Callable[[], Any]]) -> Any:
        reference = autolog_trees(make())
        with PomlCallbackHandler():
            traces = traced(make())
        assert [without_poml(tree(trace)) for trace in traces] == reference
        assert open_spans() == 0
        (trace,) = traces
        return trace

    return compare


def synchronous(coroutine: Callable[[], Any]) -> Callable[[], Any]:
    async def wait() -> Any:
        return await coroutine()

    return lambda: asyncio.run(wait())


@pytest.mark.parametrize(
    ("mode", "renders"),
    [("compact", 1), ("refine", 1), ("simple_summarize", 1), ("accumulate", 2), ("compact_accumulate", 1)],
)
@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
def test_query_engines_have_the_tree_of_autolog(
    trace_like_autologs: Any, index: Any, scripted: Any, prompt: Any, mode: str, renders: int, use_async: bool
) -> None:
    def make() -> Callable[[], Any]:
        refine = PomlPromptTemplate(REFINE, name="refine")
        llm = scripted("Fine.")
        engine = index.as_query_engine(llm=llm, text_qa_template=prompt, refine_template=refine, response_mode=mode)
        return synchronous(lambda: engine.aquery("What?")) if use_async else lambda: engine.query("What?")

    trace = trace_like_autologs(make)
    spans = [span for span in poml_spans(trace) if span.name == "poml qa"]
    predict = "ScriptedLLM.apredict" if use_async else "ScriptedLLM.predict"
    assert [parent(trace, span) for span in spans] == [predict] * renders


def test_a_tree_summary_has_the_tree_of_autolog(trace_like_autologs: Any, index: Any, scripted: Any) -> None:
    def make() -> Callable[[], Any]:
        prompt = PomlPromptTemplate(QA, name="summary")
        engine = index.as_query_engine(llm=scripted("Fine."), summary_template=prompt, response_mode="tree_summarize")
        return lambda: engine.query("What?")

    trace = trace_like_autologs(make)
    assert [parent(trace, span) for span in poml_spans(trace)] == ["ScriptedLLM.predict"]


@pytest.mark.parametrize("mode", ["simple", "context", "condense_question", "condense_plus_context"])
@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
def test_chat_engines_have_the_tree_of_autolog(
    trace_like_autologs: Any, index: Any, scripted: Any, mode: str, use_async: bool
) -> None:
    def make() -> Callable[[], Any]:
        engine = index.as_chat_engine(llm=scripted("Fine."), chat_mode=mode)
        return synchronous(lambda: engine.achat("Hello")) if use_async else lambda: engine.chat("Hello")

    assert str(trace_like_autologs(make).info.state) == "OK"


async def work(topic: str) -> str:
    """Work on a topic."""
    with mlflow.start_span("work"):
        return QUESTION.format(topic=topic)


def threaded_work(topic: str) -> str:
    """Work on a topic, in a thread."""
    with mlflow.start_span("work"):
        return QUESTION.format(topic=topic)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("tool", [work, threaded_work])
def test_a_function_agent_has_the_tree_of_autolog(
    trace_like_autologs: Any, scripted: Any, tool_call: Any, streaming: bool, tool: Any
) -> None:
    if tool is threaded_work and "copy_context" not in inspect.getsource(sync_to_async):
        pytest.skip("LlamaIndex (before 0.14.25) gives a sync tool's thread no context")

    def make() -> Callable[[], Any]:
        llm = scripted(tool_call(tool.__name__, topic="POML"), "Done.")
        agent = FunctionAgent(tools=[tool], llm=llm, system_prompt="You work.", streaming=streaming)
        return synchronous(lambda: agent.run("Work!"))

    trace = trace_like_autologs(make)
    (span,) = poml_spans(trace)
    assert (span.name, parent(trace, span)) == ("poml say", "work")


def test_a_react_agent_has_the_tree_of_autolog(trace_like_autologs: Any, scripted: Any) -> None:
    calls = 'Thought: work.\nAction: work\nAction Input: {"topic": "POML"}'

    def make() -> Callable[[], Any]:
        agent = ReActAgent(tools=[work], llm=scripted(calls, "Thought: I can answer.\nAnswer: Done."))
        return synchronous(lambda: agent.run("Work!"))

    assert len(poml_spans(trace_like_autologs(make))) == 1


def test_agents_with_handoffs_have_the_tree_of_autolog(trace_like_autologs: Any, scripted: Any, tool_call: Any) -> None:
    def make() -> Callable[[], Any]:
        over = scripted(tool_call("handoff", to_agent="second", reason="work"), "Done.")
        first = FunctionAgent(name="first", description="1", llm=over, can_handoff_to=["second"])
        llm = scripted(tool_call("work", topic="POML"), "Done.")
        second = FunctionAgent(name="second", description="2", llm=llm, tools=[work])
        workflow = AgentWorkflow(
            agents=[first, second],
            root_agent="first",
            state_prompt=PomlPromptTemplate("<p>{{state}} {{msg}}</p>", name="state"),
            initial_state={"n": 1},
        )
        return synchronous(lambda: workflow.run("Work!"))

    trace = trace_like_autologs(make)
    assert [span.name for span in poml_spans(trace)].count("poml say") == 1
    (state,) = [span for span in poml_spans(trace) if span.name == "poml state"]
    assert parent(trace, state) == "AgentWorkflow.setup_agent"


class Middle(Event):
    topic: str


class Flow(Workflow):
    """Steps that render in the step itself, in a thread, and through a model."""

    llm: Any = None

    @step
    async def begin(self, event: StartEvent) -> Middle:
        await asyncio.to_thread(QUESTION.format, topic=event.topic)
        return Middle(topic=event.topic)

    @step
    async def finish(self, event: Middle) -> StopEvent:
        return StopEvent(result=await self.llm.apredict(QUESTION, topic=event.topic))


class SyncFlow(Workflow):
    llm: Any = None

    @step
    def only(self, event: StartEvent) -> StopEvent:
        return StopEvent(result=self.llm.predict(QUESTION, topic=event.topic))


@pytest.mark.parametrize(
    ("kind", "parents"),
    [(Flow, ["Flow.begin", "ScriptedLLM.apredict"]), (SyncFlow, ["ScriptedLLM.predict"])],
)
def test_workflows_have_the_tree_of_autolog(
    trace_like_autologs: Any, scripted: Any, kind: Any, parents: list[str]
) -> None:
    def make() -> Callable[[], Any]:
        flow = kind()
        flow.llm = scripted("Fine.")
        return synchronous(lambda: flow.run(topic="POML"))

    trace = trace_like_autologs(make)
    assert [parent(trace, span) for span in poml_spans(trace)] == parents


def test_concurrent_runs_of_one_workflow_are_separate_traces(traced: Any, scripted: Any) -> None:
    flow = Flow()
    flow.llm = scripted("Fine.")

    async def runs() -> list[Any]:
        return await asyncio.gather(*(flow.run(topic=topic) for topic in "abc"))

    with PomlCallbackHandler():
        traces = traced(lambda: asyncio.run(runs()))
    assert len(traces) == 3
    assert len({tree(trace) for trace in traces}) == 1
    for trace in traces:
        (topic,) = {span.inputs["context"]["topic"] for span in poml_spans(trace)}
        assert trace.data.spans[0].inputs["topic"] == topic


class Failing(Workflow):
    @step
    async def only(self, event: StartEvent) -> StopEvent:
        raise ValueError("broken")


class Slow(Workflow):
    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.started = asyncio.Event()

    @step
    async def only(self, event: StartEvent) -> StopEvent:
        self.started.set()
        await asyncio.sleep(3600)
        return StopEvent()


def test_a_workflow_that_fails_is_an_error_up_to_the_root(trace_like_autologs: Any) -> None:
    def make() -> Callable[[], Any]:
        def call() -> None:
            with pytest.raises(ValueError, match="broken"):
                synchronous(lambda: Failing().run())()

        return call

    trace = trace_like_autologs(make)
    assert "ERROR" in tree(trace).splitlines()[0]
    assert span_named(trace, "Failing.only").events[0].attributes["exception.message"] == "broken"


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_a_workflow_that_does_not_finish_ends_its_trace(trace_like_autologs: Any, how: str) -> None:
    async def cancelled() -> None:
        workflow = Slow()
        running = workflow.run()
        await workflow.started.wait()
        await running.cancel_run()

    async def too_late() -> None:
        with pytest.raises(Exception, match="timed out"):
            await Slow(timeout=0.05).run()

    trace_like_autologs(lambda: synchronous(cancelled if how == "cancelled" else too_late))


def test_a_failed_render_is_an_error_up_to_the_root(
    traced: Any, scripted: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "broken.poml"
    file.write_text("<poml>\n  <p>{{topic.nothing.here}}</p>\n</poml>")
    prompt = PomlPromptTemplate.from_file(file, name="broken")

    def call() -> None:
        with pytest.raises(RenderError):
            scripted("Fine.").predict(prompt, topic="POML")

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert tree(trace) == "ScriptedLLM.predict LLM ERROR\n  poml broken PROMPT ERROR"
    (span,) = poml_spans(trace)
    assert (span.attributes["poml.error.line"], span.attributes["poml.error.file"]) == (2, str(file))
    assert span.status.description == span.attributes["poml.error"] == trace.data.spans[0].status.description


def test_a_model_that_fails_is_an_error_with_its_message(traced: Any, scripted: Any) -> None:
    def call() -> None:
        with pytest.raises(ConnectionError):
            scripted(ConnectionError("no model")).complete("Hello")

    with PomlCallbackHandler():
        (trace,) = traced(call)
    assert tree(trace) == "ScriptedLLM.complete LLM ERROR"
    assert trace.data.spans[0].status.description == "no model"
    assert trace.data.spans[0].events[0].attributes["exception.type"] == "ConnectionError"
