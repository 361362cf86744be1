"""`pomlflow.autolog`: the traces of plain renders and of poml's own function."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import openai
import poml
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from tests.model_server import ModelServer, model_server
from tests.programs import run_program
from tests.spans import poml_span
from tests.templates import HELLO

import pomlflow

Fetch = Callable[[], list[Trace]]
ADA = [{"speaker": "human", "content": "Hello Ada"}]
RUN = poml.api.run


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    pomlflow.autolog(disable=True)
    assert poml.api.run is RUN


@pytest.fixture
def prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt's file in the working folder, with a unique name."""
    monkeypatch.chdir(tmp_path)
    file = f"greet_{tmp_path.name}.poml"
    Path(file).write_text(HELLO, encoding="utf-8")
    return file


def tree(trace: Trace) -> list[str]:
    """Return the path of names to each span, in the order of their starts."""
    spans = sorted(trace.data.spans, key=lambda span: span.start_time_ns)
    names: dict[str | None, str] = {None: ""}
    for span in spans:
        names[span.span_id] = f"{names[span.parent_id]}/{span.name}"
    return [names[span.span_id] for span in spans]


def trees(fetch: Fetch) -> list[list[str]]:
    pomlflow.flush()
    return [tree(trace) for trace in fetch()]


def test_a_render_is_a_trace_outside_of_spans_and_a_child_in_one(stored_traces: Fetch, prompt: str) -> None:
    pomlflow.autolog()
    assert pomlflow.poml(prompt, {"name": "Ada"}) == ADA
    with mlflow.start_span("job"):
        pomlflow.render(Path(prompt), {"name": "Ada"})
    name = prompt.removesuffix(".poml")
    assert trees(stored_traces) == [["/poml"], ["/job", f"/job/poml {name}"]]
    root, child = map(poml_span, stored_traces())
    assert root.inputs == child.inputs == {"prompt": HELLO, "context": {"name": "Ada"}, "stylesheet": None}
    assert root.outputs == {"messages": [{"role": "user", **ADA[0]}]}
    found = mlflow.search_traces(
        locations=[stored_traces()[0].info.experiment_id], filter_string=f"prompt = '{name}/1'", return_type="list"
    )
    assert len(found) == 2


UNREGISTERED = """\
import sys, mlflow, pomlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment(experiment_id=sys.argv[2])
pomlflow.autolog(register=False)
pomlflow.poml("<p>Hello</p>")
assert pomlflow.flush()
print(len(mlflow.search_traces(locations=[sys.argv[2]], return_type="list")))
"""


