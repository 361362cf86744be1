"""The cost of `bind_to`, compared with a model with the same arguments bound by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from measure import Row, interleaved

MARKUP = """\
<poml>
  <runtime temperature="0.2" max-tokens="300" stop-sequences='["END"]'/>
  <tool-definition name="weather" description="The weather.">
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
  </tool-definition>
  <output-schema>{"type": "object", "properties": {"sky": {"type": "string"}}, "required": ["sky"]}</output-schema>
  <human-msg>Hello {{name}}</human-msg>
</poml>
"""


def bound_models() -> Iterator[Row]:
    """For each framework the difference of two calls that send the same."""
    yield from _langchain()
    yield from _llama_index()


def _langchain() -> Iterator[Row]:
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from pomlflow.langchain import PomlPromptTemplate

    sent: list[dict[str, Any]] = []

    class Model(FakeListChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

        def _call(self, *args: Any, **kwargs: Any) -> str:
            sent[:] = [{name: kwargs[name] for name in kwargs if name != "run_manager"}]
            return "ok"

    model = Model(responses=["ok"])
    prompt = PomlPromptTemplate.from_template(MARKUP)
    value, poml = prompt.invoke({"name": "Ada"}), prompt.bind_to(model).last
    poml.invoke(value)
    (arguments,) = sent
    hand = model.bind(**arguments)
    # Without the render, which is the same on both sides and ten times as long.
    taken = interleaved({"poml": lambda: poml.invoke(value), "hand": lambda: hand.invoke(value)}, rounds=15, times=300)
    yield _row("LangChain", taken)


def _llama_index() -> Iterator[Row]:
    from llama_index.core.llms import ChatResponse, MockLLM
    from llama_index.core.llms.callbacks import llm_chat_callback
    from llama_index.core.llms.mock import MockFunctionCallingLLM

    from pomlflow.llama_index import PomlPromptTemplate
    from pomlflow.llama_index.binding import PomlLLM

    class Model(MockFunctionCallingLLM):
        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            sent[:] = messages, kwargs
            return answer

    class Fixed(PomlPromptTemplate):
        def render(self, *_: Any, **__: Any) -> Any:
            return rendered

    sent: list[Any] = []
    answer = MockLLM(is_chat_model=True, max_tokens=1).chat([])
    model = Model(is_chat_model=True)
    prompt = PomlPromptTemplate(MARKUP)
    rendered = prompt.render({"name": "Ada"})
    bound = PomlLLM(Fixed(MARKUP), model)
    bound.chat(name="Ada")
    messages, options = sent
    work = {"poml": lambda: bound.chat(name="Ada"), "hand": lambda: model.chat(messages, **options)}
    yield _row("LlamaIndex", interleaved(work, rounds=15, times=300))


def _row(framework: str, taken: dict[str, list[float]]) -> Row:
    poml, hand = statistics.median(taken["poml"]), statistics.median(taken["hand"])
    over = statistics.median(a - b for a, b in zip(taken["poml"], taken["hand"], strict=True))
    return (
        f"{framework}: a model's call through `bind_to`, with a tool, a schema and settings",
        f"{poml:.3f} ms",
        f"{over:+.3f} ms over the same arguments by hand ({hand:.3f})",
    )
