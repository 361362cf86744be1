"""README and docs: each code block runs and prints what the page says, and each link of README has a target."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from tests.markdown import ROOT, Block, blocks, links, slugs
from tests.model_server import model_server

import pomlflow
from pomlflow.cli import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_LINES = 150
STORE = "sqlite:///mlflow.db"  # pages show it, and run with an absolute path: MLflow caches stores by URI
EXIT_CODE = re.compile(r"  # exit code (\d)$")
# Pages use other packages as their users do, with whatever warnings those have; ours are errors.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::pomlflow")


def page_names() -> list[Any]:
    pages = [page for page in PAGES if page.name != "upstream.md"]  # test_upstream runs its programs
    runs = [page for page in pages if any(block.kind == "run" for block in blocks(page.read_text(encoding="utf-8")))]
    return [pytest.param(page, id=page.stem) for page in runs]


class Page:
    """A page that is run: its files are in its folder, and its blocks share their names."""

    def __init__(self, folder: Path, path: Path, names: dict[str, Any]) -> None:
        self.folder, self.path, self.names = folder, path, names
        self.store = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
        self.printed, self.error = "", ""

    def run(self, page: list[Block]) -> None:
        for block, following in zip(page, [*page[1:], None], strict=True):
            place = f"{self.path.name}:{block.line}"
            if block.kind == "file":
                file = self.folder / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text, encoding="utf-8")
            elif block.kind == "run":
                fails = following is not None and following.kind == "error"
                self.printed = self.run_block(block, fails=fails).replace(self.store, STORE)
            elif block.kind == "output":
                assert_alike(self.printed, block.text, place)
            elif block.kind == "error":
                assert_alike(self.error, block.text, place)

    def run_block(self, block: Block, *, fails: bool) -> str:
        if block.language == "sh":
            return "".join(self.run_command(line, f"{self.path.name}:{block.line}") for line in commands(block.text))
        text = block.text.replace(STORE, self.store)
        code = compile("\n" * (block.line - 1) + text, str(self.path), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if not fails:
                exec(code, self.names)
            else:
                with pytest.raises(Exception) as raised:  # noqa: PT011 - the page shows which
                    exec(code, self.names)
                self.error = str(raised.value)
        return printed.getvalue()

    def run_command(self, line: str, place: str) -> str:
        expected = EXIT_CODE.search(line)
        code = int(expected[1]) if expected else 0
        words = shlex.split(line, comments=True)
        if words[0] == "pomlflow" and not set(line) & set("|>$"):
            done = CliRunner().invoke(cli, words[1:], prog_name="pomlflow", catch_exceptions=False)
            output, returned = done.output, done.exit_code
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
            environment |= {"PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "syrupy"}
            process = subprocess.run(
                ["bash", "-c", line],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            output, returned = process.stdout, process.returncode
        assert returned == code, f"{place}: {line}\n{output}"
        return output


def commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def assert_alike(shown: str, expected: str, place: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in tidy(expected).split("…"))
    assert re.fullmatch(pattern, tidy(shown), re.DOTALL), f"{place} shows\n{expected}\nbut it is\n{shown}"


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.fixture
def names(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names that a page starts with; it has a model server, a store and a folder. All is restored afterwards."""
    import mlflow
    import poml
    from llama_index.core import Settings
    from llama_index.core.instrumentation import get_dispatcher

    # Else LlamaIndex's asyncio_run (0.14.25) makes a loop in the main thread and never closes it.
    asyncio.set_event_loop(None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    store = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    mlflow.set_experiment(experiment_id="0")  # not that of an earlier test's store
    root = get_dispatcher()
    handlers = list(root.event_handlers), list(root.span_handlers)
    with model_server() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("OPENAI_API_BASE", f"{server.url}/v1")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        yield {"__name__": "__docs__", "server": server}
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    pomlflow.autolog(disable=True)
    poml.set_trace(False)
    for library in (mlflow.openai, mlflow.langchain, mlflow.llama_index):
        library.autolog(disable=True, silent=True)
    pomlflow.flush()
    root.event_handlers, root.span_handlers = handlers
    vars(Settings).update(_llm=None, _embed_model=None, _callback_manager=None)
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


@pytest.mark.parametrize("page", page_names())
def test_the_code_of_a_page_runs(page: Path, names: dict[str, Any], tmp_path: Path) -> None:
    Page(tmp_path, page, names).run(list(blocks(page.read_text(encoding="utf-8"))))


def test_readme_is_short_and_its_links_have_targets() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    missing = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = ROOT / path if path else ROOT / "README.md"
        exists = file.exists() and (not anchor or anchor in slugs(file.read_text(encoding="utf-8")))
        missing += [] if exists else [target]
    assert missing == []


def test_each_page_is_in_the_navigation() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.md)$", configuration, re.MULTILINE))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}


def test_the_api_page_has_each_public_name_once() -> None:
    listed: list[Any] = []
    for path in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        found = pkgutil.resolve_name(path)
        listed += [getattr(found, name) for name in found.__all__] if isinstance(found, ModuleType) else [found]
    for package in ("pomlflow", "pomlflow.langchain", "pomlflow.llama_index", "pomlflow.types"):
        module = pkgutil.resolve_name(package)
        for name in set(module.__all__) - {"__version__"}:
            assert sum(one is getattr(module, name) for one in listed) == 1, f"{package}.{name}"


def test_a_page_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong output, a wrong exit code and code that raises."""
    monkeypatch.chdir(tmp_path)
    fence = "```"
    wrong: list[tuple[str, type[BaseException]]] = [
        (f'{fence}python\nprint(1)\n{fence}\n\n{fence}text title="Output"\n2\n{fence}\n', AssertionError),
        (f"{fence}sh\nexit 3\n{fence}\n", AssertionError),
        (f"{fence}python\n1 / 0\n{fence}\n", ZeroDivisionError),
    ]
    for text, error in wrong:
        with pytest.raises(error):
            Page(tmp_path, tmp_path / "page.md", {}).run(list(blocks(text)))
