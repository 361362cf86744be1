"""What is registered can be loaded again, whole and checked; on a real SQLite store."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.mlflow_server import DEAD
from tests.templates import sha, write

import pomlflow
from pomlflow.exceptions import ConfigurationError, NotPomlError, PromptNotFoundError, RegistryError
from pomlflow.record import PromptFile
from pomlflow.template import Template
from pomlflow.tracking.bundle import pack, unpack
from pomlflow.tracking.load import Reference, load
from pomlflow.tracking.versions import register

pytestmark = pytest.mark.usefixtures("mlflow_store")


def register_by_mlflow(name: str, template: Any, **tags: str) -> str:
    """Register a version by MLflow itself; return its URI."""
    return str(mlflow.genai.register_prompt(name, template, tags=tags).uri)


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        (("a.b_c-d",), "prompts:/a.b_c-d@latest"),
        (("a", 3), "prompts:/a/3"),
        (("a", "3"), "prompts:/a/3"),
        (("a", None, "production"), "prompts:/a@production"),
        (("prompts:/a/3",), "prompts:/a/3"),
        (("prompts:/a@production",), "prompts:/a@production"),
        (("prompts:/a@latest",), "prompts:/a@latest"),
        (("prompts:/a",), "prompts:/a@latest"),
    ],
)
def test_a_version_is_named_as_mlflow_names_it(given: tuple[Any, ...], uri: str) -> None:
    assert Reference.of(*given).uri == uri


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", 3, "production"), "give version= or alias=, not both"),
        (("prompts:/a/3", 3), "is a URI: write the version or alias into it"),
        (("prompts:/a@x", None, "y"), "is a URI: write the version or alias into it"),
        (("models:/a/3",), "names no prompt"),
        (("prompts:/a/b",), "names no prompt"),
        (("",), "names no prompt"),
    ],
)
def test_a_contradictory_or_invalid_reference_is_refused(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Reference.of(*given)


def test_a_registered_template_comes_back(name: str) -> None:
    template = Template("<p>Hello {{name}}</p>", name=name)
    first = register(template, alias="production")
    assert (first.is_new, first.version.uri) == (True, f"prompts:/{name}/1")
    again = register(template)
    assert (again.is_new, again.version.uri) == (False, first.version.uri)

    for version in ({}, {"version": 1}, {"alias": "production"}):
        loaded = load(name, **version)
        assert (loaded.source, loaded.digest, loaded.uri) == (template.source, template.digest, f"prompts:/{name}/1")
        assert loaded.bundle.files == ()


def test_a_dry_run_writes_nothing(name: str) -> None:
    template = Template("<p>Hello {{name}}</p>", name=name)
    dry = register(template, alias="production", dry_run=True)
    assert (dry.name, dry.version, dry.is_new) == (name, None, True)
    with pytest.raises(PromptNotFoundError):
        load(name)


def test_static_settings_are_registered_without_variables(name: str) -> None:
    source = '<poml><runtime temperature="0.5"/><p>{{question}}</p><conversation messages="{{history}}"/></poml>'
    assert register(Template(source, name=name)).version.model_config == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("version", "error"),
    [({"version": 7}, "/7"), ({"alias": "missing"}, "@missing")],
)
def test_a_version_that_is_not_there_is_named(name: str, version: dict[str, Any], error: str) -> None:
    register(Template("<p>1</p>", name=name))
    with pytest.raises(PromptNotFoundError, match=f"{name}{error}") as caught:
        load(name, **version)
    assert caught.value.uri == f"prompts:/{name}{error}"


def test_an_unreachable_registry_is_an_error(name: str) -> None:
    mlflow.set_registry_uri(DEAD)
    for call in (lambda: load(name), lambda: register(Template("<p>1</p>", name=name))):
        with pytest.raises(RegistryError, match=f"prompts:/{name}"):
            call()


def test_untagged_poml_is_recognised_by_content(name: str) -> None:
    """MLflow's optimisers and its page register without our tags."""
    loaded = load(register_by_mlflow(name, "<poml>\n  <role>Clerk</role>\n  {{question}}\n</poml>"))
    assert loaded.digest == sha(loaded.source)