def test_flush_stores_traces_without_registered_prompts(
    mlflow_store: str, mlflow_database: str, tmp_path: Path
) -> None:
    done = run_program(UNREGISTERED, mlflow_database, mlflow_store, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_the_function_of_poml_is_traced_and_unchanged(stored_traces: Fetch, prompt: str) -> None:
    pomlflow.autolog()
    assert poml.poml(prompt, context={"name": "Ada"}) == ADA
    assert poml.api.poml(prompt, {"name": "Ada"}, format="openai_chat") == {
        "messages": [{"role": "user", "content": "Hello Ada"}]
    }
    assert trees(stored_traces) == [["/poml"], ["/poml"]]


def test_the_builder_and_the_template_of_poml_are_traced(stored_traces: Fetch) -> None:
    """Both modules hold a reference to poml's function from before autolog."""
    from poml.integration.langchain import LangchainPomlTemplate

    pomlflow.autolog()
    with poml.Prompt() as builder, builder.paragraph():
        builder.text("Hello Ada")
    assert builder.render() == ADA
    template = LangchainPomlTemplate.from_template("<p>Hello Ada</p>")
    assert template.format().to_string() == "Human: Hello Ada"
    assert trees(stored_traces) == [["/poml"], ["/poml"]]


def test_another_call_sets_new_options(stored_traces: Fetch, prompt: str) -> None:
    pomlflow.autolog()
    ours = poml.api.run
    pomlflow.autolog()
    assert poml.api.run is ours
    poml.poml(prompt, {"name": "Ada"})
    pomlflow.autolog(register=False, mask=lambda content: {"inputs": sorted(content["inputs"])})
    poml.poml(prompt, {"name": "Ada"})
    assert trees(stored_traces) == [["/poml"], ["/poml"]]
    first, second = stored_traces()
    assert "mlflow.linkedPrompts" in first.info.tags
    assert "mlflow.linkedPrompts" not in second.info.tags
    assert (poml_span(second).inputs, poml_span(second).outputs) == (["context", "prompt", "stylesheet"], None)


def test_disable_restores_everything(stored_traces: Fetch) -> None:
    filters = list(logging.getLogger("pomlflow").filters)
    pomlflow.autolog(silent=True)
    assert poml.api.run is not RUN
    pomlflow.autolog(disable=True)
    pomlflow.autolog(disable=True)
    assert poml.api.run is RUN
    assert logging.getLogger("pomlflow").filters == filters
    pomlflow.render(HELLO, {"name": "Ada"})
    assert poml.poml(HELLO, {"name": "Ada"}) == ADA
    assert trees(stored_traces) == []


def test_changing_a_result_does_not_change_its_span_or_version(
    stored_traces: Fetch, tmp_path: Path, monkeypatch: Any
) -> None:
    """Span and version hold what was rendered, even if they are stored after the change."""
    from pomlflow.tracking.background import worker

    later: list[Any] = []
    monkeypatch.setattr(worker, "submit", lambda task, **_: later.append(task) or True)
    pomlflow.autolog()
    markup = "<poml><runtime temperature='0.5'/><p>Hello</p></poml>"
    name = f"changed-{tmp_path.name}"
    frame = pomlflow.render(markup, name=name, format="dict")
    frame["runtime"]["temperature"] = 2
    frame["messages"][0]["content"] = "Bye"
    monkeypatch.undo()
    for task in later:
        worker.submit(task)
    pomlflow.flush()
    assert mlflow.genai.load_prompt(f"prompts:/{name}/1").model_config == {"temperature": 0.5}
    (trace,) = stored_traces()
    assert poml_span(trace).outputs["messages"][0]["content"] == "Hello"


def test_a_failed_render_is_an_error_span(stored_traces: Fetch) -> None:
    pomlflow.autolog()
    with pytest.raises(RuntimeError, match="missing"):
        poml.poml("<p>{{missing}}</p>")
    (trace,) = stored_traces()
    assert poml_span(trace).status.status_code.value == "ERROR"
    assert "missing" in poml_span(trace).attributes["poml.error"]


def test_tasks_and_threads_have_their_own_parent_spans(stored_traces: Fetch) -> None:
    async def work(name: str) -> None:
        with mlflow.start_span(name):
            await asyncio.sleep(0)
            await pomlflow.arender(HELLO, {"name": name})

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    def alone(name: str) -> None:
        with mlflow.start_span(name):
            poml.poml(HELLO, {"name": name})

    pomlflow.autolog()
    asyncio.run(both())
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(alone, "cdef"))
    assert sorted(trees(stored_traces)) == [[f"/{name}", f"/{name}/poml"] for name in "abcdef"]
    for trace in stored_traces():
        assert poml_span(trace).inputs["context"] == {"name": trace.data.spans[0].name}


def test_log_traces_false_still_uses_our_engine(stored_traces: Fetch, tmp_path: Path) -> None:
    pomlflow.autolog(log_traces=False, trace_dir=tmp_path / "runs")
    assert poml.api.run is not RUN
    assert poml.poml(HELLO, {"name": "Ada"}) == ADA
    assert trees(stored_traces) == []
    (markup,) = tmp_path.glob("runs/*/0001.poml")
    assert markup.read_text(encoding="utf-8") == HELLO


def test_options_of_the_command_line_are_passed_to_poml(stored_traces: Fetch) -> None:
    pomlflow.autolog()
    assert poml.poml(HELLO, {"name": "Ada"}, format="raw", extra_args=["--prettyPrint", "true"]) == (
        "===== human =====\n\nHello Ada"
    )
    assert trees(stored_traces) == []


def test_invalid_arguments_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(pomlflow.ConfigurationError, match="mask must be a function, not a str"):
        pomlflow.autolog(mask="hidden")  # type: ignore[arg-type]
    with pytest.raises(pomlflow.ConfigurationError, match="trace_dir: cannot make a folder in"):
        pomlflow.autolog(trace_dir=file / "runs")
    assert poml.api.run is RUN


