"""The public event of each render, as any event handler of LlamaIndex receives it."""

from __future__ import annotations

import asyncio
import json

import pytest
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span.base import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from pydantic import Field

from pomlflow.exceptions import RenderError
from pomlflow.llama_index import PomlPromptTemplate, PomlRenderEvent

QA = "<p>{{context_str}}</p><p>{{query_str}}</p>"


class SpanRecorder(BaseSpanHandler[BaseSpan]):
    """Records the parent of each span; a span's id begins with its class and method."""

    parents: dict[str, str | None] = Field(default_factory=dict)

    def new_span(self, id_, bound_args, instance=None, parent_span_id=None, tags=None, **_):
        self.parents[id_] = parent_span_id
        return BaseSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_, bound_args, instance=None, result=None, **_):
        return None

    def prepare_to_drop_span(self, id_, bound_args, instance=None, err=None, **_):
        return None

    def ancestors(self, id_: str | None) -> list[str]:
        """Names of the span and its ancestors, innermost first."""
        found = []
        while id_ is not None:
            found.append(id_.partition("-")[0])
            id_ = self.parents[id_]
        return found


@pytest.fixture
def spans() -> SpanRecorder:
    handler = SpanRecorder()
    get_dispatcher().add_span_handler(handler)
    return handler


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["sync", "async", "thread"])
async def test_a_render_is_dispatched_in_the_span_of_its_model_call(way, streaming, index, scripted, renders, spans):
    """In a query engine the event's span is the LLM's predict, under the query.

    A streamed answer calls the model when it is read, after the query: LlamaIndex gives that span no parent.
    """
    engine = index.as_query_engine(llm=scripted(), text_qa_template=PomlPromptTemplate(QA), streaming=streaming)
    if way == "async":
        answer = await engine.aquery("why?")
    elif way == "thread":
        answer = await asyncio.to_thread(engine.query, "why?")
    else:
        answer = engine.query("why?")
    if isinstance(answer, AsyncStreamingResponse):
        assert [token async for token in answer.response_gen] == ["Fine."]
    elif isinstance(answer, StreamingResponse):
        assert list(answer.response_gen) == ["Fine."]
    (event,) = renders
    call = ("astream" if streaming else "apredict") if way == "async" else ("stream" if streaming else "predict")
    around = spans.ancestors(event.span_id)
    assert around[0] == f"ScriptedLLM.{call}"
    if not streaming:
        assert around[-1] == ("RetrieverQueryEngine.aquery" if way == "async" else "RetrieverQueryEngine.query")


async def test_concurrent_queries_dispatch_in_their_own_spans(index, scripted, renders, spans):
    """Concurrent queries in one loop: each event leads to its own query."""
    engine = index.as_query_engine(llm=scripted(), text_qa_template=PomlPromptTemplate(QA))
    await asyncio.gather(*(engine.aquery(f"q{number}") for number in range(5)))
    assert sorted(event.record.variables["query_str"] for event in renders) == [f"q{number}" for number in range(5)]
    roots = set()
    for event in renders:
        span = event.span_id
        while spans.parents[span] is not None:
            span = spans.parents[span]
        roots.add(span)
    assert len(roots) == 5


def test_a_failed_render_is_dispatched_before_it_is_raised(renders, scripted, spans):
    """The event has the error, and the span of the call that fails."""
    with pytest.raises(RenderError):
        scripted().predict(PomlPromptTemplate("<p>{{x.y.z}}</p>"), x=1)
    (event,) = renders
    assert isinstance(event.record.error, RenderError)
    assert spans.ancestors(event.span_id) == ["ScriptedLLM.predict"]


def test_an_event_can_be_serialised(renders):
    """Its JSON has the source, variables, output and times of the render."""
    PomlPromptTemplate(QA, name="qa").format(context_str="a\nb", query_str="why?")
    dumped = json.loads(renders[0].model_dump_json())
    record = dumped["record"]
    assert record["name"] == "qa"
    assert record["source"] == QA
    assert record["variables"] == {"context_str": "a\nb", "query_str": "why?"}
    assert record["output"] == {"messages": [{"speaker": "human", "content": "a\nb\n\nwhy?"}]}
    assert record["error"] is None
    assert record["start_ns"] < record["end_ns"]
    assert (dumped["span_id"], renders[0].model_dump()["class_name"]) == (None, "PomlRenderEvent")
    assert json.loads(json.dumps(renders[0].model_dump(mode="json")))["record"] == record


def test_a_failed_renders_event_holds_its_error(renders):
    with pytest.raises(KeyError):
        PomlPromptTemplate(QA).format(context_str="a")
    record = renders[0].model_dump()["record"]
    assert record["output"] is None
    assert "needs the variable query_str" in record["error"]


def test_a_failing_event_handler_does_not_affect_the_render(renders):
    """LlamaIndex hides a handler's error from the call, and from other handlers."""
    get_dispatcher().event_handlers.insert(0, _Failing())
    assert PomlPromptTemplate("<p>{{x}}</p>").format(x="a") == "a"
    assert len(renders) == 1


class _Failing(BaseEventHandler):
    def handle(self, event, **_):
        assert isinstance(event, PomlRenderEvent)
        raise RuntimeError("no")