@pytest.mark.parametrize(
    "template",
    [
        "Answer the question: {{question}}",
        "",
        "Use the document.\n<document>{{text}}</document>",
        "<instructions>Be brief.</instructions>",
        [{"role": "user", "content": "{{question}}"}],
    ],
    ids=["text", "empty", "text with tags", "tags of its own", "chat"],
)
def test_what_is_not_poml_is_a_clear_error(name: str, template: Any) -> None:
    uri = register_by_mlflow(name, template)
    with pytest.raises(NotPomlError, match=rf"^{uri} is .*load_prompt") as caught:
        load(uri)
    assert caught.value.uri == uri


def test_a_text_that_was_registered_as_poml_is_poml(name: str) -> None:
    register(Template("Answer the question: {{question}}", name=name))
    assert load(name).source == "Answer the question: {{question}}"


def template_with_files(folder: Path) -> Template:
    """A prompt that names files of every kind, next to, below and above it."""
    write(folder / "prompts" / "parts" / "tone.poml", '<include src="deep.poml"/>\r\n<p>Grüße</p>')
    write(folder / "prompts" / "parts" / "deep.poml", "<p>Deep {{mood}}</p>")
    write(folder / "shared" / "facts.json", "[1, 2]")
    (folder / "prompts" / "logo.png").write_bytes(bytes(range(256)) * 20)
    write(folder / "prompts" / "empty.txt", "")
    source = (
        '<include src="parts/tone.poml"/><let name="facts" src="../shared/facts.json"/><img src="logo.png"/>'
        '<document src="empty.txt"/><img src="{{chosen}}"/>'
    )
    return Template(path=write(folder / "prompts" / "main.poml", source))


def test_the_files_that_a_prompt_names_are_stored_with_it(name: str, tmp_path: Path) -> None:
    template = template_with_files(tmp_path)
    version = register(template).version
    loaded = load(version.uri)

    assert loaded.source == version.template == (tmp_path / "prompts" / "main.poml").read_bytes().decode()
    assert loaded.bundle.contents == {
        "parts/tone.poml": '<include src="deep.poml"/>\r\n<p>Grüße</p>'.encode(),
        "parts/deep.poml": b"<p>Deep {{mood}}</p>",
        "../shared/facts.json": b"[1, 2]",
        "logo.png": bytes(range(256)) * 20,
        "empty.txt": b"",
    }
    assert loaded.bundle.folder == "prompts"
    assert loaded.digest == template.digest
    assert "<p>Deep {{mood}}</p>" in version.tags.values()  # texts can be read in MLflow's page


def test_an_omitted_file_has_a_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(os.urandom(400_000))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "note.txt", "note")
    far = write(tmp_path / "far.txt", "far").as_posix()
    source = (
        f'<document src="large.bin"/><folder src="folder"/><document src="{far}"/>'
        '<document if="{{no}}" src="nowhere.txt"/><document src="note.txt"/>'
    )
    template = Template(path=write(tmp_path / "a.poml", source), name=name)
    loaded = load(register(template).version.uri)
    assert loaded.bundle.contents == {"note.txt": b"note"}
    reasons = {"large.bin": "400,000 bytes", "folder": "folder", far: "absolute", "nowhere.txt": "not there"}
    assert loaded.bundle.omitted.keys() == reasons.keys()
    assert all(reasons[path] in why for path, why in loaded.bundle.omitted.items())
    assert loaded.digest == template.digest


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_a_file_that_no_render_could_read_is_not_stored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the author of a prompt that others register, as in CI, could read their files."""
    secret = write(tmp_path / "other" / "secret.txt", "the secret")
    write(tmp_path / "home" / "note.txt", "note")
    (tmp_path / "home" / "link.txt").symlink_to(secret)
    monkeypatch.chdir(tmp_path / "home")
    hidden = ("../other/secret.txt", "link.txt")
    source = "".join(f'<document if="{{{{no}}}}" src="{path}"/>' for path in ("note.txt", *hidden))
    template = Template(path=write(tmp_path / "home" / "a.poml", f"<poml><p>a</p>{source}</poml>"), name=name)
    version = register(template).version
    assert "the secret" not in str(version.tags)
    loaded = load(version.uri)
    assert loaded.bundle.contents == {"note.txt": b"note"}
    assert loaded.bundle.omitted == dict.fromkeys(
        hidden, "templates may not read this folder (pomlflow.configure(allow_read=…))"
    )
    for number, options in enumerate(({"allow_read": [tmp_path / "other"]}, {"allow_read": [], "sandbox": False})):
        pomlflow.configure(**options)
        assert register(Template(source, name=f"{name}-{number}", base_dir=tmp_path / "home")).version
        assert set(load(f"{name}-{number}").bundle.contents) == {"note.txt", *hidden}


def test_a_file_of_half_a_megabyte_of_text_is_stored_in_pieces(name: str, tmp_path: Path) -> None:
    text = "".join(f"{number} {sha(str(number))}\n" for number in range(7_000))
    write(tmp_path / "long.txt", text)
    version = register(Template('<document src="long.txt"/>', name=name)).version
    assert len([key for key in version.tags if key.startswith("poml_file_")]) > 1
    assert load(version.uri).bundle.contents == {"long.txt": text.encode()}


def test_a_file_that_changed_since_its_render_is_not_registered(name: str, tmp_path: Path) -> None:
    """Otherwise the version's digest would not be that of its files."""
    write(tmp_path / "note.txt", "first")
    template = Template('<document src="note.txt"/>', name=name)
    record = template.render({})
    write(tmp_path / "note.txt", "second")
    with pytest.raises(RegistryError, match=r"note\.txt changed"):
        register(template, record=record)
    assert load(register(template).version.uri).bundle.contents == {"note.txt": b"second"}


