"""The cost of a POML prompt in a request to `mlflow models serve`, compared with LangChain's own prompt.

python tests/benchmarks/served.py [requests]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", POMLFLOW_MAX_WORKERS="1")

sys.path.insert(0, str(Path(__file__).parents[2]))

import mlflow
from tests.mlflow_server import free_port

import pomlflow

MODEL = """
from importlib.resources import files
import mlflow
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from pomlflow.langchain import PomlPromptTemplate, autolog

{}
mlflow.models.set_model(prompt | FakeListChatModel(responses=["On the second shelf."]))
"""
PROMPTS = {
    "ChatPromptTemplate": """
mlflow.langchain.autolog()
prompt = ChatPromptTemplate([("system", "You answer the customers of a bookshop."), ("human", "{question}")])
""",
    "POML": """
autolog()
prompt = PomlPromptTemplate.from_file(files("shop") / "support.poml")
""",
}
MARKUP = """<poml>
  <system-msg>You answer the customers of a bookshop.</system-msg>
  <human-msg>{{question}}</human-msg>
</poml>"""


def main() -> None:
    """Log both models, serve both, send requests to both alternately, and print the times of a request."""
    requests = int(sys.argv[1]) if sys.argv[1:] else 300
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{(Path(folder) / 'mlflow.db').as_posix()}")
        os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
        Path("shop").mkdir()
        Path("shop/__init__.py").touch()
        Path("shop/support.poml").write_text(MARKUP, encoding="utf-8")
        sys.path.insert(0, folder)
        urls = {name: _served(name, code, stack) for name, code in PROMPTS.items()}
        times: dict[str, list[float]] = {name: [] for name in urls}
        for number in range(requests + 20):
            for name, url in urls.items():
                begin = time.perf_counter()
                _request(url)
                if number >= 20:  # the first ones start Node and register the prompt
                    times[name].append((time.perf_counter() - begin) * 1000)
        for name, taken in times.items():
            print(
                f"{name:<20} median {statistics.median(taken):6.2f} ms, 95 % {sorted(taken)[-requests // 20]:6.2f} ms"
            )
        ours, theirs = statistics.median(times["POML"]), statistics.median(times["ChatPromptTemplate"])
        print(f"POML adds {ours - theirs:.2f} ms to a request ({requests} requests each, in turns)")


def _served(name: str, code: str, stack: ExitStack) -> str:
    script = Path(f"{name}.py")
    script.write_text(MODEL.format(code), encoding="utf-8")
    arguments: dict[str, Any] = {"code_paths": pomlflow.packaged("shop")["code_paths"], "pip_requirements": []}
    model = mlflow.langchain.log_model(str(script), name=name.lower(), **arguments)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    command += ["--model-uri", model.model_uri]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    url, deadline = f"http://127.0.0.1:{port}/invocations", time.monotonic() + 200
    while True:
        try:
            _request(url)
        except OSError:
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.2)
        else:
            return url


def _request(url: str) -> None:
    body = json.dumps({"inputs": [{"question": "Where is Emma?"}]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"})) as answer:
        answer.read()


if __name__ == "__main__":
    main()