def test_silent_suppresses_warnings(caplog: pytest.LogCaptureFixture) -> None:
    pomlflow.autolog(silent=True)
    logging.getLogger("pomlflow").warning("suppressed")
    assert caplog.records == []


# --- with other tracers ---


@pytest.fixture
def client() -> Iterator[tuple[openai.OpenAI, ModelServer]]:
    with (
        model_server() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, server


STEPS: dict[str, Callable[[], Any]] = {
    "pomlflow": pomlflow.autolog,
    "openai": lambda: mlflow.openai.autolog(silent=True),
    "langchain": lambda: mlflow.langchain.autolog(silent=True),
    "set_trace": lambda: poml.set_trace("mlflow", trace_dir="pomlruns"),
}


@pytest.fixture
def _others_off() -> Iterator[None]:
    poml.clear_trace()
    yield
    poml.set_trace(False)
    poml.clear_trace()
    mlflow.openai.autolog(disable=True, silent=True)
    mlflow.langchain.autolog(disable=True, silent=True)


# Each order of any three of them is in one of these.
ORDERS = [
    "langchain openai pomlflow set_trace",
    "openai langchain set_trace pomlflow",
    "set_trace openai pomlflow langchain",
    "set_trace langchain pomlflow openai",
    "pomlflow openai set_trace langchain",
    "pomlflow langchain set_trace openai",
]


@pytest.mark.usefixtures("_others_off")
@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_the_integrations_does_not_matter(
    stored_traces: Fetch, prompt: str, client: tuple[openai.OpenAI, ModelServer], order: str
) -> None:
    for step in order.split():
        STEPS[step]()
    name = prompt.removesuffix(".poml")
    with mlflow.start_span("explain"):
        messages = poml.poml(prompt, context={"name": "Ada"}, format="openai_chat")
        client[0].chat.completions.create(model="gpt-5", **messages)
    assert trees(stored_traces) == [["/explain", f"/explain/poml {name}", "/explain/Completions"]]
    assert client[1].messages == [{"role": "user", "content": "Hello Ada"}]
    registered = MlflowClient().search_prompts(f"name LIKE '%{name}%'")
    assert [found.name for found in registered] == [name]
    # poml's own set_trace still works.
    (entry,) = poml.get_trace()
    assert (entry["markup"], entry["result"]) == (HELLO, {"messages": ADA})
    (markup,) = Path("pomlruns").glob(f"*/0001.{name}.poml")
    assert markup.read_text(encoding="utf-8") == HELLO
    assert poml.trace_artifact("reply.txt", "Hi!") == markup.with_name(f"0001.{name}.reply.txt")


# --- imports ---

WITHOUT_TRACES = """\
import sys
import pomlflow
pomlflow.autolog(log_traces=False)
print(*{"langchain_core", "llama_index", "poml", "mlflow"} & sys.modules.keys())
pomlflow.autolog(disable=True)
import poml
print(poml.api.run.__module__)
"""


def test_without_traces_it_imports_neither_mlflow_nor_a_framework() -> None:
    """And poml, imported when it is disabled again, is as it was."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRACES], capture_output=True, text=True, check=True)
    assert done.stdout == "\npoml.cli\n"


LATER = """\
import sys
import pomlflow
pomlflow.autolog()
assert not {"langchain_core", "llama_index", "poml"} & sys.modules.keys()
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment(experiment_id=sys.argv[2])
import poml
from langchain_core.runnables import RunnableLambda
RunnableLambda(lambda name: poml.poml("<p>Hello {{name}}</p>", {"name": name})).invoke("Ada")
from llama_index.core.llms import MockLLM
MockLLM().complete("Hello")
assert pomlflow.flush()
"""


def test_frameworks_that_are_imported_later_are_traced_from_their_first_call(
    stored_traces: Fetch, mlflow_store: str, mlflow_database: str
) -> None:
    """Even a call without a POML prompt."""
    pytest.importorskip("llama_index.core")
    subprocess.run([sys.executable, "-c", LATER, mlflow_database, mlflow_store], check=True)
    assert trees(stored_traces) == [["/RunnableLambda", "/RunnableLambda/poml"], ["/MockLLM.complete"]]