def test_another_file_makes_another_version(name: str, tmp_path: Path) -> None:
    write(tmp_path / "note.txt", "first")
    template = Template('<document src="note.txt"/>', name=name)
    register(template)
    write(tmp_path / "note.txt", "second")
    assert register(template).version.version == 2
    assert [load(name, version=number).bundle.contents["note.txt"] for number in (1, 2)] == [b"first", b"second"]


@pytest.mark.parametrize(
    "change",
    [
        {"poml_sha256": "0" * 64},
        {"poml_file_1": "other"},
        {"poml_files": "no json"},
        {"poml_files": "[]"},
        {"poml_files": json.dumps({"folder": "", "files": [{"path": "a", "sha256": "b", "tags": ["poml_file_9"]}]})},
    ],
    ids=["digest", "file", "no json", "no object", "no tag"],
)
def test_a_version_that_was_changed_is_refused(name: str, tmp_path: Path, change: dict[str, str]) -> None:
    write(tmp_path / "note.txt", "first")
    version = register(Template('<document src="note.txt"/>', name=name)).version
    for key, value in change.items():
        mlflow.MlflowClient().set_prompt_version_tag(name, "1", key, value)
    with pytest.raises(RegistryError, match=f"^{version.uri} is not what was registered"):
        load(version.uri)


def hostile_tags(path: str, folder: str = "", content: bytes = b"x", **entry: Any) -> dict[str, str]:
    """The tags of a malicious version."""
    packed = base64.b64encode(zlib.compress(content)).decode()
    file = {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "tags": ["poml_file_1"], **entry}
    return {"poml_files": json.dumps({"folder": folder, "files": [file]}), "poml_file_1": packed}


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("../a", ""),
        ("../../a", "b"),
        ("/etc/passwd", ""),
        ("a/../../b", ""),
        ("C:/a", ""),
        ("a\\..\\..\\b", ""),
        ("a", ".."),
        ("a", "/b"),
        ("a", "b/../.."),
        ("", ""),
        ("a//b", ""),
        (".", ""),
        ("a\0b", ""),
    ],
)
def test_a_path_that_leads_out_of_its_folder_is_refused(path: str, folder: str) -> None:
    with pytest.raises(ValueError, match="leads out of its folder"):
        unpack(hostile_tags(path, folder))


def test_what_is_packed_can_be_unpacked(tmp_path: Path) -> None:
    """The limit of all files together applies to both."""
    content = b"0" * 11_000_000
    files = []
    for path in ("a.txt", "b.txt", "c.txt"):
        file = tmp_path / path
        file.write_bytes(content if path != "c.txt" else b"small")
        files.append(PromptFile(path, hashlib.sha256(file.read_bytes()).hexdigest(), file, tmp_path))
    bundle = unpack(pack(files, None))
    assert bundle.contents == {"a.txt": content, "c.txt": b"small"}
    assert bundle.omitted["b.txt"].startswith("it has 11,000,000 bytes; all files of a version are limited to ")


def test_a_decompression_bomb_is_not_unpacked() -> None:
    limit = 20_000_000
    assert unpack(hostile_tags("a", content=b"0" * limit)).files[0].content == b"0" * limit
    with pytest.raises(ValueError, match="more than 20,000,000 bytes"):
        unpack(hostile_tags("a", content=b"0" * (limit + 1)))
