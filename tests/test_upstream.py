"""docs/upstream.md: each workaround has a marker in the source and a test; each report still shows what it reports.

When a test "…still…" fails, the library has changed: remove the row of docs/upstream.md and the workaround.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.programs import run_program
from tests.registry_prompts import optimise_prompt

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
MOST_ROWS = 50
REPORTS = re.findall(r"^### (.+?)\n.*?```python\n(.*?)# (.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)


def rows() -> list[list[str]]:
    table = PAGE.split("<!-- workarounds -->")[1].split("<!-- /workarounds -->")[0]
    return [[cell.strip(" `") for cell in line.strip("| ").split(" | ")] for line in table.strip().splitlines()[2:]]


def markers() -> Counter[tuple[str, str]]:
    """How many workarounds each file of the source has for each library."""
    found: Counter[tuple[str, str]] = Counter()
    for file in sorted((ROOT / "src").rglob("*")):
        if file.suffix in {".py", ".cjs"}:
            text = file.read_text(encoding="utf-8")
            path = file.relative_to(ROOT / "src" / "pomlflow").as_posix()
            found.update((path, library) for library in re.findall(r"\bupstream: (\S+) \d", text))
    return found


def test_each_workaround_has_a_row_and_each_row_a_test() -> None:
    in_rows = Counter((file, library) for library, _, _, file, _ in rows())
    assert in_rows.keys() == markers().keys()
    assert markers() <= in_rows  # one marker may have several rows
    assert len(rows()) <= MOST_ROWS
    for *_, test in rows():
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


@pytest.mark.parametrize(("code", "printed"), [pytest.param(code, end, id=title) for title, code, end in REPORTS])
def test_a_report_still_holds(code: str, printed: str, empty_store: Path, tmp_path: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_ID"},  # of another test
        "MLFLOW_TRACKING_URI": f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = run_program(code, folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == printed


def test_there_are_reports() -> None:
    """With an empty list, the test above would pass."""
    assert len(REPORTS) == PAGE.count("\n### ")


def test_langchains_configurable_model_still_has_no_public_class() -> None:
    from langchain.chat_models import init_chat_model

    assert type(init_chat_model(configurable_fields=("model",))).__name__ == "_ConfigurableModel"


def test_mlflow_still_warns_when_its_tracer_is_imported() -> None:
    code = "import mlflow.langchain.langchain_tracer"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert "Any type hint is inferred as AnyType" in done.stderr


def test_mlflows_client_still_retries_for_minutes() -> None:
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR, MLFLOW_HTTP_REQUEST_MAX_RETRIES

    factor, retries = MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.default, MLFLOW_HTTP_REQUEST_MAX_RETRIES.default
    assert sum(factor * 2**number for number in range(retries)) > 120


def test_a_version_still_shows_the_text_of_a_trial(mlflow_store: str) -> None:
    import mlflow

    version = mlflow.genai.register_prompt("trial", "<p>{{question}}</p>")
    mlflow.genai.set_prompt_alias("trial", "production", 1)
    seen = set()

    def predict(question: str) -> str:
        seen.add(version.template)
        return str(mlflow.genai.load_prompt("prompts:/trial@production").format(question=question))

    optimise_prompt("trial", predict, lambda text: text.replace("<p>", "<p>Be brief. "))
    assert seen == {"<p>{{question}}</p>", "<p>Be brief. {{question}}</p>"}


def test_mlflow_still_replaces_media_in_inputs_alone(mlflow_store: str, stored_traces: Any) -> None:
    """So that an attribute is set without the search, and a text without media needs none."""
    import mlflow

    picture = "data:image/png;base64,iVBORw0KGgo="
    with mlflow.start_span("call") as span:
        span.set_inputs({"a": picture})
        span.set_attribute("b", picture)
    (trace,) = stored_traces()
    (stored,) = trace.data.spans
    assert stored.inputs["a"].startswith("mlflow-attachment://")
    assert stored.attributes["b"] == picture


def test_mlflows_client_of_a_registry_still_opens_the_tracking_store_too(mlflow_database: str) -> None:
    from mlflow import MlflowClient

    with pytest.raises(Exception, match="unsupported"):
        MlflowClient(tracking_uri="unsupported://store", registry_uri=mlflow_database)


def test_mlflows_export_queue_still_needs_a_thread_that_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracing.export.async_export_queue import AsyncTraceExportQueue, Task

    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    exports = AsyncTraceExportQueue()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        exports.put(Task(lambda: None, [], ""))


def test_mlflow_still_has_no_type_of_spans_for_prompts() -> None:
    from mlflow.entities import SpanType

    assert not hasattr(SpanType, "PROMPT")
