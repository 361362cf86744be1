"""MLflow's pages of the examples' traces, in headless Chromium without the network.

    POMLFLOW_SCREENSHOTS=docs/images make integration

writes the pictures of the docs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.markdown import ROOT
from tests.mlflow_server import MlflowServer

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

WAIT = 60_000  # milliseconds until something is shown, on a busy machine
OPTIONS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
# MLflow's introductions, which would cover the page
VISITED = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.detectIssues.guidanceShown_v1": "true",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    """A server on a store with the traces of two examples."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(empty_store, folder / "mlflow.db")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    for example in ("langchain_chain.py", "conversation.py"):
        subprocess.run(
            [sys.executable, ROOT / "examples" / example], cwd=folder, env=environment, check=True, capture_output=True
        )
    with MlflowServer(folder, f"sqlite:///{folder / 'mlflow.db'}") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: MlflowServer) -> Iterator[Any]:
    """An empty page of a browser that reaches the server alone."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(WAIT)
    context.route(lambda url: not url.startswith((server.uri, "data:", "blob:")), lambda route: route.abort())
    for name, value in VISITED.items():
        context.add_init_script(f"localStorage.setItem('{name}', '{value}')")
    yield context.new_page()
    context.close()


@pytest.fixture
def open_experiment(page: Any, server: MlflowServer) -> Iterator[Callable[..., None]]:
    """Show the traces of an experiment, or the newest of them."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)

    def show(name: str, query: str = "", *, newest: bool = False) -> None:
        experiment = mlflow.get_experiment_by_name(name)
        assert experiment is not None
        if newest:
            found = mlflow.search_traces(
                locations=[experiment.experiment_id], max_results=1, return_type="list", include_spans=False
            )
            query = f"selectedEvaluationId={found[0].info.trace_id}"
        page.goto(f"{server.uri}/#/experiments/{experiment.experiment_id}/traces?{query}")

    yield show
    mlflow.set_tracking_uri(before)


def see(page: Any, *texts: str) -> None:
    """Wait until all texts are shown, each after the one before."""
    playwright.expect(page.locator("body")).to_contain_text(re.compile(".*".join(map(re.escape, texts)), re.DOTALL))


def take_picture(page: Any, name: str, height: int = 700) -> None:
    """Write a picture for the docs if POMLFLOW_SCREENSHOTS names a folder."""
    if folder := os.environ.get("POMLFLOW_SCREENSHOTS"):
        page.set_viewport_size({"width": 1400, "height": height})
        page.screenshot(path=ROOT / folder / name)


def see_picture(page: Any) -> None:
    """Wait until the picture of a message is loaded."""
    picture = page.locator("img[src^='data:image'], img[src^='blob:'], img[src*='attachment']").last
    picture.scroll_into_view_if_needed()
    page.wait_for_function("picture => picture.naturalWidth > 100", arg=picture.element_handle())


def test_a_span_reads_as_a_chat_with_roles_tool_calls_picture_and_tools(page, open_experiment):
    open_experiment("conversations", newest=True)
    page.get_by_text("poml prompts.watch").first.click()
    see(page, "Outputs", "System", "You answer the watch", "User", "May we land at station 2?")
    see(page, "Assistant", "Tool calls", "forecast", "station", "Wind under 10 knots", "Assistant", "Yes: the wind")
    see(page, "User", "Why was there no sampling?", "Assistant", "Because of three metres", "User", "When did winch")
    see(page, "tools", "name: forecast", "description", "The wind at a station, by hour.")
    see_picture(page)
    take_picture(page, "conversation.png", 2000)


def test_the_linked_prompt_leads_to_the_version_and_from_there_to_its_traces(page, open_experiment):
    open_experiment("briefings", newest=True)
    page.get_by_text("poml prompts.briefing").first.click()
    see(page, "System", "You brief the crew", "User", "Why was there no sampling on day 3?")
    see_picture(page)
    take_picture(page, "trace.png", 1700)
    page.get_by_text("RunnableSequence").first.click()
    page.get_by_text("1 linked prompt").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="prompts.briefing").click()
    page = opened.value
    see(page, "Viewing version 1", "POML from prompts/briefing.poml", "Temperature: 0.2", "You brief the crew")
    take_picture(page, "version.png")
    page.get_by_text("Traces", exact=True).last.click()
    see(page, "Trace ID", "tr-", "Why was there no sampling on day 3?", "They stopped winch work")
    take_picture(page, "version-traces.png")


def test_the_turns_of_a_session_are_grouped(page, open_experiment):
    open_experiment("conversations", "groupBy=session")
    see(page, "Session", "watch-3", "At noon.")
    page.locator("tr, [role=row]").filter(has_text="watch-3").get_by_role("button").first.click()
    for question in ("Where were we on day 3?", "Why was there no sampling?", "When did winch work stop?"):
        see(page, "watch-3", question)
    take_picture(page, "sessions.png", 500)
