"""Run langchain-core's own unit tests three times: without a handler, with MLflow's own tracer, and with ours.

They come out of the source distribution of the installed version, and are no part of this project's tests:
``make langchain-core`` installs what they need into an environment of its own. The program ends with 1 if a test fails
twice with our handler that does not fail with MLflow's tracer, or if our handler leaves a span active.

The same file is the pytest plugin that adds the handler to every run, through LangChain's own configure hook.
"""

from __future__ import annotations

import argparse
import contextvars
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HANDLERS = ("none", "mlflow", "pomlflow")
HANDLER, REPORT = "LANGCHAIN_CORE_HANDLER", "LANGCHAIN_CORE_REPORT"
_outcomes: dict[str, str] = {}
_left: list[str] = []


def unpack(folder: Path) -> Path:
    """Download and unpack the source distribution; return the folder of its unit tests."""
    name = f"langchain-core=={version('langchain-core')}"
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, name], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (tests,) = folder.glob("*/tests/unit_tests")
    return tests


def run(tests: Path, handler: str, chosen: list[str]) -> dict[str, Any]:
    """Run the tests with a handler; return the failure of each (empty if it passed) and which left a span active."""
    root = tests.parents[1]
    report, log = root / f"{handler}.json", root / f"{handler}.log"
    environment = {
        **os.environ,
        HANDLER: handler,
        REPORT: str(report),
        "LANGSMITH_TRACING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / handler}.db",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    options = ["-q", "-p", Path(__file__).stem, "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(chosen or [str(tests)])]
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(command, cwd=root, env=environment, check=False, stdout=output, stderr=output)
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def failures(result: dict[str, Any]) -> dict[str, str]:
    return {test: message for test, message in result["outcomes"].items() if message}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--handler", choices=HANDLERS, action="append", help="only these")
    parser.add_argument("tests", nargs="*", help="files or folders below tests/unit_tests; all without")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        tests = unpack(Path(folder))
        chosen = [str(tests / name) for name in options.tests]
        for handler in options.handler or HANDLERS:
            result = results[handler] = run(tests, handler, chosen)
            failed, left = failures(result), result["left"]
            print(f"{handler}: {len(result['outcomes'])} tests, {len(failed)} failed, {len(left)} left a span active")
        others = failures(results["mlflow"]) if "mlflow" in results else {}
        worse = [test for test in failures(results.get("pomlflow", {"outcomes": {}})) if test not in others]
        if worse:  # some compare times: again, and on their own
            again = failures(run(tests, "pomlflow", [str(tests.parents[1] / test) for test in worse]))
            print(
                f"{len(worse)} failed with our handler alone, {len(again)} of them again:", *again.items(), sep="\n  "
            )
            worse = list(again)
    left = results.get("pomlflow", {"left": []})["left"]
    print(*(f"left a span active: {test}" for test in left), sep="\n")
    return 1 if worse or left else 0


# --- the plugin


class _Hook:
    """A handler in the place of LangChain's context variable, so that every thread and task has it."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def get(self) -> Any:
        return self._handler


def pytest_configure() -> None:
    import blockbuster

    # It refuses blocking calls below langchain-core, such as those of any tracer that is called inline.
    blockbuster.blockbuster_ctx = _no_blockbuster
    handler = os.environ[HANDLER]
    if handler == "none":
        return
    from langchain_core.tracers.context import register_configure_hook

    if handler == "mlflow":
        from mlflow.langchain.langchain_tracer import MlflowLangchainTracer

        made: Any = MlflowLangchainTracer()
    else:
        from pomlflow.langchain import PomlCallbackHandler

        made = PomlCallbackHandler(register=False)
    hook: Any = _Hook(made)
    register_configure_hook(hook, inheritable=True)
    from langchain_core.language_models import FakeListChatModel

    FakeListChatModel(responses=["Hi"]).invoke("Hello")


@contextmanager
def _no_blockbuster(*_: Any, **__: Any) -> Iterator[Any]:
    yield SimpleNamespace(functions=_AnyFunction())


class _AnyFunction(dict[str, Any]):
    def __missing__(self, _: str) -> Any:
        return self

    def can_block_in(self, *_: Any) -> _AnyFunction:
        return self


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run each test in a context of its own, and see what is active at its end."""
    if os.environ[HANDLER] == "none":
        return (yield)
    import mlflow

    result = yield
    if mlflow.get_current_active_span() is not None:
        _left.append(item.nodeid)
        for variable, value in contextvars.copy_context().items():
            if "current_context" in variable.name:
                variable.set(type(value)())
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        _outcomes[report.nodeid] = str(getattr(crash, "message", report.longrepr)).split("\n", 1)[0] or "failed"
    else:
        _outcomes.setdefault(report.nodeid, "")


def pytest_sessionfinish() -> None:
    Path(os.environ[REPORT]).write_text(json.dumps({"outcomes": _outcomes, "left": _left}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
