"""Many processes with one server on PostgreSQL: no trace is lost, one version, one Node process each, none left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
from tests.markdown import ROOT, blocks
from tests.processes import Process, started_with
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

PAGE = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
ROWS = int(os.environ.get("POMLFLOW_RAY_ROWS", "2000"))
RAY = {
    "RAY_AUTH_MODE": "disabled",  # else it writes a token into the user's home
    "RAY_agent_register_timeout_ms": "200000",  # on a busy machine its start takes more than 30 s
    "RAY_raylet_start_wait_time_s": "200",
}


def run(command: list[str], server: str, folder: Path) -> tuple[str, Counter[int]]:
    """Return what a program printed, and how many Node processes each of its processes had at most."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, **RAY, "MLFLOW_TRACKING_URI": server, "SCALE_OUT": mark}
    most: Counter[int] = Counter()
    seen: set[Process] = set()
    with (folder / "output").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            now = started_with("SCALE_OUT", mark)
            most |= Counter(one.parent for one in now if "/node " in one.command)
            seen.update(now)
            time.sleep(0.2)
        output.seek(0)
        printed = output.read()
    assert process.returncode == 0, printed
    until(lambda: not [one for one in seen if one.is_running], 60)
    return printed, most


def stored(experiment: str) -> Counter[tuple[str, str]]:
    """The state and the links of all traces of an experiment, counted."""
    found = mlflow.get_experiment_by_name(experiment)
    assert found is not None
    traces = mlflow.search_traces(locations=[found.experiment_id], return_type="list", include_spans=False)
    return Counter((trace.info.state.value, trace.info.tags["mlflow.linkedPrompts"]) for trace in traces)


@pytest.mark.parametrize(("kind", "method"), [("executor", "spawn"), ("pool", "forkserver")])
def test_a_process_pool_loses_nothing(postgres_server, use_server, tmp_path, kind, method):
    """The program of the page, also with other start methods, and with a pool that ends its processes by SIGTERM."""
    use_server(postgres_server)
    text = next(block.text for block in blocks(PAGE) if block.title == "answers.py")
    text = text.replace('"spawn"', f'"{method}"').replace("brief answers", f"{kind} {method}")
    if kind == "pool":
        executor = text[text.index("ProcessPoolExecutor(\n") : text.index("    ) as pool")]
        text = text.replace(
            executor,
            f'multiprocessing.get_context("{method}").Pool(2, start, (mlflow.get_tracking_uri(), experiment)\n',
        )
    (tmp_path / "answers.py").write_text(text, encoding="utf-8")
    printed, most = run(["answers.py"], postgres_server.uri, tmp_path)
    assert "100 answers" in printed
    assert stored(f"{kind} {method}") == {("OK", '[{"name": "brief", "version": "1"}]'): 100}
    assert set(most.values()) == {1}


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_data_loses_nothing(postgres_server, use_server, tmp_path):
    use_server(postgres_server)
    command = [str(ROOT / "examples" / "ray_batch.py"), "--rows", str(ROWS)]
    printed, most = run(command, postgres_server.uri, tmp_path)
    assert f"{ROWS} rows, the last answer: The swell was three metres." in printed
    assert "Node processes of an actor: 1\n" in printed
    assert stored("answers") == {("OK", '[{"name": "answers", "version": "1"}]'): ROWS}
    assert set(most.values()) == {1}
