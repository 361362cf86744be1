"""Compare the traces of the tests in `FILES` with recorded ones.

A test asserts what it is about. This module compares everything else: the name, type, status and parent of each span,
and the linked prompts; no attributes, inputs or outputs. The recordings are in `tests/expected_trees`, one file for
each of `FILES`; ``POMLFLOW_RECORD_TREES=1 pytest FILES`` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import textwrap
import time
from collections.abc import Iterator
from difflib import unified_diff
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace

__all__ = ["EXCLUDED", "EXPECTED", "FILES", "compare", "not_compared", "recording"]

TESTS = Path(__file__).parent
EXPECTED = TESTS / "expected_trees"
# Libraries whose versions decide what the trees are.
_COMPARED_PACKAGES = ("mlflow", "langchain-core", "langchain", "langgraph", "llama-index-core", "llama-index-workflows")
_TIMEOUT = 10.0  # seconds for what ends, or is linked, in threads that a flush does not wait for
# The test files of which each test that uses a store has its traces recorded.
FILES = {
    "adapters": ("test_autolog", "test_content", "test_registration"),
    "langchain": (
        "test_bind_to_traces",
        "test_callbacks",
        "test_callbacks_agents",
        "test_callbacks_content",
        "test_callbacks_mlflow",
        "test_callbacks_streams",
        "test_middleware_traces",
    ),
    "llama_index": (
        "test_bind_to_traces",
        "test_callbacks",
        "test_callbacks_autolog",
        "test_callbacks_content",
        "test_callbacks_models",
        "test_callbacks_registry",
        "test_callbacks_streams",
        "test_callbacks_trees",
    ),
}
# What is not compared, as ``test_name``, with the reason. All other traces were the same in three runs.
EXCLUDED = {
    "test_an_unreachable_server_loses_no_answer_and_logs_one_warning": "a flush waits for the server in vain",
}


def compare(item: pytest.Item) -> None:
    """Compare the traces in a test's experiment with the recorded ones, or record them."""
    experiment = getattr(item, "funcargs", {}).get("mlflow_store")
    file, name = _file(item), item.nodeid.partition("::")[2]
    if experiment is None or not _is_recorded(file, name) or not_compared():
        return
    if recording():
        if (traces := _settled(experiment)) is not None:
            _record(file, name, traces)
        return
    expected = _recorded(file).get(name)
    if expected is None:
        shown = file.relative_to(TESTS)
        pytest.fail(f"{shown} has no traces of this test: POMLFLOW_RECORD_TREES=1 pytest writes them", pytrace=False)
    deadline = time.monotonic() + _TIMEOUT
    while (traces := _traces(experiment)) != expected:
        if time.monotonic() > deadline:
            shown = "\n".join(unified_diff(_text(expected), _text(traces), "recorded", "now", lineterm=""))
            pytest.fail(f"the traces are not those of {file.relative_to(TESTS)}:\n{shown}", pytrace=False)
        time.sleep(0.1)


def recording() -> bool:
    """Whether trees are written instead of compared."""
    return os.environ.get("POMLFLOW_RECORD_TREES") == "1"


def _file(item: pytest.Item) -> Path:
    return EXPECTED / item.path.relative_to(TESTS).with_suffix(".json")


def _is_recorded(file: Path, name: str) -> bool:
    return file.stem in FILES.get(file.parent.name, ()) and name.partition("[")[0] not in EXCLUDED


@cache
def _recorded(file: Path) -> dict[str, list[str]]:
    """The traces of each test of a file."""
    recorded = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"tests": {}, "trees": {}}
    trees = {key: "".join(f"{line}\n" for line in lines) for key, lines in recorded["trees"].items()}
    return {name: [trees[key] for key in keys] for name, keys in recorded["tests"].items()}


def _record(file: Path, name: str, traces: list[str]) -> None:
    """Write the traces of a test: each distinct tree of a file once, under its digest, a line for each span."""
    recorded = dict(sorted({**_recorded(file), name: traces}.items()))
    _recorded.cache_clear()
    trees = {_key(tree): tree.splitlines() for traces in recorded.values() for tree in traces}
    tests = [f"  {json.dumps(name)}: {json.dumps([*map(_key, traces)])}" for name, traces in recorded.items()]
    shown = json.dumps(dict(sorted(trees.items())), indent=1).replace("\n", "\n ")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = ",\n".join(tests)
    file.write_text(f'{{\n "tests": {{\n{content}\n }},\n "trees": {shown}\n}}\n', encoding="utf-8", newline="\n")


def _key(tree: str) -> str:
    return hashlib.sha256(tree.encode()).hexdigest()[:8]


@cache
def not_compared() -> str:
    """Why no trees are compared: a library is not that of requirements.lock, but for its patch level (from 1.0 on)."""
    lock = (TESTS.parent / "requirements.lock").read_text(encoding="utf-8")
    for package in _COMPARED_PACKAGES:
        locked = re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)
        try:
            installed = version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
        if locked is None or _level(installed) != _level(locked[1]):
            return f"{package} {installed} is not the locked version"
    return ""


def _level(number: str) -> list[str]:
    parts = number.split(".")
    return parts if parts[0] == "0" else parts[:2]


def _settled(experiment: str) -> list[str] | None:
    """Return the traces once they stop changing, or None."""
    before = _traces(experiment)
    for _ in range(20):
        time.sleep(0.3)
        if (now := _traces(experiment)) == before:
            return now
        before = now
    return None


def _traces(experiment: str) -> list[str]:
    """The tree of each trace, with its prompts, in the order of their text."""
    import mlflow

    import pomlflow

    pomlflow.flush(10)
    mlflow.flush_trace_async_logging()
    found: list[Any] = mlflow.search_traces(locations=[experiment], return_type="list")
    return sorted(_without_numbers("".join(_lines(trace))) for trace in found)


def _lines(trace: Trace) -> Iterator[str]:
    spans = trace.data.spans
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)

    def lines(span: Span) -> str:
        status = span.status.status_code.value
        head = f"{span.name} {span.span_type}{'' if status == 'OK' else f' {status}'}\n"
        return head + textwrap.indent("".join(sorted(map(lines, children.get(span.span_id, [])))), "  ")

    yield from sorted(map(lines, children.get(None, [])))
    if trace.info.state.value != "OK":
        yield f"state {trace.info.state.value}\n"
    linked = {link["name"] for link in json.loads(trace.info.tags.get("mlflow.linkedPrompts", "[]"))}
    yield from (f"prompt {name}\n" for name in sorted(linked))


def _without_numbers(tree: str) -> str:
    """A tree without what differs in each run: process ids, random names, and the suffix of a name that was taken."""
    tree = re.sub(rf"{os.getpid()}", "#", tree)
    tree = re.sub(r"-[0-9a-f]{8}\b", "", tree)
    return re.sub(r"\b(?=\w*\d)[0-9a-f]{8,}\b", "#", tree)


def _text(traces: list[str]) -> list[str]:
    return [line for trace in traces for line in [*trace.splitlines(), "---"]]
