"""What version 0.1.0 stored: it loads, is found again by its content, keeps its links, and is replayed.

The store is made by `tests/stores/make_store.py`, with mlflow 3.12.0; here it is upgraded, as users upgrade theirs.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("mlflow")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

import mlflow
import mlflow.db
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.llms import MockLLM
from PIL import Image
from tests.registry_prompts import found_by, linked
from tests.waiting import until

import pomlflow
from pomlflow import langchain as lc
from pomlflow import llama_index as li
from pomlflow.cli import cli

STORES = Path(__file__).parent / "stores"
EXPECTED: Mapping[str, Mapping[str, Any]] = json.loads((STORES / "v0_1_0.json").read_text(encoding="utf-8"))
PLACEHOLDER = "file:///STORE"
PICTURE = (Path(__file__).parent / "corpus" / "assets" / "box.png").read_bytes()
NAME = {"name": "Ada"}
WELCOME = {"name": "Ada", "place": "Rome"}
SUPPORT = {"shop": "Acme", "question": "Why?"}
TABLE = "Returns within 14 days.\n\n\n| item | price |\n| ---- | ----- |\n| box  | 3     |\n| lid  | 1     |"
# The variables that each version is rendered with, and the texts of its messages.
VERSIONS: Mapping[str, tuple[Mapping[str, Any], list[str]]] = {
    "desk.chat/1": ({"question": "Why?"}, ["Why?"]),
    "desk.qa/1": ({"context_str": "box", "query_str": "Why?"}, ["Be brief.", "box\n\nWhy?"]),
    "media/1": ({"text": "four", "data": PICTURE}, ["4[picture]"]),
    "odd/1": ({"n": 1, "data": b"caf\xc3\xa9", "big": 2**60, "none": None}, ["1 café 1152921504606846976"]),
    "shop.greet/1": (NAME, ["Hello Ada"]),
    "shop.greet/2": (NAME, ["Hi Ada"]),
    "shop.greet/3": (NAME, ["Dear Ada"]),
    "shop.support/1": (SUPPORT, [f"You answer for Acme. \n\nBe kind.\n\n{TABLE}", "[picture]Why?"]),
    "shop.support/2": (SUPPORT, [f"You answer for Acme. \n\nBe brief.\n\n{TABLE}", "[picture]Why?"]),
    "styled/1": ({"word": "yes"}, ["# Task\n\nSay yes."]),
    "welcome/1": (WELCOME, ["# Task\n\nWelcome Ada to Rome."]),
}
# The versions whose content a template is made of again: from its file, or None for markup with a name.
CONTENTS = {"desk.chat/1": "desk/chat.poml", "desk.qa/1": "desk/qa.poml", "welcome/1": None, "odd/1": None}
CONTENTS |= {"media/1": None, "styled/1": None}
CONTENTS |= {f"shop.greet/{number}": "shop/greet.poml" for number in (1, 2, 3)}
CONTENTS |= {"shop.support/2": "shop/support.poml"}


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the store, unpacked, and upgraded to the schema of the installed MLflow."""
    folder = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(STORES / "v0_1_0.zip") as packed:
        packed.extractall(folder)
    database = sqlite3.connect(folder / "mlflow.db")
    for table, column in (("experiments", "artifact_location"), ("trace_tags", "value")):
        place = PLACEHOLDER, folder.as_uri()
        database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", place)
    database.commit()
    database.close()
    done = CliRunner().invoke(mlflow.db.commands, ["upgrade", _uri(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(autouse=True)
def store(upgraded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Set the store as MLflow's, with its prompt files in the working folder; return the id of its experiment."""
    shutil.copytree(upgraded / "prompts", tmp_path / "prompts")
    monkeypatch.chdir(tmp_path / "prompts")  # before the store: it puts the artifacts of new experiments below
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(_uri(upgraded))
    mlflow.set_registry_uri(_uri(upgraded))
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    experiment = mlflow.set_experiment("shop").experiment_id
    yield str(experiment)
    assert pomlflow.flush(30)
    monkeypatch.undo()
    mlflow.tracing.reset()
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def _uri(folder: Path) -> str:
    return f"sqlite:///{(folder / 'mlflow.db').as_posix()}"


def _in_langchain(prompt: Any, variables: Mapping[str, Any]) -> list[str]:
    return [_text(message.content) for message in prompt.invoke(dict(variables)).to_messages()]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "[picture]" for part in content)


def _in_llama_index(prompt: Any, variables: Mapping[str, Any]) -> list[str]:
    return [_block_texts(message) for message in prompt.format_messages(**variables)]


def _block_texts(message: ChatMessage) -> str:
    return "".join("[picture]" if isinstance(block, ImageBlock) else block.text for block in message.blocks)


FRAMEWORKS = pytest.mark.parametrize(
    ("module", "texts"), [(lc, _in_langchain), (li, _in_llama_index)], ids=["langchain", "llama_index"]
)


def _versions() -> dict[str, str]:
    """The digest of each version of each prompt in the store."""
    found = mlflow.MlflowClient().search_model_versions("tags.`mlflow.prompt.is_prompt` = 'true'")
    return {f"{one.name}/{one.version}": one.tags["poml_sha256"] for one in found}


def _stored_digests() -> dict[str, str]:
    return {version: stored["digest"] for version, stored in EXPECTED["versions"].items()}


def test_the_table_lists_every_stored_version_with_its_digest() -> None:
    assert set(VERSIONS) == set(EXPECTED["versions"])
    assert _versions() == _stored_digests()


# --- loading ---


@FRAMEWORKS
@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_loads_and_renders(module: Any, texts: Callable[..., list[str]], version: str) -> None:
    name, number = version.split("/")
    variables, expected = VERSIONS[version]
    prompt = module.PomlPromptTemplate.from_registry(name, version=int(number))
    assert prompt.uri == f"prompts:/{version}"
    assert texts(prompt, variables) == expected


@FRAMEWORKS
@pytest.mark.parametrize("version", [key for key, stored in EXPECTED["versions"].items() if stored["aliases"]])
def test_an_alias_loads_and_renders(module: Any, texts: Callable[..., list[str]], version: str) -> None:
    name, number = version.split("/")
    variables, expected = VERSIONS[version]
    prompt = module.PomlPromptTemplate.from_registry(f"prompts:/{name}@production")
    assert prompt.version == int(number)
    assert texts(prompt, variables) == expected


def test_a_version_contains_its_files() -> None:
    """The picture has the same pixels, without the files that it was registered from."""
    with Image.open("shop/box.png") as file:
        pixels = file.convert("RGB").tobytes()
    shutil.rmtree("shop")
    shutil.rmtree("shared")
    prompt = li.PomlPromptTemplate.from_registry("prompts:/shop.support@production")
    shown = next(block for block in prompt.format_messages(**SUPPORT)[-1].blocks if isinstance(block, ImageBlock))
    with Image.open(shown.resolve_image()) as picture:
        assert picture.convert("RGB").tobytes() == pixels


# --- the same content again ---


def _current(version: str) -> dict[str, Any]:
    """The content of a version, as a file or as named markup: the keyword arguments of a template."""
    source = _source(version)
    file = CONTENTS[version]
    if file is None:
        return {"markup": source, "name": version.split("/", maxsplit=1)[0]}
    if version.startswith("shop.greet"):
        Path(file).write_bytes(source.encode())
    assert Path(file).read_bytes() == source.encode()
    return {"file": file}


def _source(version: str) -> str:
    name, number = version.split("/")
    return str(mlflow.MlflowClient().get_prompt_version(name, number).template)


def _template(module: Any, markup: str | None = None, file: str | None = None, name: str | None = None) -> Any:
    if file is not None:
        return module.PomlPromptTemplate.from_file(file)
    return module.PomlPromptTemplate.from_template(markup, name=name)


def _render(content: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    pomlflow.autolog()
    try:
        if "file" in content:
            pomlflow.render(Path(content["file"]), variables)
        else:
            pomlflow.render(content["markup"], variables, name=content["name"])
    finally:
        pomlflow.autolog(disable=True)


def _chain(content: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    chain = _template(lc, **content) | FakeListChatModel(responses=["Hi!"])
    chain.invoke(dict(variables), {"callbacks": [lc.PomlCallbackHandler()]})


def _predict(content: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    with li.PomlCallbackHandler():
        MockLLM().predict(_template(li, **content), **variables)


@pytest.mark.parametrize("run", [_render, _chain, _predict], ids=["render", "langchain", "llama_index"])
@pytest.mark.parametrize("version", CONTENTS)
def test_the_same_content_is_the_stored_version(run: Callable[..., None], version: str) -> None:
    """No new version, and the new trace is linked to the old one."""
    before = mlflow.get_last_active_trace_id()
    experiment = mlflow.set_experiment("later").experiment_id
    run(_current(version), VERSIONS[version][0])
    assert pomlflow.flush(30)
    trace_id = mlflow.get_last_active_trace_id()
    assert trace_id not in (None, before)
    assert linked(str(trace_id)) == [version]
    until(lambda: str(trace_id) in found_by(version, experiment))  # MLflow writes the search index in its own thread
    assert _versions() == _stored_digests()


# --- traces ---


@pytest.mark.parametrize("key", EXPECTED["traces"])
def test_a_stored_trace_is_replayed(key: str) -> None:
    """The outcome of each of its renders is what 0.1.0 found when it had made the store."""
    stored = EXPECTED["traces"][key]
    replayed = [
        {
            "title": render.title,
            "path": render.path,
            "outcome": render.outcome,
            "differences": [[one.where, one.then, one.now] for one in render.differences],
        }
        for render in pomlflow.replay(stored["id"]).renders
    ]
    assert replayed == stored["renders"]


@pytest.mark.parametrize("key", ["langchain, async", "langchain, registry"])
def test_without_its_files_a_stored_trace_is_replayed_from_the_registry(key: str) -> None:
    """These spans name the version, which was known when they ended."""
    shutil.rmtree("shop")
    shutil.rmtree("shared")
    assert pomlflow.replay(EXPECTED["traces"][key]["id"]).identical


@pytest.mark.parametrize("version", EXPECTED["versions"])
def test_traces_are_found_by_linked_version(store: str, version: str) -> None:
    expected = {stored["id"] for stored in EXPECTED["traces"].values() if version in stored["links"]}
    assert found_by(version, store) == expected != set()
    assert all(linked(trace) == [version] for trace in expected)


# --- the command line ---


@pytest.mark.parametrize(("version", "code"), [(1, 1), (3, 0)])
def test_the_command_line_compares_with_a_stored_version(version: int, code: int) -> None:
    assert CliRunner().invoke(cli, ["diff", "shop/greet.poml", f"prompts:/shop.greet/{version}"]).exit_code == code


def test_the_command_line_has_nothing_to_register() -> None:
    """The prompts' folders are as they were."""
    assert CliRunner().invoke(cli, ["register", "shop", "desk"]).exit_code == 0
    assert _versions() == _stored_digests()
